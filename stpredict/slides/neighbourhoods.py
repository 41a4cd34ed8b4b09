"""Where the patches around spots lie. Those that several spots share, as where patches touch, are counted once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stpredict.arrays import Bool, Float, Int
from stpredict.slides.raster import Raster, block_order
from stpredict.slides.slide import Mpp

#: Raster coordinates are smaller than this.
FAR = 1 << 31
#: How alike the spots' places within a pitch must be for them to lie on a lattice of that pitch: 1 is exactly.
ON_A_LATTICE = 0.5


@dataclass(frozen=True)
class Neighbourhoods:
    """The patches around n spots, and the grid that the spots lie on.

    `centres` (m x 2, level-0 pixels) are those of all patches. `patch_of` (n x side^2, row by row) says which of them
    are around each spot; -1 lies off the slide. `cells` (n x 2) are the spots' row and column.
    """

    centres: Float
    patch_of: Int
    cells: Int


def find_neighbourhoods(
    raster: Raster, centres: Float, patch_px: int, side: int, mpp: Mpp, pitch_um: float
) -> Neighbourhoods:
    """The `side` x `side` patches around spots, the middle one the spot's own, in cells of `pitch_um`.

    A patch whose centre lies off the slide is none; the spot's own always is one.
    """
    step = np.multiply(raster.downsample, raster.scale)
    away = np.arange(side) - side // 2
    row, column = (axis.ravel() for axis in np.meshgrid(away, away, indexing="ij"))
    origins = raster.origins(centres, patch_px)[:, None] + np.column_stack([column, row]) * patch_px
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


def grid_cells(centres: Float, mpp: Mpp, pitch_um: float) -> Int:
    """Row and column (n x 2) of spots in a square grid of `pitch_um`, laid so that spots of a lattice are in its cells'
    middle; of spots set more closely several share a cell."""
    pitches = (centres - centres.min(axis=0)) * mpp / pitch_um
    turns = np.exp(2j * np.pi * pitches).mean(axis=0)
    shift = np.where(np.abs(turns) >= ON_A_LATTICE, np.angle(turns) / (2 * np.pi), 0.25)
    column, row = np.floor(pitches - shift + 0.5).astype(np.int64).T
    return np.column_stack([row, column])
