"""From expression to colours: colour scales, and the range of expression that a gene's colours span."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from stpredict.arrays import Float32, UInt8
from stpredict.colour_maps import COLOUR_MAPS, lookup_table
from stpredict.errors import ResultError, UsageError
from stpredict.result.file import Result

ScaleKind = Literal["card", "slide"]
SCALES: tuple[ScaleKind, ...] = ("card", "slide")
PERCENTILES = (1, 99)
#: Smallest range of percentiles that is stretched to full contrast.
MIN_RANGE = 0.2
#: Smallest range, relative to its limits, whose steps float32 can represent.
MIN_SPAN = 1e-5


@dataclass(frozen=True)
class ColourScale:
    """How one gene is coloured: `low` and below get the map's first colour, `high` and above its last."""

    gene: str
    low: float
    high: float
    unit: str
    range_from: str
    colour_map: str = COLOUR_MAPS[0]

    def colours(self, values: Float32) -> UInt8:
        """RGB, ... x 3, of finite values, ... x 1."""
        position = (values[..., 0] - self.low) * (255 / (self.high - self.low))
        index = np.clip(position, 0, 255).round().astype(np.uint8)
        colours: UInt8 = lookup_table(self.colour_map).take(index, axis=0)
        return colours

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Cohort:
    """Results that share a colour range, and the ranges computed so far."""

    results: Sequence[Result]
    ranges: dict[tuple[str, str, bool], tuple[float, float]] = field(default_factory=dict)

    def range(self, gene: str, model_sha256: str, turned: bool) -> tuple[float, float]:
        """Percentiles 1 and 99 of a gene over all spots. Raises ResultError if the results are not comparable."""
        key = (gene, model_sha256, turned)
        if key not in self.ranges:
            self.ranges[key] = _percentiles([_comparable(result, *key) for result in self.results])
        return self.ranges[key]


@dataclass(frozen=True)
class ScaleRequest:
    """Where a gene's colour range comes from: the card, the slide or a cohort; `low` and `high` override."""

    kind: ScaleKind = "card"
    low: float | None = None
    high: float | None = None
    cohort: Cohort | None = None
    colour_map: str = COLOUR_MAPS[0]

    def __post_init__(self) -> None:
        for option, value in (("--vmin", self.low), ("--vmax", self.high)):
            if value is not None and not math.isfinite(value):
                raise UsageError(f"{option} {value:g}: must be a number.")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise UsageError(f"--vmin {self.low:g}, --vmax {self.high:g}: span no range.")


def colour_scale(result: Result, index: int, request: ScaleRequest) -> ColourScale:
    """The colour scale of a result's gene.

    The card's range makes slides comparable and does not stretch noise. For a model without a range, the slide's
    percentiles are used. Raises UsageError for an empty range, ResultError for a cohort that is not comparable.
    """
    gene, unit = result.genes[index].name, result.provenance["expression_unit"]
    ranges = result.provenance["display_range"]
    if request.cohort:
        low, high = request.cohort.range(gene, result.provenance["model"]["sha256"], "tta" in result.provenance)
        count = len(request.cohort.results)
        range_from = f"percentiles 1 to 99 of {count} slide{'s' if count > 1 else ''}"
    elif request.kind == "card" and ranges:
        low, high, range_from = float(ranges[0][index]), float(ranges[1][index]), "the model's card"
    else:
        low, high = _percentiles([result.expression(gene)])
        range_from = "percentiles 1 to 99 of this slide"
    if request.low is not None or request.high is not None:
        given = request.low is not None and request.high is not None
        range_from = "the limits given" if given else f"a limit given, and {range_from}"
        low = low if request.low is None else request.low
        high = high if request.high is None else request.high
    if not (MIN_SPAN * max(abs(low), abs(high), 1) < high - low < math.inf):
        raise UsageError(f"{gene}: colours from {low:g} to {high:g} span no range; mend it with --vmin and --vmax.")
    return ColourScale(gene, low, high, unit, range_from, request.colour_map)


def _percentiles(parts: Sequence[Float32]) -> tuple[float, float]:
    values = np.concatenate(parts)
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, MIN_RANGE
    low, high = (float(side) for side in np.percentile(values, PERCENTILES))
    return low, max(high, low + MIN_RANGE)


def _comparable(result: Result, gene: str, model_sha256: str, turned: bool) -> Float32:
    """A gene's expression in a result of the same model, made with `--tta` or without.

    Raises ResultError if it is not comparable.
    """
    if result.provenance["model"]["sha256"] != model_sha256:
        raise ResultError(f"{result.path.name}: comes from another model, so it cannot be drawn on this scale.")
    if ("tta" in result.provenance) != turned:
        raise ResultError(f"{result.path.name}: only some were made with --tta, so it cannot be drawn on this scale.")
    if gene not in (known.name for known in result.genes):
        raise ResultError(f"{result.path.name}: holds no {gene}, so it cannot be drawn on this scale.")
    return result.expression(gene)
