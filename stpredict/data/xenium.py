"""Reader of 10x Xenium: folders of a run's output, each with its H&E and the matrix that aligns the two.

A section is a folder with `experiment.xenium` (JSON, with the `pixel_size` of the morphology image in um) and counts at
positions in um, which `xenium_counts` reads. In or above it lie `*he_image*.tif` and `*he_imagealignment.csv`, the
3 x 3 matrix from pixels of the H&E to those of the morphology image; `sections.csv` may name another image, and has to
name the patient. Counts are pooled to squares, as a cell has few and a patch is larger than a cell.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from stpredict.arrays import Float
from stpredict.data.counts import in_memory
from stpredict.data.genes import name_genes, symbols_by_id
from stpredict.data.reading import AS_IT_IS, Reading, read_each
from stpredict.data.rows import SectionRow, chosen, read_rows, the_image, unstated
from stpredict.data.section import Section
from stpredict.data.tables import IMAGES, read_table
from stpredict.data.xenium_counts import read_pooled
from stpredict.errors import DatasetError, first_line
from stpredict.slides.slide import Mpp

EXPERIMENT = "experiment.xenium"
#: The default side of the squares, um. HEST-1k pools to it, too.
SQUARE_UM = 100.0
#: Names of a run's folder that say nothing about the section.
GENERIC = ("outs", "output")


def is_xenium(folder: Path) -> bool:
    return bool(_experiments(folder))


def read_xenium(folder: Path, reading: Reading = AS_IT_IS) -> list[Section]:
    """All sections of a folder, or those that sections.csv names, sorted by name; `reading.bins` sizes the squares.

    Raises DatasetError if no patients are named, and BrokenSectionsError for files that are missing or damaged.
    """
    found: dict[str, Path] = {}
    for path in _experiments(folder):
        name = _section_name(path.parent)
        if name in found:
            raise DatasetError(f"{folder}: section {name} is there twice ({found[name]}, {path.parent}).")
        found[name] = path.parent
    rows = read_rows(folder)
    if not rows:
        raise unstated(folder, "which patients the sections come from", "section,patient", sorted(found))
    names = chosen(found, rows, folder, reading)
    side_um = reading.bins.asked_um or reading.bins.like_um or SQUARE_UM
    return read_each(names, str, lambda name: _read_section(name, found[name], rows[name], side_um))


def _experiments(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob(EXPERIMENT) if path.is_file())


def _section_name(place: Path) -> str:
    own = place.resolve()
    name = own.parent.name if own.name in GENERIC else own.name
    return name.removesuffix("_outs")


def _read_section(name: str, place: Path, row: SectionRow, side_um: float) -> Section:
    image = row.image or the_image(_beside(place, "*he_image*", IMAGES), name, place)
    to_morphology = _read_alignment(place, name)
    morphology_um = _pixel_um(place / EXPERIMENT)
    pooled = read_pooled(place, side_um)
    genes, counts, notes = name_genes(pooled.symbols, pooled.ids, pooled.counts)
    back = np.asarray(np.linalg.inv(to_morphology), dtype=float)
    middle_um = (pooled.squares.astype(float) + 0.5) * side_um
    centres = _transformed(middle_um / morphology_um, back)
    um = morphology_um * float(np.sqrt(abs(np.linalg.det(to_morphology[:2, :2]))))
    return Section(
        name=name,
        patient=row.patient,
        image=image,
        mpp=row.mpp or Mpp(um, um),
        spot_names=[f"s_{round(side_um):03d}um_{y:05d}_{x:05d}-1" for x, y in pooled.squares.tolist()],
        centres=centres,
        genes=genes,
        counts=in_memory(counts),
        lost_spots=0,
        spot_diameter_um=side_um,
        pitch_um=side_um,
        names_all_genes=True,
        symbols=symbols_by_id(pooled.symbols, pooled.ids),
        technology="Xenium",
        notes=(*pooled.notes, *notes),
    )


def _beside(place: Path, pattern: str, suffixes: frozenset[str] | set[str]) -> list[Path]:
    """Files in a run's folder, else in the one above: those whose names begin like the run's, or all if none does."""
    for folder in (place, place.parent):
        found = sorted(p for p in folder.glob(pattern) if p.is_file() and p.suffix.lower() in suffixes)
        own = [path for path in found if path.name.startswith(_section_name(place))]
        if found:
            return own or found
    return []


def _read_alignment(place: Path, name: str) -> Float:
    """The 3 x 3 matrix from pixels of the H&E to those of the morphology image. Raises DatasetError without one."""
    found = _beside(place, "*he_imagealignment*", {".csv"})
    if len(found) != 1:
        there = ", ".join(path.name for path in found) or "there is none"
        raise DatasetError(
            f"{place}: section {name} needs one *he_imagealignment.csv, the matrix that aligns the H&E ({there})."
        )
    table = read_table(found[0], header=None)
    try:
        matrix = table.to_numpy(dtype=float)
        if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or not np.allclose(matrix[2], (0, 0, 1)):
            raise ValueError("it is not 3 x 3 with a last line of 0, 0, 1")
        np.linalg.inv(matrix)
    except (ValueError, np.linalg.LinAlgError) as error:
        raise DatasetError(f"{found[0].name}: is no matrix that aligns images ({first_line(error)}).") from error
    return np.asarray(matrix)


def _pixel_um(path: Path) -> float:
    try:
        um = float(json.loads(path.read_text(encoding="utf-8"))["pixel_size"])
        if not 0.01 < um < 10:
            raise ValueError(f"pixel_size is {um:g}")
        return um
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DatasetError(f"{path}: tells no pixel_size ({first_line(error)}).") from error


def _transformed(points: Float, matrix: Float) -> Float:
    """Points (n x 2) through an affine matrix (3 x 3)."""
    return np.asarray(points @ matrix[:2, :2].T + matrix[:2, 2])
