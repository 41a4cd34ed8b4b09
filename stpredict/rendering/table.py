"""Spots and genes as CSV, for people without Python."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from stpredict.result.file import Result, spot_names
from stpredict.result.frame import Frame
from stpredict.storage.csv_cells import plain_cell
from stpredict.storage.files import atomic_path


def write_table(path: Path, frame: Frame, result: Result, genes: Sequence[int]) -> None:
    """One line per spot: name, place in the lattice, centre in the frame's px and um, tissue, quality, some genes."""
    spots, mpp = result.spots, result.canvas.mpp
    centres = spots.centres - (frame.left, frame.top)
    header = ("spot", "row", "col", "x_px", "y_px", "x_um", "y_um", "tissue_fraction")
    names = [*result.quality, *(result.genes[index].name for index in genes)]
    rows = (row for block in result.blocks(genes) for row in block.tolist())
    # Without a byte order mark, spreadsheets assume another encoding; without quotes, they may split text.
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow([plain_cell(cell) for cell in (*header, *names)])
        for i, (name, row) in enumerate(zip(spot_names(result.name, spots), rows, strict=True)):
            x, y = centres[i].tolist()
            place = (round(side, 2) for side in (x, y, x * mpp.x, y * mpp.y))
            fraction = round(float(result.tissue_fraction[i]), 3)
            values = (*result.quality_of(i).values(), *(round(value, 4) for value in row))
            writer.writerow((plain_cell(name), int(spots.row[i]), int(spots.column[i]), *place, fraction, *values))
