from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from slides_to_try import tiff_pyramid

from stpredict.errors import SlideError
from stpredict.slides.raster import block_order, make_raster, read_blocks, read_patches
from stpredict.slides.slide import Mpp, open_slide

SLIDE = Path(__file__).parents[1] / "data" / "CMU-1-Small-Region.svs"


def read_all(raster, centres, patch_px, threads=2):
    out = np.zeros((len(centres), patch_px, patch_px, 3), np.uint8)
    for index, patches in read_patches(raster, np.asarray(centres, float), patch_px, threads):
        out[index] = patches
    return out


@pytest.mark.parametrize("model_mpp", [0.499, 0.69, 1.6])
def test_a_spot_alone_has_the_pixels_it_has_among_many(model_mpp):
    rng = np.random.default_rng(0)
    centres = rng.uniform((-50, -50), (2270, 3000), (60, 2))
    with open_slide(SLIDE) as slide:
        raster = make_raster(slide, Mpp(0.499, 0.499), model_mpp)
        together = read_all(raster, centres, 64)
        for i in range(0, 60, 7):
            np.testing.assert_array_equal(read_all(raster, centres[i : i + 1], 64, threads=1)[0], together[i])


def test_parts_are_asked_for_as_their_turn_comes_and_read_in_order():
    asked = []

    def parts():
        for part in (np.arange(30, 60), np.arange(30), np.arange(60, 90)):
            asked.append(part)
            yield part

    centres = np.random.default_rng(0).uniform((-50, -50), (2270, 3000), (90, 2))
    with open_slide(SLIDE) as slide:
        raster = make_raster(slide, Mpp(0.499, 0.499), 0.69)
        centres = centres[block_order(raster, raster.origins(centres, 64))]
        together = read_all(raster, centres, 64)
        with ThreadPoolExecutor(1) as pool, closing(read_blocks(raster, centres, 64, pool, 1, parts=parts())) as blocks:
            found = [pair for block in blocks for pair in zip(block.index, block.patches(), strict=True)]
            assert [i for i, _ in found] == [*range(30, 60), *range(30), *range(60, 90)]
            for i, patch in found:
                np.testing.assert_array_equal(patch, together[i])
        asked.clear()
        with ThreadPoolExecutor(1) as pool, closing(read_blocks(raster, centres, 64, pool, 1, parts=parts())) as blocks:
            next(blocks)
            assert len(asked) < 3


@pytest.mark.parametrize("model_mpp", [0.5, 1.0, 1.4])
def test_spots_do_not_depend_on_one_another_on_levels_of_odd_size(tmp_path, model_mpp):
    noise = np.random.default_rng(0).integers(0, 256, (2047, 2045, 3)).astype(np.uint8)
    tiff_pyramid(tmp_path / "odd.tif", noise, (0.25, 0.25))
    centres = np.random.default_rng(1).uniform(300, 1700, (12, 2))
    with open_slide(tmp_path / "odd.tif") as slide:
        raster = make_raster(slide, Mpp(0.25, 0.25), model_mpp)
        assert raster.level > 0
        together = read_all(raster, centres, 64)
        for i in range(12):
            np.testing.assert_array_equal(read_all(raster, centres[i : i + 1], 64)[0], together[i])


def test_a_level_at_the_models_mpp_is_not_resampled(region):
    with open_slide(SLIDE) as slide:
        raster = make_raster(slide, Mpp(0.499, 0.497), 0.5)
        assert raster.scale == (1.0, 1.0)
        (patch,) = read_all(raster, [(1000.4, 1500.6)], 100)
    np.testing.assert_array_equal(patch, region[1451:1551, 950:1050])


def test_resampling_agrees_with_a_plain_resize(region):
    with open_slide(SLIDE) as slide:
        raster = make_raster(slide, Mpp(0.5, 0.5), 1.0)
        patch = read_all(raster, [(1000, 1000)], 224)[0].astype(int)
    whole = Image.fromarray(region[:2966]).resize((1110, 1483), Image.Resampling.BILINEAR)
    reference = np.asarray(whole)[388:612, 388:612].astype(int)
    assert abs(patch - reference).max() <= 1


def test_x_and_y_are_resampled_each_with_its_own_mpp(tmp_path):
    stripes = np.zeros((800, 800, 3), np.uint8)
    stripes[:, 400:] = 255
    stripes[600:] = 128
    tiff_pyramid(tmp_path / "slide.tif", stripes, (0.50, 0.51), levels=1)
    with open_slide(tmp_path / "slide.tif") as slide:
        raster = make_raster(slide, Mpp(0.50, 0.51), 1.0)
        region = raster.read(0, 0, 390, 390)[..., 0]
    assert np.flatnonzero(region[100] > 127)[0] == 200  # 400 px x 0.50 um
    assert np.flatnonzero(region[:, 50] > 64)[0] == 306  # 600 px x 0.51 um


def test_the_coarsest_level_that_is_fine_enough_is_read(tmp_path, region):
    tiff_pyramid(tmp_path / "slide.tif", region[:1024, :1024], (0.25, 0.25))
    with open_slide(tmp_path / "slide.tif") as slide:
        levels = [make_raster(slide, Mpp(0.25, 0.25), mpp).level for mpp in (0.25, 0.4, 0.5, 0.69, 1.0, 4.0)]
    assert levels == [0, 0, 1, 1, 2, 2]


@settings(max_examples=15, deadline=None)
@given(st.floats(0.3, 1.2), st.floats(0, 2219), st.floats(0, 2966))
def test_patches_are_centred_on_their_spot(scale, x, y):
    with open_slide(SLIDE) as slide:
        raster = make_raster(slide, Mpp(0.5 * scale, 0.5 * scale), 0.5)
        (origin,) = raster.origins(np.array([[x, y]]), 224)
        step = np.multiply(raster.downsample, raster.scale)
        assert (abs((origin + 112) * step - (x, y)) <= step / 2 + 1e-6).all()


def test_a_slide_that_is_too_coarse_is_refused_unless_allowed():
    with open_slide(SLIDE) as slide:
        with pytest.raises(SlideError, match=r"too coarse.*--allow-upsampling"):
            make_raster(slide, Mpp(0.9, 0.9), 0.69)
        assert make_raster(slide, Mpp(0.9, 0.9), 0.69, allow_upsampling=True).level == 0
        assert make_raster(slide, Mpp(0.8, 0.8), 0.69).level == 0


def test_patches_beyond_the_edge_are_white():
    with open_slide(SLIDE) as slide:
        (patch,) = read_all(make_raster(slide, Mpp(0.499, 0.499), 0.69), [(0, 0)], 224)
    assert (patch[:100] == 255).all()
    assert (patch[:, :100] == 255).all()
