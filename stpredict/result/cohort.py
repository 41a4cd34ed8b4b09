"""A cohort as one table: a row for each slide and each region drawn on it, with each gene's mean and percentiles."""

from __future__ import annotations

import csv
import glob
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from stpredict.arrays import Bool, Float, Float32
from stpredict.console import report
from stpredict.errors import ResultError, UsageError
from stpredict.result.file import FLAGS, UNUSUAL, Result, nobody_measured, read_result
from stpredict.result.folder import results_in
from stpredict.result.frame import Origin, make_frame
from stpredict.slides.geojson import SUFFIXES
from stpredict.slides.regions import read_regions
from stpredict.storage.csv_cells import plain_cell
from stpredict.storage.files import atomic_path, is_folder, is_there

PERCENTILES = (5, 25, 50, 75, 95)
STATISTICS = ("mean", *(f"p{percentile}" for percentile in PERCENTILES))
FACTS = (
    "slide", "fingerprint", "region", "spots", "spots_not_predicted", "tissue_mm2", "unusual_patches", UNUSUAL, *FLAGS,
    "model", "model_sha256", "engine", "precision", "mpp", "pitch_um", "expression_unit",
)  # fmt: skip
#: So many digits of a sha256 distinguish files.
SHORT = 12

Cell = str | int | float | None


@dataclass(frozen=True)
class Source:
    """A result in a table: the facts that it must share with the others, and its genes."""

    path: Path
    slide: str
    fingerprint: str
    model: str
    unit: str
    pitch_um: float
    turns: str
    genes: tuple[str, ...]


def find_results(inputs: Sequence[Path], exclude: Sequence[str], unreadable: dict[Path, str]) -> list[Path]:
    """The results that `inputs` name: files, folders with all results in them, or patterns; each once, sorted by name.

    Skips results in folders that `exclude` matches; adds folders that cannot be read to `unreadable`. Raises UsageError
    for a folder or a pattern without results, and for a missing file if it is the only input.
    """
    found: dict[Path, Path] = {}
    for path in inputs:
        files = [path]
        if is_folder(path):
            files = results_in(path, exclude, unreadable)
        elif not is_there(path) and glob.has_magic(str(path)):
            names = glob.glob(str(path), recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
            files = [Path(name) for name in names]
        elif not is_there(path) and len(inputs) == 1:
            raise UsageError(f"{path}: no such file or folder.")
        if not files:
            raise UsageError(f"{path}: holds no results (*.h5ad).")
        for file in files:
            found.setdefault(file.resolve(), file)
    return sorted(found.values(), key=lambda file: (file.name, str(file)))


def read_source(path: Path, others: Iterable[Source]) -> Source:
    """The facts that decide whether a result fits into a table.

    Raises ResultError if it cannot be read, or has the same slide as one of the `others`.
    """
    result = read_result(path)
    provenance = result.provenance
    model = f"{provenance['model']['name']} {provenance['model']['sha256'][:SHORT]}"
    source = Source(
        path, result.name, provenance["slide"]["fingerprint"], model, provenance["expression_unit"],
        result.spots.pitch_um, "with --tta" if "tta" in provenance else "without --tta",
        tuple(gene.name for gene in result.genes),
    )  # fmt: skip
    for other in others:
        if (other.slide, other.fingerprint) == (source.slide, source.fingerprint):
            raise ResultError(f"{path}: its slide is in the table already, from {other.path}.")
    return source


def demand_comparable(sources: Sequence[Source]) -> None:
    """Raise UsageError for results of different models, units, pitch or turns. The message names two of them."""
    for source in sources[1:]:
        first = sources[0]
        for what, one, other in (
            ("models", first.model, source.model),
            ("units", first.unit, source.unit),
            ("pitches", f"{first.pitch_um:g} um", f"{source.pitch_um:g} um"),
            ("turns", first.turns, source.turns),
        ):
            if one != other:
                raise UsageError(
                    f"{first.path} and {source.path} do not belong in one table: "
                    f"their {what} differ ({one} and {other})."
                )


def find_regions(regions: Path | None, sources: Sequence[Source]) -> dict[Path, Path]:
    """The file of regions for each result that has one: `regions` itself, or SLIDE.geojson in that folder.

    Raises UsageError for one file with several results, and if no result has a file.
    """
    if regions is None or not sources:
        return {}
    if not regions.is_dir():
        if not regions.exists():
            raise UsageError(f"--regions {regions}: no such file.")
        if len(sources) > 1:
            raise UsageError(f"--regions {regions}: belongs to one slide; for several, name a folder of SLIDE.geojson.")
        return {sources[0].path: regions}
    found = {
        source.path: file
        for source in sources
        for suffix in reversed(SUFFIXES)  # the first suffix wins
        if (file := regions / f"{source.slide}{suffix}").is_file()
    }
    if not found:
        raise UsageError(f"--regions {regions}: holds none of the slides' regions ({sources[0].slide}{SUFFIXES[0]}).")
    return found


@contextmanager
def open_table(out: Path, genes: Sequence[str]) -> Iterator[Any]:
    """A CSV writer for the rows of a table of `genes`; the header line is already written.

    The file is whole or missing, and its path is printed in the end. If `out` is "-", the table itself is printed.
    """
    if str(out) == "-":
        yield _writer(sys.stdout, genes)
        return
    with atomic_path(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        yield _writer(file, genes)
    print(out)


def _writer(file: TextIO, genes: Sequence[str]) -> Any:
    # Text is quoted: else a spreadsheet that splits at semicolons could find a formula within it.
    writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow([*FACTS, *(_cell(f"{gene}.{what}") for gene in genes for what in STATISTICS)])
    return writer


def rows(path: Path, regions: Path | None, genes: Sequence[str], origin: Origin) -> list[list[Cell]]:
    """The row of a slide and those of a file's regions, whose corners count from the slide or its bounds (`origin`).

    Genes that the result does not hold have empty cells. Raises ResultError or RegionsError for damaged files.
    """
    result = read_result(path)
    frame = make_frame(result.canvas, origin)
    centres = result.spots.centres - (frame.left, frame.top)
    parts = {"": np.ones(len(centres), np.bool_)}
    if regions:
        parts |= {name: region.contains(centres) for name, region in read_regions(regions, report).items()}
    statistics, predicted = _statistics(result, list(parts.values()), genes)
    unknown = np.full(len(STATISTICS), np.nan)
    table = []
    for (name, part), described in zip(parts.items(), statistics, strict=True):
        values = (_number(value) for gene in genes for value in described.get(gene, unknown).tolist())
        table.append([*_facts(result, name, part, predicted), *values])
    return table


def _statistics(
    result: Result, parts: Sequence[Bool], genes: Sequence[str]
) -> tuple[list[dict[str, Float]], Bool]:  # fmt: skip
    """Mean and percentiles of some genes over the spots of each part, and which spots were predicted."""
    found: list[dict[str, Float]] = [{} for _ in parts]
    predicted = np.ones(len(result.spots), np.bool_)
    wanted = set(genes)
    for first, values in result.gene_blocks(wanted):
        own = result.genes[first : first + values.shape[1]]
        measured = [not nobody_measured(gene) for gene in own]
        predicted &= np.isfinite(values[:, measured]).all(axis=1)
        for gene, column in zip(own, values.T, strict=True):
            for statistics, part in zip(found, parts, strict=True):
                if gene.name in wanted:
                    statistics[gene.name] = _describe(column[part])
    return found, predicted


def _describe(values: Float32) -> Float:
    """Mean and percentiles of the finite values; NaN if there are none."""
    known = values[np.isfinite(values)].astype(np.float64)
    if not len(known):
        return np.full(len(STATISTICS), np.nan)
    return np.array([known.mean(), *np.percentile(known, PERCENTILES)])


def _facts(result: Result, region: str, part: Bool, predicted: Bool) -> Iterator[Cell]:
    """The cells of FACTS. Only a whole slide has a share of unusual patches."""
    provenance, whole, flagged = result.provenance, not region, result.flagged()
    yield from (_cell(text) for text in (result.name, provenance["slide"]["fingerprint"][:SHORT], region))
    yield from (int(part.sum()), int((part & ~predicted).sum()), _number(_tissue_mm2(result, part)))
    yield _number(float(provenance["unusual_patches"])) if whole else None
    yield from (int((part & flagged[name]).sum()) if name in flagged else None for name in (UNUSUAL, *FLAGS))
    yield from (_cell(provenance["model"]["name"]), _cell(provenance["model"]["sha256"][:SHORT]))
    yield from (_cell(str(provenance.get(key, ""))) for key in ("engine", "precision"))
    yield from (_number(float(np.mean(result.canvas.mpp))), _number(result.spots.pitch_um))
    yield _cell(provenance["expression_unit"])


def _tissue_mm2(result: Result, part: Bool) -> float:
    """The area of tissue of a part's spots; each spot stands for its cell of the lattice. NaN for given positions."""
    spots = result.spots
    if spots.layout == "given":
        return math.nan
    cell_um2 = spots.pitch_um**2 * (math.sqrt(3) / 2 if spots.layout == "hex" else 1.0)
    return float(result.tissue_fraction[part].sum(dtype=np.float64)) * cell_um2 / 1e6


def _number(value: float) -> float | None:
    """A number of six digits, or an empty cell."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _cell(text: str) -> str:
    """Text from a file as a cell of one line that no spreadsheet takes for a formula."""
    plain = plain_cell(text)
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in plain)
