from __future__ import annotations

import numpy as np
import pytest
from conftest import SLIDE

from stpredict.slides.neighbourhoods import SQUARES, find_neighbourhoods, find_tiles, grid_cells
from stpredict.slides.raster import make_raster
from stpredict.slides.slide import Mpp, open_slide

MPP = Mpp(0.499, 0.499)


@pytest.fixture
def raster():
    with open_slide(SLIDE) as slide:
        yield make_raster(slide, MPP, 0.998)


def test_each_spot_has_the_patches_around_it_row_by_row(raster):
    centres = np.array([[1200.3, 1500.7], [1310.0, 1600.0]])
    found = find_neighbourhoods(raster, centres, 64, 5, MPP, 200)
    assert found.patch_of.shape == (2, 25)
    origins = raster.origins(found.centres, 64)
    for spot, own in enumerate(raster.origins(centres, 64)):
        around = origins[found.patch_of[spot]]
        np.testing.assert_array_equal(around[12], own)
        np.testing.assert_array_equal(around[1], own - np.array([64, 128]))  # x is one patch to the left, y two up
        np.testing.assert_array_equal(around[9], own - np.array([-128, 64]))
    assert len(found.centres) == 50
    assert len(np.unique(found.patch_of)) == 50


def test_patches_that_touch_are_counted_once(raster):
    step = 64 * 0.998 / 0.499
    x, y = np.meshgrid(np.arange(6), np.arange(7))
    centres = np.column_stack([x.ravel(), y.ravel()]) * step + 700.25
    found = find_neighbourhoods(raster, centres, 64, 5, MPP, 64 * 0.998)
    assert len(found.centres) == 10 * 11
    assert found.patch_of[0, 13] == found.patch_of[1, 12]  # to the right of the first is the second
    assert found.patch_of[0, 17] == found.patch_of[6, 12]
    np.testing.assert_array_equal(found.cells, np.column_stack([y.ravel(), x.ravel()]))


def test_what_lies_off_the_slide_is_no_patch_but_the_spots_own_always_is(raster):
    corner = find_neighbourhoods(raster, np.array([[5.0, 5.0]]), 64, 5, MPP, 200).patch_of[0].reshape(5, 5)
    assert (corner[:2] == -1).all()
    assert (corner[:, :2] == -1).all()
    assert (corner[2:, 2:] >= 0).all()
    beyond = find_neighbourhoods(raster, np.array([[-3.0, 1e5]]), 64, 5, MPP, 200).patch_of[0]
    assert np.flatnonzero(beyond >= 0).tolist() == [12]


def test_cells_are_those_of_the_lattice_that_measured_spots_were_meant_for():
    rng = np.random.default_rng(0)
    row, column = (axis.ravel() for axis in np.mgrid[3:40, 5:25])
    centres = np.column_stack([column, row]) * 200 / 0.5 + rng.normal(0, 30, (len(row), 2))
    cells = grid_cells(centres, Mpp(0.5, 0.5), 200)
    moved = cells - np.column_stack([row, column])
    assert (moved == moved[0]).all()


def test_spots_set_more_closely_share_cells():
    row, column = (axis.ravel() for axis in np.mgrid[0:8, 0:8])
    cells = grid_cells(np.column_stack([column, row]) * 100.0 + 17, Mpp(1, 1), 200)
    np.testing.assert_array_equal(cells, np.column_stack([row // 2, column // 2]))


def test_layouts_of_tiles_are_shifted_whole_and_cut_into_the_same_squares(raster):
    centres = np.array([[3.0, 5.0], [700.0, 1300.0], [2219.0, 2966.0]])
    found, plain = find_tiles(raster, centres, 128, 3, None, shifts=4), find_tiles(raster, centres, 128, 3, None)
    assert found.patch_of.shape == (3, 16 * 9)
    assert found.inside.shape == (3, 16 * 2)
    np.testing.assert_array_equal(found.patch_of[:, :9], plain.patch_of)
    size = np.array(raster.slide.dimensions) / 2  # in raster pixels
    corners = raster.origins(found.centres, 128)
    for layout in range(16):
        own = corners[found.cells[:, 0] == layout]
        before = np.array([layout % 4, layout // 4]) * 32
        np.testing.assert_array_equal(own.min(axis=0), -before)
        assert (own.max(axis=0) + 128 >= size).all()
        assert len(own) == np.prod(np.ceil((size + before) / 128))
        middle = corners[found.patch_of[:, layout * 9 + 4]]
        square = middle + found.inside[:, 2 * layout : 2 * layout + 2][:, ::-1] * (128 // SQUARES)
        np.testing.assert_array_equal(square, np.floor(centres / 2 / 8) * 8)
