"""sections.csv: facts on sections that their layout does not hold. Whoever has the sections writes it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stpredict.data.reading import AS_IT_IS, Reading
from stpredict.data.where import Facts
from stpredict.errors import DatasetError, some
from stpredict.slides.slide import Mpp
from stpredict.storage.text_tables import read_lines, read_numbers

SECTIONS_CSV = "sections.csv"
NEEDED = ("section", "patient")
LENGTHS = ("mpp", "spot_diameter_um", "pitch_um")


@dataclass(frozen=True)
class SectionRow:
    """One line of sections.csv; a cell that it leaves out is None."""

    section: str
    patient: str
    image: Path | None = None
    counts: Path | None = None
    mpp: Mpp | None = None
    spot_diameter_um: float | None = None
    pitch_um: float | None = None
    facts: Mapping[str, str] = field(default_factory=dict)  # all cells, also those that only a condition reads


def read_rows(folder: Path) -> dict[str, SectionRow]:
    """The lines of the folder's sections.csv by section; none if there is no such file.

    Paths in it are relative to the folder. Raises DatasetError if it cannot be read, or names a file that is not there.
    """
    path = folder / SECTIONS_CSV
    if not path.exists():
        return {}
    rows: dict[str, SectionRow] = {}
    needed = "needs a header line with the columns section and patient"
    for line in read_lines(path, NEEDED, needed, DatasetError, ("image", "counts", *LENGTHS)):
        where = f"{path}, line {line.number}"
        row = _read_row(folder, line.cells, where)
        if row.section in rows:
            raise DatasetError(f"{where}: names section {row.section} a second time.")
        rows[row.section] = row
    if not rows:
        raise DatasetError(f"{path}: names no sections.")
    return rows


def _read_row(folder: Path, cells: dict[str, str], where: str) -> SectionRow:
    if not all(cells.get(key) for key in NEEDED):
        raise DatasetError(f"{where}: needs a section and a patient.")
    paths = {key: folder / cells[key] if cells.get(key) else None for key in ("image", "counts")}
    for key, path in paths.items():
        if path is not None and not path.is_file():
            raise DatasetError(f"{where}: there is no {key} file {path}.")
    lengths: dict[str, float | None] = {}
    for key in LENGTHS:
        try:
            (lengths[key],) = read_numbers([cells[key]]) if cells.get(key) else (None,)
        except ValueError:
            lengths[key] = math.nan
        value = lengths[key]
        if value is not None and not 0 < value < math.inf:
            raise DatasetError(f"{where}: {key} must be a positive number of micrometres, not {cells[key]!r}.")
    mpp, diameter, pitch = (lengths[key] for key in LENGTHS)
    both = Mpp(mpp, mpp) if mpp else None
    return SectionRow(cells["section"], cells["patient"], paths["image"], paths["counts"], both, diameter, pitch, cells)


def chosen(
    found: Collection[str], rows: Mapping[str, SectionRow], folder: Path, reading: Reading = AS_IT_IS,
    known: Mapping[str, Facts] | None = None,
) -> list[str]:  # fmt: skip
    """The sections to read, sorted: those that sections.csv names (all without one) and that `reading` selects.

    The reading's condition sees the columns of sections.csv and further `known` facts. Raises DatasetError if
    sections.csv names a section that was not found, and UsageError as `Reading.chosen` does.
    """
    unknown = sorted(set(rows) - set(found))
    if unknown:
        raise DatasetError(
            f"{folder / SECTIONS_CSV}: names section {unknown[0]}, of which there are no data; "
            f"the folder has {some(sorted(found))}."
        )
    facts = {name: {**(known or {}).get(name, {}), **(rows[name].facts if name in rows else {})}
             for name in sorted(rows or found)}  # fmt: skip
    return reading.chosen(facts)


def unstated(folder: Path, what: str, columns: str, sections: Sequence[str]) -> DatasetError:
    """The error for a fact that a layout does not hold. It says which file to write."""
    return DatasetError(
        f"{folder}: nothing here says {what}; write {folder / SECTIONS_CSV} with the header line {columns} "
        f"and a line for each section ({some(sections)})."
    )


def the_image(images: Sequence[Path], section: str, folder: Path) -> Path:
    """The only one of `images`. Raises DatasetError if there are none, or several to choose from."""
    if not images:
        raise DatasetError(
            f"{folder}: section {section} has no image; name one in the column image of {folder / SECTIONS_CSV}."
        )
    if len(images) > 1:
        raise DatasetError(
            f"{folder}: section {section} has several images ({some(p.name for p in images)}); "
            f"name one in the column image of {folder / SECTIONS_CSV}."
        )
    return images[0]
