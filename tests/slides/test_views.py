from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from slides_to_try import tiff_pyramid

from stpredict.slides.raster import MOST_STACKS, make_raster, read_patches
from stpredict.slides.slide import Mpp, open_slide
from stpredict.slides.views import cut_views, views_fit

SLIDE = Path(__file__).parents[1] / "data" / "CMU-1-Small-Region.svs"
VIEWS = (1, 2, 4)


def read_all(raster, centres, patch_px, views):
    out = np.zeros((len(centres), len(views), patch_px, patch_px, 3), np.uint8)
    for index, stacks in read_patches(raster, np.asarray(centres, float), patch_px, views=views):
        out[index] = stacks
    return out


def plain_views(whole, x, y, patch_px):
    """By definition: the mean of k x k pixels, over squares about one centre; white beyond the image."""
    padded = np.pad(whole, ((2000, 2000), (2000, 2000), (0, 0)), constant_values=255).astype(float)
    views = []
    for factor in VIEWS:
        side = factor * patch_px
        left, top = (int(at) - side // 2 + 2000 for at in (x, y))
        field = padded[top : top + side, left : left + side]
        means = field.reshape(patch_px, factor, patch_px, factor, 3).mean(axis=(1, 3))
        views.append(np.floor(means + 0.5).astype(np.uint8))
    return np.stack(views)


def test_views_are_means_over_wider_and_wider_fields_about_one_centre(region):
    centres = [(1000, 1500), (1003, 1501), (0, 0), (2219, 2900), (700, 20)]
    with open_slide(SLIDE) as slide:
        found = read_all(make_raster(slide, Mpp(0.499, 0.499), 0.499), centres, 224, VIEWS)
    for (x, y), views in zip(centres, found, strict=True):
        np.testing.assert_array_equal(views, plain_views(region, x, y, 224))
    assert (found[2, 2, :112] == 255).all()  # beyond the slide


def test_views_at_another_mpp_are_made_of_the_models_raster():
    with open_slide(SLIDE) as slide:
        raster = make_raster(slide, Mpp(0.5, 0.5), 0.8)
        whole = raster.read(0, 0, 1387, 1854)
        x, y = 640, 960
        (views,) = read_all(raster, [(x * 1.6, y * 1.6)], 64, VIEWS)
    assert abs(views.astype(int) - plain_views(whole, x, y, 64)).max() <= 1


@pytest.mark.parametrize("model_mpp", [0.499, 0.69, 1.6])
def test_a_spot_alone_has_the_views_it_has_among_many_and_the_patch_of_one_view(model_mpp):
    centres = np.random.default_rng(0).uniform((-50, -50), (600, 600), (3 * MOST_STACKS, 2))
    with open_slide(SLIDE) as slide:
        raster = make_raster(slide, Mpp(0.499, 0.499), model_mpp)
        together = read_all(raster, centres, 32, VIEWS)
        for i in range(0, len(centres), 37):
            np.testing.assert_array_equal(read_all(raster, centres[i : i + 1], 32, VIEWS)[0], together[i])
        for index, patches in read_patches(raster, centres, 32):
            assert abs(together[index, 0].astype(int) - patches).max() <= (0 if raster.scale == (1, 1) else 1)


def test_all_views_of_a_spot_come_from_one_reading(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (1600, 1600, 3)).astype(np.uint8)
    tiff_pyramid(tmp_path / "slide.tif", noise, (0.25, 0.25))
    with open_slide(tmp_path / "slide.tif") as slide:
        raster = make_raster(slide, Mpp(0.25, 0.25), 0.25)
        read, sizes = slide.read, []
        monkeypatch.setattr(type(slide), "read", lambda _self, *where: sizes.append(where[3:]) or read(*where))
        read_all(raster, [(800, 800)], 224, VIEWS)
    assert sizes == [(896, 896)]


def test_closely_set_spots_are_not_all_held_at_once():
    centres = np.random.default_rng(0).uniform(900, 1000, (300, 2))
    with open_slide(SLIDE) as slide:
        raster = make_raster(slide, Mpp(0.499, 0.499), 0.499)
        sizes = [len(index) for index, _ in read_patches(raster, centres, 16, views=VIEWS)]
        assert sum(sizes) == 300
        assert max(sizes) == MOST_STACKS
        assert [len(index) for index, _ in read_patches(raster, centres, 16)] == [300]


def test_halves_are_rounded_up():
    region = np.zeros((4, 4, 3), np.uint8)
    region[1, 1] = 2  # a mean of 0.5 over 2 x 2
    (stack,) = cut_views(region, [(1, 1)], 2, (1, 2))
    assert stack[0, 0, 0].tolist() == [2, 2, 2]
    assert stack[1].sum(axis=2).tolist() == [[3, 0], [0, 0]]


@pytest.mark.parametrize(
    ("views", "patch_px"), [((), 224), ((2,), 224), ((1, 1), 224), ((4, 2, 1), 224), ((1, 2), 15), ((1, 99), 224),
                            ((1, "2"), 224), ((1, 2.0), 224), ((True, 2), 224)]
)  # fmt: skip
def test_what_cannot_be_views(views, patch_px):
    assert not views_fit(views, patch_px)
    assert views_fit(VIEWS, 224)
    assert views_fit((1, 5), 15)
