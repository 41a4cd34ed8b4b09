"""Spots and genes as CSV, for people without Python."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from stpredict.arrays import Float32
from stpredict.files import atomic_path
from stpredict.rendering.frame import Frame
from stpredict.result import Result, spot_names

#: A spreadsheet takes a cell that begins with one of these for a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_table(path: Path, frame: Frame, result: Result, genes: Sequence[str], values: Sequence[Float32]) -> None:
    """One line per spot: its name, place in the lattice, centre in px of level 0 and um, tissue fraction, and genes."""
    spots, mpp = result.spots, result.canvas.mpp
    centres = spots.centres - (frame.left, frame.top)
    header = ("spot", "row", "col", "x_px", "y_px", "x_um", "y_um", "tissue_fraction", *genes)
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([plain_cell(cell) for cell in header])
        for i, name in enumerate(spot_names(result.name, spots)):
            x, y = centres[i]
            place = (f"{x:.2f}", f"{y:.2f}", f"{x * mpp.x:.2f}", f"{y * mpp.y:.2f}")
            expression = (f"{gene[i]:.4f}" for gene in values)
            writer.writerow(
                (
                    plain_cell(name),
                    spots.row[i],
                    spots.column[i],
                    *place,
                    f"{result.tissue_fraction[i]:.3f}",
                    *expression,
                )
            )


def plain_cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text
