"""Which spot each pixel of a picture belongs to: the spot whose centre is nearest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyvips
from scipy.spatial import cKDTree

from stpredict.arrays import Float, Int
from stpredict.result import Canvas
from stpredict.slides.lattice import Spots, lattice_shape, steps

#: Given spots are drawn as disks, on a grid of at least this many cells per diameter where the slide is not too large.
CELLS_PER_DIAMETER = 24
MAX_GRID = 4096
#: A squared distance beyond any slide, of rows that hold no spot.
NOWHERE = 1e18


@dataclass(frozen=True)
class Cells:
    """`grid` holds the spot of each cell, -1 for none; `index` is a lazy image of the cell (x, y) of each pixel."""

    grid: Int
    index: pyvips.Image

    def paint(self, values: Float, empty: Float) -> pyvips.Image:
        """A lazy image with the `values` (spots x bands) of each pixel's spot, `empty` where there is none."""
        table = np.vstack([values, empty]).astype(np.float32)  # -1 is the last row
        image = pyvips.Image.new_from_array(np.ascontiguousarray(table[self.grid]))
        return image.mapim(self.index, interpolate=pyvips.Interpolate.new("nearest"))


def make_cells(spots: Spots, canvas: Canvas, downsample: float = 1.0) -> Cells:
    """Cells of a picture whose pixels are `downsample` level-0 pixels wide. Nothing of its size is held in memory."""
    width, height = (max(1, int(size / downsample)) for size in canvas.dimensions)
    centre = (pyvips.Image.xyz(width, height) + 0.5) * downsample
    if spots.layout == "given":
        return _disks(spots, canvas, centre)
    n_rows, n_columns = lattice_shape(canvas.bounds, canvas.mpp, spots.pitch_um, spots.layout)
    grid = np.full((n_rows + 1, n_columns + 1), -1, np.int64)  # the last row and column stay empty
    grid[spots.row, spots.column] = np.arange(len(spots))
    x, y = centre[0] - canvas.bounds.x, centre[1] - canvas.bounds.y
    if spots.layout == "square":
        (step_x, step_y), _ = steps(canvas.mpp, spots.pitch_um, spots.layout)
        column, row = _at_most((x / step_x).floor(), n_columns - 1), _at_most((y / step_y).floor(), n_rows - 1)
    else:
        column, row = _hexagons(x, y, canvas, spots.pitch_um, n_rows)
    inside = (x >= 0) & (x < canvas.bounds.width) & (y >= 0) & (y < canvas.bounds.height)
    return Cells(grid, inside.ifthenelse(column.bandjoin(row), [n_columns, n_rows]).cast("float"))


def _hexagons(
    x: pyvips.Image, y: pyvips.Image, canvas: Canvas, pitch_um: float, n_rows: int
) -> tuple[pyvips.Image, pyvips.Image]:
    """Column and row of the nearest centre: it lies in one of the two rows around the pixel."""
    (step_x, step_y), first_y = steps(canvas.mpp, pitch_um, "hex")
    last_column = {shift: int(np.ceil(canvas.bounds.width / step_x - 0.5 - shift)) - 1 for shift in (0.0, 0.5)}
    position = (y - first_y) / step_y
    above = _at_most(_at_least(position.floor(), 0), max(n_rows - 2, 0))
    candidates = []
    for row in (above, _at_most(above + 1, n_rows - 1)):
        odd = row % 2
        shift = odd / 2
        column = _at_least((x / step_x - shift).floor(), 0)
        last = odd * (last_column[0.5] - last_column[0.0]) + last_column[0.0]
        column = (column > last).ifthenelse(last, column)
        dx = ((column + shift + 0.5) * step_x - x) * canvas.mpp.x
        dy = (row - position) * (step_y * canvas.mpp.y)
        candidates.append((column, row, (column < 0).ifthenelse(NOWHERE, dx * dx + dy * dy)))
    (column_0, row_0, distance_0), (column_1, row_1, distance_1) = candidates
    nearer = distance_0 <= distance_1
    return nearer.ifthenelse(column_0, column_1), nearer.ifthenelse(row_0, row_1)


def _disks(spots: Spots, canvas: Canvas, centre: pyvips.Image) -> Cells:
    """Disks of the spot diameter around given spots, nearest spot first."""
    step = max(canvas.spot_diameter_um / max(canvas.mpp) / CELLS_PER_DIAMETER, max(canvas.dimensions) / MAX_GRID)
    width, height = (int(np.ceil(size / step)) for size in canvas.dimensions)
    y, x = np.mgrid[0:height, 0:width]
    places = (np.column_stack([x.ravel(), y.ravel()]) + 0.5) * step * canvas.mpp
    distance, nearest = cKDTree(spots.centres * canvas.mpp).query(
        places, distance_upper_bound=canvas.spot_diameter_um / 2
    )
    grid = np.where(np.isfinite(distance), nearest, -1).reshape(height, width)
    return Cells(grid, (centre / step).floor().cast("float"))


def _at_most(image: pyvips.Image, limit: float) -> pyvips.Image:
    return (image > limit).ifthenelse(limit, image)


def _at_least(image: pyvips.Image, limit: float) -> pyvips.Image:
    return (image < limit).ifthenelse(limit, image)
