from __future__ import annotations

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stpredict.rendering.cells import Cells, make_cells, make_layer
from stpredict.result.file import Canvas
from stpredict.slides.lattice import Spots, lattice
from stpredict.slides.slide import Bounds, Mpp

WIDTH, HEIGHT = 230, 190
X, Y = np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5
LAYOUTS = st.sampled_from(["square", "hex"])
BOUNDS = st.sampled_from([Bounds(0, 0, WIDTH, HEIGHT), Bounds(31, 17, 170, 150)])


def grey(values: np.ndarray) -> np.ndarray:
    """Values from 0 to 255 as their own shade."""
    return np.repeat(values.round().astype(np.uint8), 3, axis=-1)


def nearest(cells: Cells, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return cells.paint(np.append(np.arange(len(cells.spots)), -1), x, y)


@settings(max_examples=25, deadline=None)
@given(LAYOUTS, st.floats(30, 90), st.floats(0.98, 1.02), BOUNDS)
def test_every_pixel_belongs_to_its_nearest_centre(layout, pitch_um, anisotropy, bounds):
    mpp = Mpp(1.0, anisotropy)
    spots = lattice(bounds, mpp, pitch_um, layout)
    cells = make_cells(spots, Canvas((WIDTH, HEIGHT), bounds, mpp, 50.0))
    drawn = nearest(cells, X, Y)
    x, y = np.meshgrid(X, Y)
    places = np.stack([x, y], axis=-1)
    distance = np.linalg.norm((places[:, :, None] - spots.centres) * mpp, axis=-1)
    inside = (x > bounds.x) & (x < bounds.x + bounds.width) & (y > bounds.y) & (y < bounds.y + bounds.height)
    assert (drawn[~inside] == -1).all()
    assert (drawn[inside] >= 0).all()
    mine = np.take_along_axis(distance, np.maximum(drawn, 0)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(mine[inside], distance.min(axis=-1)[inside], atol=0.02)


@settings(max_examples=25, deadline=None)
@given(LAYOUTS, st.integers(0, 200), st.integers(0, 160), st.integers(1, 60), st.sampled_from([1.0, 2.0, 16.0]))
def test_a_tile_shows_what_the_whole_shows(layout, left, top, size, shrink):
    spots = lattice(Bounds(0, 0, WIDTH, HEIGHT), Mpp(1.0, 1.0), 37.3, layout)
    cells = make_cells(spots, Canvas((WIDTH, HEIGHT), Bounds(0, 0, WIDTH, HEIGHT), Mpp(1.0, 1.0), 50.0))
    x, y = (first + (np.arange(size) + 0.5) * shrink for first in (left, top))
    shown = nearest(cells, x, y)
    for i, j in ((0, 0), (size - 1, size - 1), (size // 2, 0)):
        np.testing.assert_array_equal(shown[j, i], nearest(cells, x[i : i + 1], y[j : j + 1])[0, 0])
    outside = (x >= WIDTH)[None] | (y >= HEIGHT)[:, None]
    assert (shown[outside] == -1).all()


def test_blocks_of_a_fractional_pitch_do_not_drift():
    """Over 200 spots, an edge is never further than half a pixel from where it should be."""
    bounds, mpp = Bounds(0, 0, 200 * 11 + 100, 40), Mpp(0.499, 0.499)
    spots = lattice(bounds, mpp, 5.71, "square")
    cells = make_cells(spots, Canvas((bounds.width, bounds.height), bounds, mpp, 5.0))
    shown = nearest(cells, np.arange(bounds.width) + 0.5, np.array([3.0]))[0]
    edges = np.flatnonzero(np.diff(shown)) + 1
    expected = np.arange(1, len(edges) + 1) * 5.71 / 0.499
    assert len(edges) > 190
    assert np.abs(edges - expected).max() <= 0.5


def test_given_spots_are_disks_and_the_nearer_one_has_the_place():
    centres = np.array([[50.0, 60.0], [75.3, 60.1], [160.0, 5.0]])
    spots = Spots(centres, np.zeros(3, int), np.arange(3), "given", 50.0)
    canvas = Canvas((WIDTH, HEIGHT), Bounds(0, 0, WIDTH, HEIGHT), Mpp(0.5, 0.25), 20.0)
    drawn = nearest(make_cells(spots, canvas), X, Y)
    x, y = np.meshgrid(X, Y)
    distance = np.stack([np.hypot((x - cx) * 0.5, (y - cy) * 0.25) for cx, cy in centres])
    np.testing.assert_array_equal(drawn, np.where(distance.min(axis=0) <= 10, distance.argmin(axis=0), -1))


def test_layers_are_white_where_there_is_no_value():
    spots = lattice(Bounds(0, 0, 30, 30), Mpp(1.0, 1.0), 10.0, "square").take(np.array([0, 4, 8]))
    cells = make_cells(spots, Canvas((30, 30), Bounds(0, 0, 30, 30), Mpp(1.0, 1.0), 10.0))
    at = np.array([5.0, 15.0, 25.0])
    for smooth in (False, True):
        rgb, inside = make_layer(cells, np.array([[0.0], [np.nan], [200.0]]), grey, smooth)(at, at)
        np.testing.assert_array_equal(inside, np.diag([True, False, True]))
        assert (rgb[0, 0] == 0).all()
        assert (rgb[2, 2] == 200).all()
        assert (rgb[~inside] == 255).all()


@settings(max_examples=25, deadline=None)
@given(LAYOUTS, st.floats(20, 60), BOUNDS, st.floats(-1, 1), st.floats(-1, 1))
def test_smooth_maps_reproduce_a_plane_between_the_centres(layout, pitch_um, bounds, slope_x, slope_y):
    mpp = Mpp(1.0, 0.99)
    spots = lattice(bounds, mpp, pitch_um, layout)

    def plane(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 125 + (slope_x * (x - 115) + slope_y * (y - 95)) / 2

    cells = make_cells(spots, Canvas((WIDTH, HEIGHT), bounds, mpp, 50.0))
    values = plane(*spots.centres.T)[:, None].astype(np.float32)
    rgb, _ = make_layer(cells, values, grey, smooth=True)(X, Y)
    x, y = np.meshgrid(X, Y)
    rows = [spots.centres[spots.row == row] for row in np.unique(spots.row)]
    left, right = (max(row[0, 0] for row in rows), min(row[-1, 0] for row in rows))
    between = (x > left) & (x < right) & (y > rows[0][0, 1]) & (y < rows[-1][0, 1])
    np.testing.assert_allclose(rgb[..., 0][between], plane(x, y)[between], atol=0.51)


@settings(max_examples=100, deadline=None)
@given(LAYOUTS, st.floats(5, 60), st.integers(14, 230), st.integers(14, 190), st.integers(0, 2**16))
def test_smooth_maps_of_a_constant_are_constant_up_to_every_border(layout, pitch_um, width, height, seed):
    bounds = Bounds(0, 0, width, height)
    spots = lattice(bounds, Mpp(1.0, 1.0), pitch_um, layout)
    kept = np.flatnonzero(np.random.default_rng(seed).uniform(size=len(spots)) < 0.7)
    assume(len(kept))
    cells = make_cells(spots.take(kept), Canvas((WIDTH, HEIGHT), bounds, Mpp(1.0, 1.0), 50.0))
    rgb, inside = make_layer(cells, np.full((len(kept), 1), 200.0), grey, smooth=True)(X, Y)
    np.testing.assert_array_equal(inside, nearest(cells, X, Y) >= 0)
    assert (rgb[inside] == 200).all()


def test_smooth_maps_end_with_the_tissue():
    """A known spot beside unknown ones keeps its value up to the edge of its block, and no further."""
    spots = lattice(Bounds(0, 0, 90, 90), Mpp(1.0, 1.0), 30.0, "square").take(np.array([4]))
    cells = make_cells(spots, Canvas((90, 90), Bounds(0, 0, 90, 90), Mpp(1.0, 1.0), 30.0))
    places = np.arange(90) + 0.5
    rgb, inside = make_layer(cells, np.array([[70.0]]), grey, smooth=True)(places, places)
    assert (rgb[30:60, 30:60] == 70).all()
    assert inside[30:60, 30:60].all()
    assert inside.sum() == 900
