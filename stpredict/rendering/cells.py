"""Assign each pixel of a picture to the spot with the nearest centre, or interpolate between centres."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stpredict.arrays import Bool, Float, Float32, Int, UInt8
from stpredict.result.file import Canvas
from stpredict.slides.lattice import Spots, lattice_shape, steps

#: From level-0 x and y of a tile's columns and rows to RGB, rows x columns x 3, and where there is a spot; else white.
Layer = Callable[[Float, Float], tuple[UInt8, Bool]]
#: From values, ... x bands, to RGB, ... x 3.
Colours = Callable[[Float32], UInt8]
Axes = tuple[float, float, float, float]
WHITE = 255
#: Inside the lattice a known spot weighs at least a quarter within its own area.
LEAST_WEIGHT = np.float32(0.2)


@dataclass(frozen=True)
class Cells:
    """The spots of a result as areas: blocks of a square lattice, hexagons, or disks around given positions."""

    spots: Spots
    canvas: Canvas
    grid: Int  # the spot at each lattice position, -1 for none; its last row and column stay empty
    from_left: Int  # given spots in the order of their x

    def paint(self, table: np.ndarray, x: Float, y: Float) -> np.ndarray:
        """Rows x columns x bands, from a `table` with a line of bands for each spot and a last one for no spot."""
        if self.spots.layout != "square":
            nearest = self._disks(x, y) if self.spots.layout == "given" else self._hexagons(x, y)
            painted: np.ndarray = table.take(nearest, axis=0)
            return painted
        column, row = self._blocks(x, y)
        left, top = column.min(), row.min()
        block = table.take(self.grid[top : row.max() + 1, left : column.max() + 1], axis=0)
        tile: np.ndarray = block.take(column - left, axis=1).take(row - top, axis=0)
        return tile

    def _blocks(self, x: Float, y: Float) -> tuple[Int, Int]:
        """Lattice column of each x and row of each y; outside the bounds, the last one, which is empty."""
        bounds, (n_rows, n_columns) = self.canvas.bounds, self.grid.shape
        (step_x, step_y), _ = steps(self.canvas.mpp, self.spots.pitch_um, "square")
        return (
            _index(x - bounds.x, bounds.width, step_x, n_columns),
            _index(y - bounds.y, bounds.height, step_y, n_rows),
        )

    def _hexagons(self, x: Float, y: Float) -> Int:
        """The spot with the nearest centre to each place. It lies in one of the two lattice rows around the place.

        Its distance along x depends only on the place's x and on whether the row is odd; along y only on the place's y.
        """
        bounds, mpp = self.canvas.bounds, self.canvas.mpp
        (step_x, step_y), first_y = steps(mpp, self.spots.pitch_um, "hex")
        n_rows = self.grid.shape[0] - 1
        outside_x, outside_y = (
            (places < first) | (places >= first + length)
            for places, first, length in ((x, bounds.x, bounds.width), (y, bounds.y, bounds.height))
        )
        columns, squares = [], []
        for shift in (0.0, 0.5):
            last = int(np.ceil(bounds.width / step_x - 0.5 - shift)) - 1
            column = np.clip(np.floor((x - bounds.x) / step_x - shift), 0, last)
            columns.append(column.astype(np.int64))
            distance = ((column + shift + 0.5) * step_x - (x - bounds.x)) * mpp.x
            squares.append(distance**2 if last >= 0 else np.full(len(x), np.inf))
        position = (y - bounds.y - first_y) / step_y
        above = np.clip(np.floor(position), 0, max(n_rows - 2, 0)).astype(np.int64)
        found = np.empty((len(y), len(x)), np.int64)
        for row in np.unique(above):
            here, below, odd = above == row, min(row + 1, n_rows - 1), row % 2
            up, down = (((position[here] - at) * step_y * mpp.y) ** 2 for at in (row, below))
            nearer = squares[odd] - squares[below % 2] <= (down - up)[:, None]
            found[here] = np.where(nearer, self.grid[row, columns[odd]], self.grid[below, columns[below % 2]])
        found[outside_y] = -1
        found[:, outside_x] = -1
        return found

    def _disks(self, x: Float, y: Float) -> Int:
        """Disks of the spot diameter. Where they overlap, a place belongs to the nearer centre."""
        radius, mpp = self.canvas.spot_diameter_um / 2, self.canvas.mpp
        best, shortest = np.full((len(y), len(x)), -1), np.full((len(y), len(x)), radius * radius)
        sorted_x = self.spots.centres[self.from_left, 0]
        first, last = np.searchsorted(sorted_x, (x[0] - radius / mpp.x, x[-1] + radius / mpp.x))
        near = self.from_left[first : last + 1]
        centre_y = self.spots.centres[near, 1]
        near = near[(centre_y >= y[0] - radius / mpp.y) & (centre_y <= y[-1] + radius / mpp.y)]
        x_um, y_um = x * mpp.x, y * mpp.y
        for spot, centre_um in zip(near, self.spots.centres[near] * mpp, strict=True):
            (left, right), (top, bottom) = (
                np.searchsorted(axis, (centre - radius, centre + radius))
                for axis, centre in zip((x_um, y_um), centre_um, strict=True)
            )
            box = np.s_[top:bottom, left:right]
            distance = (x_um[left:right] - centre_um[0]) ** 2 + ((y_um[top:bottom] - centre_um[1]) ** 2)[:, None]
            nearer = distance <= shortest[box]
            best[box][nearer] = spot
            shortest[box][nearer] = distance[nearer]
        return best


def make_cells(spots: Spots, canvas: Canvas) -> Cells:
    """The areas of all spots."""
    if spots.layout == "given":
        return Cells(spots, canvas, np.empty((0, 0), np.int64), np.argsort(spots.centres[:, 0], kind="stable"))
    n_rows, n_columns = lattice_shape(canvas.bounds, canvas.mpp, spots.pitch_um, spots.layout)
    grid = np.full((n_rows + 1, n_columns + 1), -1, np.int64)
    grid[spots.row, spots.column] = np.arange(len(spots))
    return Cells(spots, canvas, grid, np.empty(0, np.int64))


def make_layer(cells: Cells, values: Float32, colours: Colours, smooth: bool = False) -> Layer:
    """Colour each place by its spot's `values` (spots x bands), or with `smooth` by values interpolated between spots.

    NaN is drawn as no spot. Only the spots of a lattice can be interpolated.
    """
    known: Bool = np.asarray(np.isfinite(values).all(axis=1))
    if smooth:
        return _smooth_layer(cells, values, known, colours)
    table = _colour_table(values, known, colours)
    mask = np.append(known, False)

    def layer(x: Float, y: Float) -> tuple[UInt8, Bool]:
        return cells.paint(table, x, y), cells.paint(mask, x, y)

    return layer


def _colour_table(values: Float32, known: Bool, colours: Colours) -> UInt8:
    """The colour of each spot, white if its value is not known, and a last one for no spot."""
    table = np.full((len(values) + 1, 3), WHITE, np.uint8)
    table[:-1][known] = colours(values[known])
    return table


def _smooth_layer(cells: Cells, values: Float32, known: Bool, colours: Colours) -> Layer:
    """Bilinear between the centres of known spots, within the areas of known spots."""
    nodes, axes = _nodes(cells, values, known)
    mask = np.append(known, False)
    blocks = _colour_table(values, known, colours)

    def layer(x: Float, y: Float) -> tuple[UInt8, Bool]:
        inside = cells.paint(mask, x, y)
        if not inside.any():
            return np.full((*inside.shape, 3), WHITE, np.uint8), inside
        sums = _interpolate(nodes, axes, x, y)
        weight = sums[..., -1]
        between = sums[..., :-1] / np.maximum(sums[..., -1:], LEAST_WEIGHT)
        rgb = colours(between.astype(np.float32, copy=False))
        alone = inside & (weight < LEAST_WEIGHT)  # a hexagon at the border reaches beyond its neighbours' centres
        if alone.any():
            rgb[alone] = cells.paint(blocks, x, y)[alone]
        if not inside.all():
            rgb[~inside] = WHITE
        return rgb, inside

    return layer


def _nodes(cells: Cells, values: Float32, known: Bool) -> tuple[Float32, Axes]:
    """Values times weight, and the weight, at the nodes of a rectangular grid; the grid's first x and y, and its steps.

    For a hexagonal lattice, nodes are half a pitch apart: along each row, the centres, and means halfway between them.
    """
    spots, canvas = cells.spots, cells.canvas
    (step_x, step_y), first_y = steps(canvas.mpp, spots.pitch_um, spots.layout)
    n_rows, n_columns = (side - 1 for side in cells.grid.shape)
    first_x, first_y = canvas.bounds.x + step_x / 2, canvas.bounds.y + first_y
    column = spots.column
    if spots.layout == "hex":
        n_columns, column, step_x = 2 * n_columns + 1, 2 * spots.column + spots.row % 2, step_x / 2
    nodes = np.zeros((n_rows, n_columns, values.shape[1] + 1), np.float32)
    nodes[spots.row[known], column[known], :-1] = values[known]
    nodes[spots.row[known], column[known], -1] = 1
    if spots.layout == "hex":
        beside = np.pad(nodes, ((0, 0), (1, 1), (0, 0)))
        nodes += (beside[:, :-2] + beside[:, 2:]) / 2
    return nodes, (first_x, first_y, step_x, step_y)


def _interpolate(nodes: Float32, axes: Axes, x: Float, y: Float) -> Float32:
    first_x, first_y, step_x, step_y = axes
    (row, below, v), (column, right, u) = (
        _neighbours((places - first) / step, count)
        for places, first, step, count in ((y, first_y, step_y, nodes.shape[0]), (x, first_x, step_x, nodes.shape[1]))
    )
    top, left = row.min(), column.min()
    block = nodes[top : below.max() + 1, left : right.max() + 1]
    u, v = u[:, None], v[:, None, None]
    along = block.take(column - left, axis=1) * (1 - u) + block.take(right - left, axis=1) * u
    between: Float32 = along.take(row - top, axis=0) * (1 - v) + along.take(below - top, axis=0) * v
    return between


def _neighbours(position: Float, count: int) -> tuple[Int, Int, Float32]:
    """The nodes before and after each position, and its place between them; beyond the last node, that node twice."""
    position = np.clip(position, 0, count - 1)
    before = np.floor(position).astype(np.int64)
    return before, np.minimum(before + 1, count - 1), (position - before).astype(np.float32)


def _index(offset: Float, length: int, step: float, n: int) -> Int:
    """The step, of n - 1, in which each offset lies; n - 1 for an offset outside the length."""
    index = np.clip(np.floor(offset / step), 0, n - 2).astype(np.int64)
    index[(offset < 0) | (offset >= length)] = n - 1
    return index
