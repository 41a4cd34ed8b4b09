"""Where the patches around spots lie. A patch that several spots share, as when patches touch, counts once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stpredict.arrays import Bool, Float, Int
from stpredict.slides.raster import Raster, block_order
from stpredict.slides.slide import Mpp

#: Raster coordinates are smaller than this.
FAR = 1 << 31
#: Squares along the side of a tile.
SQUARES = 16
#: Spots lie on a lattice of a pitch if their positions within a pitch are at least so alike; 1 means equal.
ON_A_LATTICE = 0.5


@dataclass(frozen=True)
class Neighbourhoods:
    """The patches around n spots, and the grid that the spots lie on.

    `centres` (m x 2, level-0 pixels) are those of all patches. `patch_of` (n x side^2, row by row) holds the indices of
    the patches around each spot, -1 for one off the slide. `cells` (n x 2) are the spots' row and column.

    If the patches are tiles of the slide, `cells` are those of the tiles (m x 2). Each spot then lies in one of the
    16 x 16 squares of its tile: `inside` (n x 2) is the row and column of that square. If there are several layouts of
    tiles, the number of a tile's layout stands before its cell (m x 3), and `patch_of` and `inside` have the columns of
    one layout behind those of the other.
    """

    centres: Float
    patch_of: Int
    cells: Int
    inside: Int | None = None


def find_neighbourhoods(
    raster: Raster, centres: Float, patch_px: int, side: int, mpp: Mpp, pitch_um: float, step_px: int | None = None
) -> Neighbourhoods:
    """The `side` x `side` patches around spots, the middle one the spot's own, in cells of `pitch_um`.

    They touch, or lie `step_px` apart. A patch with its centre off the slide is left out, except the spot's own.
    """
    step = np.multiply(raster.downsample, raster.scale)
    away = np.arange(side) - side // 2
    row, column = (axis.ravel() for axis in np.meshgrid(away, away, indexing="ij"))
    origins = raster.origins(centres, patch_px)[:, None] + np.column_stack([column, row]) * (step_px or patch_px)
    middle = (origins + patch_px / 2) * step
    there: Bool = np.asarray(((middle >= 0) & (middle < raster.slide.dimensions)).all(axis=2))
    there[:, side * side // 2] = True
    keys, place = np.unique(origins[there] @ np.array([1, 2 * FAR]) + FAR, return_inverse=True)
    unique = np.column_stack([keys % (2 * FAR) - FAR, keys // (2 * FAR)])
    order = block_order(raster, unique)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    patch_of = np.full(there.shape, -1, np.int64)
    patch_of[there] = rank[place]
    return Neighbourhoods((unique[order] + patch_px / 2) * step, patch_of, grid_cells(centres, mpp, pitch_um))


def find_tiles(
    raster: Raster, centres: Float, tile_px: int, side: int, region: int | None, shifts: int = 1
) -> Neighbourhoods:
    """The `side` x `side` tiles around each spot, in a layout of the slide that begins at its corner.

    Tiles form regions of `region` x `region`. If a region holds a tile around a spot, all its tiles are returned;
    without `region`, all tiles of the slide are. Tiles at the slide's right and lower edge reach beyond it. There are
    `shifts` x `shifts` layouts: one begins at the corner, the others 1 / `shifts` of a tile and more before it.
    """
    begins = [(x / shifts, y / shifts) for y in range(shifts) for x in range(shifts)]
    layouts = [find_layout(raster, centres, tile_px, side, region, before) for before in begins]
    if len(layouts) == 1:
        return layouts[0]
    cells = [np.insert(one.cells, 0, number, axis=1) for number, one in enumerate(layouts)]
    inside = [one.inside for one in layouts if one.inside is not None]
    patch_of, n_before = [], 0
    for one in layouts:
        patch_of.append(np.where(one.patch_of < 0, -1, one.patch_of + n_before))
        n_before += len(one.centres)
    every = np.concatenate([one.centres for one in layouts])
    return Neighbourhoods(every, np.hstack(patch_of), np.concatenate(cells), np.hstack(inside))


def find_layout(
    raster: Raster, centres: Float, tile_px: int, side: int, region: int | None, before: tuple[float, float]
) -> Neighbourhoods:
    """As `find_tiles`, of one layout, which begins `before` the slide's corner by so much of a tile (x and y)."""
    step = np.multiply(raster.downsample, raster.scale)
    n_tiles = np.ceil(np.divide(raster.slide.dimensions, step) / tile_px + before).astype(np.int64)
    middle = centres / step / tile_px + before  # x and y, in tiles
    own = np.clip(np.floor(middle).astype(np.int64), 0, n_tiles - 1)
    inside = np.clip(np.floor((middle - own) * SQUARES).astype(np.int64), 0, SQUARES - 1)
    away = np.arange(side) - side // 2
    row, column = (axis.ravel() for axis in np.meshgrid(away, away, indexing="ij"))
    around = own[:, None] + np.column_stack([column, row])
    there = ((around >= 0) & (around < n_tiles)).all(axis=2)
    rows, columns = (axis.ravel() for axis in np.meshgrid(*map(np.arange, n_tiles[::-1]), indexing="ij"))
    if region is not None:
        regions = np.unique(around[there] // region @ [1, FAR])
        wanted = np.isin(columns // region + rows // region * FAR, regions)
        rows, columns = rows[wanted], columns[wanted]
    corners = np.floor((np.column_stack([columns, rows]) - before) * tile_px).astype(np.int64)
    order = block_order(raster, corners)
    rank = np.full(int(n_tiles.prod()), -1, np.int64)
    rank[(rows * n_tiles[0] + columns)[order]] = np.arange(len(order))
    patch_of = np.full(there.shape, -1, np.int64)
    patch_of[there] = rank[around[there] @ np.array([1, n_tiles[0]])]
    tiles = np.column_stack([columns, rows])[order]
    middles = np.asarray((tiles + 0.5 - before) * tile_px * step, dtype=float)
    return Neighbourhoods(middles, patch_of, tiles[:, ::-1].copy(), inside[:, ::-1].copy())


def grid_cells(centres: Float, mpp: Mpp, pitch_um: float) -> Int:
    """Row and column (n x 2) of spots in a square grid of `pitch_um`. Spots of a lattice lie in the middle of cells.
    If spots lie more closely, several share a cell."""
    pitches = (centres - centres.min(axis=0)) * mpp / pitch_um
    turns = np.exp(2j * np.pi * pitches).mean(axis=0)
    shift = np.where(np.abs(turns) >= ON_A_LATTICE, np.angle(turns) / (2 * np.pi), 0.25)
    column, row = np.floor(pitches - shift + 0.5).astype(np.int64).T
    return np.column_stack([row, column])
