"""Reader of human breast cancer as used by ST-Net (He et al. 2020, Nature Biomedical Engineering 4:827).

Per section an image, counts `[_stdata].tsv[.gz]` (spots `XxY` by Ensembl ids), positions, and `_Coord(s).tsv[.gz]`, a
pathologist's label per spot. Files are named `PATIENT_SECTION...`, as ST-Net lays them out in folders
`SUBTYPE/PATIENT`, or as the published archive has them: `HE_PATIENT_SECTION.jpg`, `spots_PATIENT_SECTION.csv[.gz]`.
Positions, `.spots.txt`, come in two forms: tabs and the columns x, y, pixel_x, pixel_y; or commas, a first column `XxY`
and the columns X, Y in pixels. A section's table lacks the genes that were never counted there; their counts are zero.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pandas as pd

from stpredict.data.reading import AS_IT_IS, Reading, read_each
from stpredict.data.rows import chosen, read_rows, the_image
from stpredict.data.scale import lattice_mpp
from stpredict.data.section import Section
from stpredict.data.spotted import positions, spotted_section
from stpredict.data.tables import IMAGES, files_of, read_table
from stpredict.errors import DatasetError

SPOT_DIAMETER_UM, PITCH_UM = 100.0, 200.0
SPOTS = re.compile(r"(?:spots_(.+)\.csv|(.+)\.spots\.txt)(?:\.gz)?")
COORDS = re.compile(r"(.+)_Coords?\.tsv(?:\.gz)?")
COUNTS = re.compile(r"(.+?)(?:_stdata)?\.tsv(?:\.gz)?")


def is_hbc(folder: Path) -> bool:
    return any(SPOTS.fullmatch(path.name) for path in folder.rglob("*spots[_.]*"))


def read_hbc(folder: Path, reading: Reading = AS_IT_IS) -> list[Section]:
    """All sections of a folder, sorted by name. Raises BrokenSectionsError for files that are missing or do not fit."""
    rows, files = read_rows(folder), files_of(folder)
    spots = {_name(match[1] or match[2]): path for path in files if (match := SPOTS.fullmatch(path.name))}
    coords = {_name(match[1]): path for path in files if (match := COORDS.fullmatch(path.name))}
    counts = {_name(match[1]): path for path in files if (match := COUNTS.fullmatch(path.name))}

    def read(name: str) -> Section:
        row, patient = rows.get(name), name.rpartition("_")[0]
        images = [p for p in files if p.suffix.lower() in IMAGES and _name(p.stem.removeprefix("HE_")) == name]
        if name not in counts:
            raise DatasetError(f"{folder}: section {name} has no counts.")
        if not patient and row is None:
            raise DatasetError(f"{spots[name].name}: its name must be that of the patient and the section, with a _.")
        table = read_positions(spots[name])
        if name in coords:
            table = table[table.index.isin(_labelled(coords[name]))]
        return spotted_section(
            name,
            patient,
            row.image if row and row.image else the_image(images, name, folder),
            counts[name],
            table,
            spots[name].name,
            partial(lattice_mpp, unit_um=(PITCH_UM, PITCH_UM), section=name),
            row,
            spot_diameter_um=SPOT_DIAMETER_UM,
            pitch_um=PITCH_UM,
        )

    return read_each(chosen(spots, rows, folder, reading), str, read)


def read_positions(path: Path) -> pd.DataFrame:
    """Array coordinates and pixels of the spots, from either form. Raises DatasetError if it is neither."""
    table = read_table(path, sep=None, engine="python", named_lines=True)
    if {"x", "y", "pixel_x", "pixel_y"} <= set(table.columns):
        if not isinstance(table.index, pd.RangeIndex):
            raise DatasetError(f"{path.name}: its lines have more cells than its header.")
        return positions(table, ("x", "y"), ("x", "y", "pixel_x", "pixel_y"), path)
    if not {"X", "Y"} <= set(table.columns):
        raise DatasetError(f"{path.name}: needs the columns x, y, pixel_x and pixel_y, or a first column XxY and X, Y.")
    # if the header names one column too few, pandas makes the first column the index
    names = pd.Series(table.index if table.columns[0] == "X" else table.iloc[:, 0]).astype(str)
    xy = names.str.extract(r"^(\d+(?:\.\d+)?)x(\d+(?:\.\d+)?)$").to_numpy()
    table = table.assign(x=xy[:, 0], y=xy[:, 1])
    return positions(table, ("x", "y"), ("x", "y", "X", "Y"), path)


def _labelled(path: Path) -> set[str]:
    """Spots of a table of labels. Its header has a name too few, so columns go by position; x and y are not whole."""
    table = read_table(path, sep="\t", header=None, skiprows=1, usecols=[1, 2])
    places = table[[1, 2, 1, 2]].dropna().set_axis(["x", "y", "u", "v"], axis=1)
    return set(positions(places, ("x", "y"), ("u", "v", "u", "v"), path).index)


def _name(stem: str) -> str:
    """The section's name. The published archive spells one patient both BT23209 and BC23209."""
    return re.sub(r"^BT(?=\d)", "BC", stem)
