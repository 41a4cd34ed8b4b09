"""Reader of the HER2ST layout (Andersson et al. 2021, Nature Communications 12:6012).

Per section an image, counts `NAME.tsv[.gz]` (spots `XxY` by genes) and `NAME_selection.tsv` (x, y, new_x, new_y,
pixel_x, pixel_y, selected), in one folder or in the folders of the published repository. The patient is the letter
that begins the section's name.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from stpredict.data.section import Section
from stpredict.errors import DatasetError
from stpredict.slides.slide import PLAIN_IMAGES, Mpp

#: Micrometres per unit of new_x and new_y, the array's own coordinates.
UNIT_UM = 200.0
SELECTION_SUFFIX = "_selection.tsv"
SELECTION_COLUMNS = {"x", "y", "new_x", "new_y", "pixel_x", "pixel_y"}


def is_her2st(folder: Path) -> bool:
    return any(folder.rglob(f"*{SELECTION_SUFFIX}"))


def read_her2st(folder: Path, require_images: bool = True) -> list[Section]:
    """All sections of a folder, sorted by name; without `require_images` also those that have none.

    Raises DatasetError for files that are missing or do not fit together.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    images = {}
    for path in files:
        if path.suffix.lower() in PLAIN_IMAGES:
            images[path.stem] = path
            images.setdefault(path.parent.name, path)  # repository layout: A/A1/any-name.jpg
    counts = {re.sub(r"\.tsv(\.gz)?$", "", p.name): p for p in files if re.search(r"\.tsv(\.gz)?$", p.name)}
    sections = []
    for selection in (path for path in files if path.name.endswith(SELECTION_SUFFIX)):
        name = selection.name.removesuffix(SELECTION_SUFFIX)
        if name not in images and not require_images:
            images[name] = Path()
        if name not in counts or name not in images:
            missing = "counts" if name not in counts else "image"
            raise DatasetError(f"{folder}: section {name} has no {missing}.")
        sections.append(_read_section(name, images[name], counts[name], selection))
    if not sections:
        raise DatasetError(f"{folder}: holds no *{SELECTION_SUFFIX}, so it is not in the HER2ST layout.")
    return sections


def _read_section(name: str, image: Path, counts_path: Path, selection_path: Path) -> Section:
    table = _read_tsv(counts_path, index_col=0)
    selection = _read_tsv(selection_path)
    if not set(selection.columns) >= SELECTION_COLUMNS:
        raise DatasetError(f"{selection_path.name}: needs the columns {', '.join(sorted(SELECTION_COLUMNS))}.")
    try:
        counts = table.to_numpy(dtype=np.float32)
        spots = selection[sorted(SELECTION_COLUMNS)].astype(float)
    except ValueError as error:
        raise DatasetError(f"{counts_path.name}: counts and positions must be numbers ({error}).") from error
    if counts.size == 0 or not np.isfinite(counts).all() or (counts < 0).any():
        raise DatasetError(f"{counts_path.name}: counts must be finite and not negative.")
    spots.index = pd.Index([f"{x:.0f}x{y:.0f}" for x, y in zip(spots.x, spots.y, strict=True)])
    selected = selection["selected"].to_numpy() == 1 if "selected" in selection else np.ones(len(spots), dtype=bool)
    spots = spots[selected]
    row_of = {str(spot): row for row, spot in enumerate(table.index)}
    shared = [spot for spot in spots.index if spot in row_of]
    if not shared:
        raise DatasetError(f"{selection_path.name}: no spot in common with {counts_path.name}.")
    spots = spots.loc[shared]
    return Section(
        name=name,
        patient=re.match(r"[A-Za-z]*", name).group() or name,  # type: ignore[union-attr]
        image=image,
        mpp=Mpp(*(UNIT_UM / _pixels_per_unit(spots[f"new_{axis}"], spots[f"pixel_{axis}"], name) for axis in "xy")),
        spot_names=shared,
        centres=spots[["pixel_x", "pixel_y"]].to_numpy(),
        genes=[str(gene) for gene in table.columns],
        counts=csr_array(counts[[row_of[spot] for spot in shared]]),
        lost_spots=int(selected.sum()) + len(table) - 2 * len(shared),
    )


def _pixels_per_unit(units: pd.Series[float], pixels: pd.Series[float], name: str) -> float:
    """Slope of pixels on the array's coordinates by least squares."""
    if units.nunique() < 2:
        raise DatasetError(f"section {name}: too few spots to find the micrometres per pixel.")
    slope = float(np.polyfit(units, pixels, 1)[0])
    if not slope > 0:
        raise DatasetError(f"section {name}: pixel positions do not follow the array's coordinates.")
    return slope


def _read_tsv(path: Path, index_col: int | None = None) -> pd.DataFrame:
    try:
        return pd.read_csv(path, sep="\t", index_col=index_col)
    except (OSError, EOFError, UnicodeDecodeError, ValueError) as error:
        raise DatasetError(f"{path.name}: cannot be read as a table ({error}).") from error
