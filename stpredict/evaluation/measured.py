"""Measurements in the spots that are scored, and predictions for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from stpredict.arrays import Float, Float32, Int, Labels, Real
from stpredict.data.tiles import Tiles
from stpredict.data.twins import tied_patients
from stpredict.statistics.blocks import blocks
from stpredict.statistics.normalisation import Normalisation


@dataclass(frozen=True)
class Shares:
    """How counts become expression: as shares of `depth`, which has a value for each spot of the data set."""

    depth: Float
    normalisation: Normalisation
    foreign_unit: str | None = None  # of the prediction, if measurements cannot have it


@dataclass(frozen=True)
class Predicted:
    """Expression of the data set's spots `index` for the genes `panel`, and each gene's correlation in the card."""

    index: Int
    panel: list[str]
    expression: Real
    in_card: Float
    shares: Shares


@dataclass(frozen=True)
class Measured:
    """Measurements in the scored spots. `counts` are spots x genes of the panel, `centres` level-0 pixels.

    A count is NaN if the spot's section did not measure the gene. Expression is ln(1 + `per` x counts / `depth`).
    If two names stand for one section, both have the same `part`, and their patients one label.
    """

    counts: Real
    depth: Float
    section: Labels
    patient: Labels
    centres: Float
    per: float
    part: Labels


def measure(tiles: Tiles, predicted: Predicted, index: Int) -> Measured:
    """The measurements in the spots of a rising `index`, counts in float32."""
    return Measured(
        read_counts(tiles, predicted.panel, index), predicted.shares.depth[index], tiles.section[index],
        tiles.kin[index], tiles.centres[index], predicted.shares.normalisation.per,
        tied_patients(tiles.section, tiles.section, tiles.twins)[index],
    )  # fmt: skip


def read_counts(tiles: Tiles, panel: Sequence[str], index: Int) -> Float32:
    """As `Tiles.panel_counts`, of the spots of a rising `index`, in float32, which holds counts up to 2^24 exactly."""
    counts = np.empty((len(index), len(panel)), np.float32)
    for some in blocks(*counts.shape):
        counts[some] = tiles.panel_counts(panel, index[some])
    return counts


def at(measured: Measured, spots: Int) -> Measured:
    """The measurements in some of the spots."""
    per_spot = ("counts", "depth", "section", "patient", "centres", "part")
    return replace(measured, **{name: getattr(measured, name)[spots] for name in per_spot})
