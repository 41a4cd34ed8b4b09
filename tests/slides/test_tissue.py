from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from slides_to_try import tiff_pyramid

from stpredict.data.her2st import read_her2st
from stpredict.errors import NoTissueError, SlideError
from stpredict.slides.grid import GridRequest, choose_spots
from stpredict.slides.overview import make_thumbnail
from stpredict.slides.slide import Mpp, open_slide
from stpredict.slides.tissue import Tissue, find_tissue, tissue_mask

SLIDE = Path(__file__).parents[1] / "data" / "CMU-1-Small-Region.svs"
HER2ST = Path(__file__).parents[3] / "shared" / "data" / "her2st"


def test_finds_the_tissue_of_the_example_slide():
    with open_slide(SLIDE) as slide:
        tissue = find_tissue(slide, Mpp(0.499, 0.499))
    assert tissue.mask.shape == tissue.overview.shape[:2] == (185, 138)
    brightness = tissue.overview.mean(axis=-1)
    assert brightness[~tissue.mask].mean() > 235  # glass
    assert brightness[tissue.mask].mean() < 200
    assert 0.35 < tissue.mask.mean() < 0.5


@pytest.mark.parametrize("grey", [255, 243, 200])
def test_an_empty_slide_has_no_tissue(tmp_path, grey):
    noise = np.random.default_rng(0).integers(-4, 5, (1500, 1500, 3))
    Image.fromarray(np.clip(grey + noise, 0, 255).astype(np.uint8)).save(tmp_path / "empty.png")
    with open_slide(tmp_path / "empty.png") as slide:
        assert not find_tissue(slide, Mpp(0.5, 0.5)).mask.any()
        with pytest.raises(NoTissueError, match="no tissue found"):
            choose_spots(slide, Mpp(0.5, 0.5), GridRequest(100.0, 100.0), 1)


def test_spots_within_tissue_are_wholly_tissue():
    tissue = Tissue(np.zeros((300, 300, 3), np.uint8), np.ones((300, 300), np.bool_), (16.0, 16.0))
    centres = np.random.default_rng(0).uniform(500, 4300, (2000, 2))
    assert (tissue.fraction(centres, 100.0, Mpp(0.5, 0.5)) == 1).all()


def test_printed_dots_are_not_tissue():
    overview = np.full((400, 400, 3), 240, np.uint8)
    overview[100:300, 100:300] = (180, 120, 170)
    overview[20:400:40, 20] = overview[20:400:40, 21] = (90, 90, 90)
    mask = tissue_mask(overview, 8.0)
    assert mask[110:290, 110:290].all()
    assert not mask[:, :40].any()


@pytest.mark.parametrize("glass", [225, 236, 245])
def test_what_was_not_scanned_does_not_make_glass_tissue(glass):
    overview = np.full((400, 400, 3), 255, np.uint8)
    noise = np.random.default_rng(0).integers(-3, 4, (250, 250, 1))
    overview[75:325, 75:325] = (glass + noise).clip(0, 254)
    overview[150:250, 150:250] = (180, 120, 170)
    mask = tissue_mask(overview, 8.0)
    assert mask[155:245, 155:245].all()
    assert mask.sum() < 1.2 * 100 * 100


def test_a_header_of_absurd_size_is_refused_before_anything_is_allocated(tmp_path):
    header = struct.pack(">2I5B", 900_000, 900_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"0" * 100)), (b"IEND", b"")]
    png = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png)
    with pytest.raises(SlideError, match=r"huge.png"), open_slide(tmp_path / "huge.png") as slide:
        find_tissue(slide, Mpp(0.5, 0.5))


def test_thumbnails_are_alike_along_x_and_y_whatever_the_mpp(tmp_path, region):
    tiff_pyramid(tmp_path / "slide.tif", region[:2000, :1000], (0.50, 0.51), levels=1)
    with open_slide(tmp_path / "slide.tif") as slide:
        tissue = find_tissue(slide, Mpp(0.50, 0.51))
        thumbnail, downsample = make_thumbnail(slide, tissue.overview, 1)
    assert thumbnail.shape == (1500, 750, 3)
    assert downsample == pytest.approx(2000 / 1500)


def test_a_slide_full_of_tissue_is_whole():
    rng = np.random.default_rng(0)
    overview = rng.normal((190, 130, 180), 12, (300, 300, 3)).clip(0, 255).astype(np.uint8)
    assert tissue_mask(overview, 8.0).mean() > 0.95


def test_fraction_is_that_of_the_spots_own_disk():
    mask = np.zeros((100, 100), dtype=bool)
    mask[:, :50] = True
    tissue = Tissue(np.zeros((100, 100, 3), np.uint8), mask, (16.0, 16.0))
    at = np.array([[320.0, 800], [800, 800], [1280, 800], [1, 1]])
    np.testing.assert_allclose(tissue.fraction(at, 160.0, Mpp(0.5, 0.5)), [1, 0.48, 0, 0.28], atol=0.06)


@pytest.mark.skipif(not HER2ST.exists(), reason="the measured sections have no licence and do not travel with the code")
def test_measured_spots_are_tissue_and_little_else_is():
    for section in read_her2st(HER2ST):
        with open_slide(section.image) as slide:
            tissue = find_tissue(slide, section.mpp)
        covered = tissue.fraction(section.centres, 100.0, section.mpp) >= 0.25
        area_um2 = tissue.mask.sum() * np.prod(np.multiply(tissue.downsample, section.mpp))
        assert covered.mean() >= 0.98
        assert area_um2 <= 1.25 * len(section.centres) * 200**2
