"""Reader of cutaneous squamous cell carcinoma, GEO series GSE144240 (Ji et al. 2020, Cell 182:497).

Per section `GSM*_P2_ST_rep1.jpg`, counts `GSM*_P2_ST_rep1_stdata.tsv[.gz]` (spots `XxY` by genes) and
`GSM*_spot_data-selection-P2_ST_rep1.tsv[.gz]`, whose columns are HER2ST's. The patient begins the section's name.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np

from stpredict.arrays import Float
from stpredict.data.reading import AS_IT_IS, Reading, read_each
from stpredict.data.rows import chosen, read_rows, the_image
from stpredict.data.scale import pixels_per_unit
from stpredict.data.section import Section
from stpredict.data.spotted import read_selection, spotted_section
from stpredict.data.tables import IMAGES, files_of
from stpredict.errors import DatasetError
from stpredict.slides.slide import Mpp

SPOT_DIAMETER_UM, PITCH_UM = 110.0, 150.0
SELECTION = re.compile(r"(?:GSM\d+_)?spot_data-selection-(.+)\.tsv(?:\.gz)?")
COUNTS = re.compile(r"(?:GSM\d+_)?(.+)_stdata\.tsv(?:\.gz)?")
IMAGE = re.compile(r"(?:GSM\d+_)?(.+)\.\w+")


def is_cscc(folder: Path) -> bool:
    return any(SELECTION.fullmatch(path.name) for path in folder.rglob("*spot_data-selection-*"))


def read_cscc(folder: Path, reading: Reading = AS_IT_IS) -> list[Section]:
    """All sections of a folder, sorted by name. Raises BrokenSectionsError for files that are missing or do not fit."""
    rows, files = read_rows(folder), files_of(folder)
    selections = {match[1]: path for path in files if (match := SELECTION.fullmatch(path.name))}
    counts = {match[1]: path for path in files if (match := COUNTS.fullmatch(path.name))}

    def read(name: str) -> Section:
        row = rows.get(name)
        images = [p for p in files if p.suffix.lower() in IMAGES and (m := IMAGE.fullmatch(p.name)) and m[1] == name]
        if name not in counts:
            raise DatasetError(f"{folder}: section {name} has no counts.")
        if not images and not (row and row.image):
            packed = [p for p in files if p.name.endswith(f"{name}.jpg.gz")]
            if packed:
                raise DatasetError(f"{folder}: section {name} has a packed image; unpack it (gunzip {packed[0].name}).")
        return spotted_section(
            name,
            name.split("_")[0],
            row.image if row and row.image else the_image(images, name, folder),
            counts[name],
            read_selection(selections[name]),
            selections[name].name,
            partial(staggered_mpp, section=name),
            row,
            spot_diameter_um=SPOT_DIAMETER_UM,
            pitch_um=PITCH_UM,
        )

    return read_each(chosen(selections, rows, folder, reading), str, read)


def staggered_mpp(units: Float, pixels: Float, section: str) -> Mpp:
    """The mpp, the same along both axes, that puts nearest neighbours 150 um apart.

    The array is a centred rectangular lattice: it uses only coordinates with an even (or odd) sum.
    """
    matrix = pixels_per_unit(units, pixels, section)
    staggered = len(np.unique(np.round(units).astype(int).sum(axis=1) % 2)) == 1
    steps = [(1, 1), (1, -1), (2, 0), (0, 2)] if staggered else [(1, 0), (0, 1)]
    um = PITCH_UM / float(np.linalg.norm(matrix @ np.array(steps).T, axis=0).min())
    return Mpp(um, um)
