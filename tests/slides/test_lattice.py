from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stpredict.errors import SlideError, SpotsError, UsageError
from stpredict.slides.lattice import given_spots, lattice, lattice_shape
from stpredict.slides.slide import Bounds, Mpp

sides = st.integers(1, 20_000)
mpps = st.floats(0.1, 2.0)
pitches = st.floats(40.0, 400.0)
layouts = st.sampled_from(["square", "hex"])


@given(sides, sides, mpps, pitches, layouts, st.integers(0, 5000), st.integers(0, 5000))
def test_all_centres_lie_within_the_bounds(width, height, mpp, pitch_um, layout, x, y):
    bounds = Bounds(x, y, width, height)
    spots = lattice(bounds, Mpp(mpp, mpp), pitch_um, layout)
    assert (spots.centres >= (x, y)).all()
    assert (spots.centres < (x + width, y + height)).all()


@given(mpps, st.floats(0.98, 1.02), pitches, layouts)
def test_pitch_is_exact_at_the_far_end_of_a_large_slide(mpp, ratio, pitch_um, layout):
    resolution = Mpp(mpp, mpp * ratio)
    bounds = Bounds(0, 0, 200_000, 4 * int(pitch_um / mpp))
    spots = lattice(bounds, resolution, pitch_um, layout)
    row = spots.centres[spots.row == 2]
    expected = (np.arange(len(row)) + 0.5) * pitch_um / resolution.x
    np.testing.assert_allclose(row[:, 0], expected, atol=0.1)
    step_y = pitch_um / resolution.y * (np.sqrt(3) / 2 if layout == "hex" else 1)
    np.testing.assert_allclose(row[:, 1], pitch_um / resolution.y / 2 + 2 * step_y, atol=0.1)


@given(sides, sides, mpps, pitches)
def test_square_lattice_leaves_no_room_for_another_spot(width, height, mpp, pitch_um):
    spots = lattice(Bounds(0, 0, width, height), Mpp(mpp, mpp), pitch_um)
    rows, columns = lattice_shape(Bounds(0, 0, width, height), Mpp(mpp, mpp), pitch_um, "square")
    assert len(spots) == rows * columns
    assert (columns + 0.5) * pitch_um / mpp >= width
    assert (rows + 0.5) * pitch_um / mpp >= height


def test_hexagonal_neighbours_are_one_pitch_apart():
    spots = lattice(Bounds(0, 0, 4000, 4000), Mpp(0.5, 0.5), 100, "hex")
    um = spots.centres * 0.5
    distance = np.linalg.norm(um[:, None] - um[None], axis=-1) + 1e9 * np.eye(len(um))
    np.testing.assert_allclose(distance.min(axis=1), 100)
    interior = (um > 150).all(axis=1) & (um < 1800).all(axis=1)
    assert (np.isclose(distance[interior], 100).sum(axis=1) == 6).all()


def test_given_spots_keep_their_order(tmp_path: Path):
    file = tmp_path / "spots.csv"
    file.write_text("name,y,x\na,2.5,30\nb,1,7\n")
    spots = given_spots(file, (100, 100), 50)
    np.testing.assert_array_equal(spots.centres, [[30, 2.5], [7, 1]])


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("a,b\n1,2\n", UsageError, "columns x and y"),
        ("x,y\n1,zwei\n", UsageError, "must be numbers"),
        ("x,y\n1\n", UsageError, "must be numbers"),
        ("x,y\n", UsageError, "no spots"),
        ("x,y\n5,5\n500,5\n", SlideError, "outside the slide"),
        ("x,y\nnan,5\n", SlideError, "outside the slide"),
    ],
)
def test_bad_spots_files_are_refused(tmp_path: Path, text, error, says):
    file = tmp_path / "spots.csv"
    file.write_text(text)
    with pytest.raises(error, match=says):
        given_spots(file, (100, 100), 50)


def test_pitch_below_a_pixel_is_refused():
    with pytest.raises(SpotsError, match="larger than a pixel"):
        lattice(Bounds(0, 0, 10, 10), Mpp(0.5, 0.5), 0.4)
