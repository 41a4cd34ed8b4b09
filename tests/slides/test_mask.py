from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from slides_to_try import leica_with_bounds, tiff_pyramid

from stpredict.errors import MaskError, NoTissueError, RegionsError
from stpredict.slides.grid import GridRequest, choose_spots
from stpredict.slides.mask import MaskRequest, inside_mask
from stpredict.slides.slide import Mpp, open_slide

CENTRES = np.array([[5.0, 5.0], [395.0, 5.0], [5.0, 195.0], [250.0, 150.0], [399.9, 199.9]])


@pytest.fixture
def slide(tmp_path, region):
    tiff_pyramid(tmp_path / "s.tif", np.ascontiguousarray(region[1000:1200, 600:1000]), (0.5, 0.5), levels=1)
    with open_slide(tmp_path / "s.tif") as opened:
        yield opened


def geojson(path, *rings):
    geometry = {"type": "Polygon", "coordinates": [[[*corner] for corner in ring] for ring in rings]}
    path.write_text(json.dumps({"type": "Feature", "geometry": geometry, "properties": {}}))
    return path


def test_spots_within_areas_and_not_in_their_holes(slide, tmp_path):
    outline = [(0, 0), (300, 0), (300, 200), (0, 200)]
    hole = [(200, 100), (290, 100), (290, 190), (200, 190)]
    found = inside_mask(MaskRequest(geojson(tmp_path / "m.geojson", outline, hole)), slide, CENTRES)
    assert found.tolist() == [True, False, True, False, False]


def test_an_image_covers_the_slide_at_any_size(slide, tmp_path):
    painted = np.zeros((20, 40), np.uint8)
    painted[:, 30:] = 1
    painted[15, 25] = 255
    for mode in ("L", "RGB"):
        Image.fromarray(painted).convert(mode).save(tmp_path / "m.png")
        assert inside_mask(MaskRequest(tmp_path / "m.png"), slide, CENTRES).tolist() == [False, True, False, True, True]


def test_images_of_every_kind_are_inside_where_they_are_neither_black_nor_transparent(slide, tmp_path):
    share = np.zeros((20, 40))
    share[:, 30:] = 0.2
    share[15, 25] = 1
    white = np.full((20, 40, 4), 255, np.uint8)
    white[..., 3] = 255 * share
    for name, values in (
        ("float.tif", share.astype(np.float32)), ("16.png", (1000 * share).astype(np.uint16)), ("rgba.png", white),
    ):  # fmt: skip
        Image.fromarray(values).save(tmp_path / name)
        assert inside_mask(MaskRequest(tmp_path / name), slide, CENTRES).tolist() == [False, True, False, True, True]


def test_a_mask_may_begin_at_the_bounds(tmp_path, region):
    leica_with_bounds(tmp_path / "b.scn", region[500:900, :400], corner=(300, 200), size=(1500, 1000))
    painted = np.zeros((4, 4), np.uint8)
    painted[0, 0] = 255
    Image.fromarray(painted).save(tmp_path / "m.png")
    area = geojson(tmp_path / "m.geojson", [(0, 0), (100, 0), (100, 100), (0, 100)])
    centres = np.array([[350.0, 250.0], [450.0, 250.0], [50.0, 50.0], [299.0, 250.0]])
    with open_slide(tmp_path / "b.scn") as slide:
        for path in (tmp_path / "m.png", area):
            assert inside_mask(MaskRequest(path, "bounds"), slide, centres).tolist() == [True, False, False, False]
        assert inside_mask(MaskRequest(area), slide, centres).tolist() == [False, False, True, False]


def test_a_lattice_keeps_what_lies_within(tmp_path, region):
    tiff_pyramid(tmp_path / "s.tif", region, (0.5, 0.5))
    area = geojson(tmp_path / "m.geojson", [(500, 500), (1500, 500), (1500, 1500), (500, 1500)])
    empty = geojson(tmp_path / "none.geojson", [(1, 1), (2, 1), (2, 2)])
    with open_slide(tmp_path / "s.tif") as slide:
        _, every, _ = choose_spots(slide, Mpp(0.5, 0.5), GridRequest(100.0, 50.0), 2)
        _, some, _ = choose_spots(slide, Mpp(0.5, 0.5), GridRequest(100.0, 50.0, mask=MaskRequest(area)), 2)
        within = ((every.centres >= 500) & (every.centres <= 1500)).all(axis=1)
        np.testing.assert_array_equal(some.centres, every.centres[within])
        with pytest.raises(NoTissueError, match=r"within the mask none\.geojson"):
            choose_spots(slide, Mpp(0.5, 0.5), GridRequest(100.0, 50.0, mask=MaskRequest(empty)), 2)


def test_masks_that_cannot_be_used(slide, tmp_path):
    Image.fromarray(np.ones((20, 20), np.uint8)).save(tmp_path / "square.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "text.geojson").write_text("{")
    with pytest.raises(MaskError, match=r"do not have the proportions of s\.tif"):
        inside_mask(MaskRequest(tmp_path / "square.png"), slide, CENTRES)
    with pytest.raises(MaskError, match="not an image or GeoJSON"):
        inside_mask(MaskRequest(tmp_path / "text.png"), slide, CENTRES)
    with pytest.raises(RegionsError):
        inside_mask(MaskRequest(tmp_path / "text.geojson"), slide, CENTRES)
