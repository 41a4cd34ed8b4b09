"""Shared by the readers of HER2ST, HBC and cSCC: spotted arrays, with tables of counts and of positions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from stpredict.arrays import Float
from stpredict.data.counts import in_memory
from stpredict.data.genes import name_genes, whole_counts
from stpredict.data.rows import SectionRow
from stpredict.data.scale import settle_mpp
from stpredict.data.section import Section
from stpredict.data.tables import joined, read_table
from stpredict.errors import DatasetError
from stpredict.slides.slide import Mpp

SELECTION_COLUMNS = {"x", "y", "new_x", "new_y", "pixel_x", "pixel_y"}
#: Columns of a table of positions: array coordinates and level-0 pixels.
POSITION_COLUMNS = ["unit_x", "unit_y", "pixel_x", "pixel_y"]


def read_selection(path: Path) -> pd.DataFrame:
    """The selected spots, by name, of an ST spot detector's table (x, y, new_x, new_y, pixel_x, pixel_y, selected)."""
    table = read_table(path, sep="\t")
    if not set(table.columns) >= SELECTION_COLUMNS:
        raise DatasetError(f"{path.name}: needs the columns {', '.join(sorted(SELECTION_COLUMNS))}.")
    if "selected" in table:
        table = table[table["selected"].to_numpy() == 1]
    return positions(table, ("x", "y"), ("new_x", "new_y", "pixel_x", "pixel_y"), path)


def positions(table: pd.DataFrame, name: tuple[str, str], columns: tuple[str, ...], path: Path) -> pd.DataFrame:
    """POSITION_COLUMNS, taken from `columns`, of spots that are named XxY after the rounded columns `name`.

    Raises DatasetError if they are not numbers.
    """
    try:
        xy = table[list(name)].to_numpy(dtype=float)
        values = table[list(columns)].to_numpy(dtype=float)
    except ValueError as error:
        raise DatasetError(f"{path.name}: positions must be numbers ({error}).") from error
    if not (np.isfinite(xy).all() and np.isfinite(values).all()):
        raise DatasetError(f"{path.name}: positions must be finite numbers.")
    index = pd.Index([f"{x:.0f}x{y:.0f}" for x, y in xy], dtype=object)
    return pd.DataFrame(values, index=index, columns=POSITION_COLUMNS)


def read_counts(path: Path, sep: str = "\t") -> tuple[list[str], list[str], csr_array]:
    """Spots, genes and counts of a table with a line per spot. Raises DatasetError if it is no such table."""
    table = read_table(path, sep=sep, index_col=0, low_memory=False)
    # pandas renames columns that share a name, so names are taken from the header line itself
    header = read_table(path, sep=sep, header=None, nrows=1, dtype=str, keep_default_na=False)
    genes = [str(gene) for gene in header.iloc[0]][header.shape[1] - table.shape[1] :]
    try:
        counts = table.to_numpy(dtype=np.float64)
    except ValueError as error:
        raise DatasetError(f"{path.name}: counts must be numbers ({error}).") from error
    return [str(spot) for spot in table.index], genes, whole_counts(counts, path.name)


def spotted_section(
    name: str,
    patient: str,
    image: Path,
    counts_path: Path,
    spots: pd.DataFrame,
    spots_file: str,
    measure: Callable[[Float, Float], Mpp],
    row: SectionRow | None = None,
    *,
    spot_diameter_um: float,
    pitch_um: float,
) -> Section:
    """One section, joined by spot. `measure` finds the mpp from array coordinates and pixels; `row` overrides.

    Raises DatasetError for tables that cannot be read or do not fit together.
    """
    measured, genes, counts = read_counts(counts_path)
    left, right = joined(list(spots.index), measured, spots_file, counts_path.name)
    spots_with_counts = spots.iloc[left]
    units, pixels = np.split(spots_with_counts[POSITION_COLUMNS].to_numpy(), 2, axis=1)
    sources = [("sections.csv", row.mpp if row else None), ("the array's spots", measure(units, pixels))]
    mpp, mpp_notes = settle_mpp(sources)
    assert mpp is not None
    genes, counts, gene_notes = name_genes(genes, None, counts[right])
    return Section(
        name=name,
        patient=row.patient if row else patient,
        image=row.image or image if row else image,
        mpp=mpp,
        spot_names=list(spots_with_counts.index),
        centres=pixels,
        genes=genes,
        counts=in_memory(counts),
        lost_spots=len(spots) + len(measured) - 2 * len(left),
        spot_diameter_um=(row and row.spot_diameter_um) or spot_diameter_um,
        pitch_um=(row and row.pitch_um) or pitch_um,
        notes=mpp_notes + gene_notes,
    )
