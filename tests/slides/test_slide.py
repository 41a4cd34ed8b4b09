from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from slides_to_try import aperio_jpeg_2000, leica_with_bounds, tiff_pyramid

from stpredict.errors import MissingMppError, SlideError, SlideNotFoundError, UsageError
from stpredict.slides.slide import Bounds, Mpp, open_slide, resolve_mpp

SLIDE = Path(__file__).parents[1] / "data" / "CMU-1-Small-Region.svs"


def test_reads_an_aperio_slide(region):
    with open_slide(SLIDE) as slide:
        assert slide.dimensions == (2220, 2967)
        assert resolve_mpp(slide) == Mpp(0.499, 0.499)
        assert slide.bounds == Bounds(0, 0, 2220, 2967)
        np.testing.assert_array_equal(slide.read(0, 300, 400, 50, 60), region[400:460, 300:350])


def test_what_lies_beyond_the_slide_is_white(region):
    with open_slide(SLIDE) as slide:
        corner = slide.read(0, -10, -20, 40, 50)
        assert (corner[:20] == 255).all()
        assert (corner[:, :10] == 255).all()
        np.testing.assert_array_equal(corner[20:, 10:], region[:30, :30])
        assert (slide.read(0, 5000, 5000, 8, 8) == 255).all()


def test_transparent_background_is_white_and_bounds_are_known(tmp_path, region):
    path = tmp_path / "slide.scn"
    leica_with_bounds(path, region[:600, :800], corner=(300, 200), size=(2000, 1500))
    with open_slide(path) as slide:
        assert slide.dimensions == (2000, 1500)
        assert slide.bounds == Bounds(300, 200, 800, 600)
        assert (slide.read(0, 0, 0, 300, 200) == 255).all()
        assert (slide.read(0, 1500, 0, 300, 200) == 255).all()
        scanned = slide.read(0, 300, 200, 800, 600).astype(int)
        assert abs(scanned - region[:600, :800]).mean() < 4  # JPEG


def test_reads_jpeg_2000(tmp_path, region):
    path = tmp_path / "slide.svs"
    aperio_jpeg_2000(path, region[:512, :512])
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(0, 100, 100, 64, 64), region[100:164, 100:164])


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_reads_plain_images(tmp_path, region, suffix):
    path = tmp_path / f"image{suffix}"
    Image.fromarray(region[:700, :900]).save(path, dpi=(50_800, 50_800))
    with open_slide(path) as slide:
        assert slide.dimensions == (900, 700)
        assert slide.level_dimensions == [(900, 700)]
        assert resolve_mpp(slide) == pytest.approx((0.5, 0.5), rel=1e-3)
        assert abs(slide.read(0, 850, 600, 100, 120)[:100, :50].astype(int) - region[600:700, 850:900]).mean() < 5


def test_transparent_and_grey_images_become_rgb_on_white(tmp_path):
    Image.fromarray(np.full((64, 64), 90, np.uint8)).save(tmp_path / "grey.png")
    rgba = np.zeros((64, 64, 4), np.uint8)
    Image.fromarray(rgba).save(tmp_path / "clear.png")
    with open_slide(tmp_path / "grey.png") as slide:
        assert (slide.read(0, 0, 0, 64, 64) == 90).all()
    with open_slide(tmp_path / "clear.png") as slide:
        assert (slide.read(0, 0, 0, 64, 64) == 255).all()


def test_levels_of_a_pyramid(tmp_path, region):
    path = tmp_path / "pyramid.tif"
    tiff_pyramid(path, region[:1024, :1536], (0.25, 0.2525))
    with open_slide(path) as slide:
        assert slide.reader == "openslide"
        assert slide.level_dimensions == [(1536, 1024), (768, 512), (384, 256)]
        assert slide.downsample(2) == (4.0, 4.0)
        assert resolve_mpp(slide) == pytest.approx((0.25, 0.2525), rel=1e-4)
        np.testing.assert_array_equal(slide.read(1, 10, 20, 30, 40), region[40:120:2, 20:80:2])


def test_given_mpp_wins():
    with open_slide(SLIDE) as slide:
        assert resolve_mpp(slide, 0.3) == Mpp(0.3, 0.3)
        assert slide.native_mpp == Mpp(0.499, 0.499)


@pytest.mark.parametrize("nonsense", [0, -1, float("nan"), float("inf")])
def test_nonsensical_mpp_is_refused(nonsense):
    with open_slide(SLIDE) as slide, pytest.raises(UsageError, match="positive"):
        resolve_mpp(slide, nonsense)


@pytest.mark.parametrize(
    ("mpp", "says"), [(None, "does not say"), ((30.0, 30.0), "implausible"), ((0.50, 0.52), "differ too much")]
)
def test_missing_or_implausible_mpp_names_the_way_out(tmp_path, region, mpp, says):
    path = tmp_path / "slide.tif"
    tiff_pyramid(path, region[:512, :512], mpp)
    with open_slide(path) as slide, pytest.raises(MissingMppError, match=rf"(?s){says}.*--mpp"):
        resolve_mpp(slide)


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(SlideNotFoundError, match="no such file"):
        open_slide(tmp_path / "nothing.svs")
    with pytest.raises(SlideNotFoundError, match="directory"):
        open_slide(tmp_path)


@pytest.mark.parametrize("tile", [(256, 256), None])
def test_channels_in_separate_pages_are_refused(tmp_path, region, tile):
    channels = np.ascontiguousarray(region[:512, :512].transpose(2, 0, 1))
    tifffile.imwrite(tmp_path / "pages.tif", channels, photometric="minisblack", tile=tile, metadata={"axes": "CYX"})
    with pytest.raises(SlideError, match=r"pages\.tif: its channels are separate pages"):
        open_slide(tmp_path / "pages.tif")
    tifffile.imwrite(tmp_path / "planes.tif", channels, photometric="rgb", planarconfig="separate", tile=tile)
    with open_slide(tmp_path / "planes.tif") as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 0, 512, 512), region[:512, :512])


def test_files_that_are_no_slides(tmp_path):
    for name, content in (
        ("empty.svs", b""),
        ("text.svs", b"hello"),
        ("text.jpg", b"hello"),
        ("half.svs", SLIDE.read_bytes()[:900_000]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SlideError, match=name):
            open_slide(tmp_path / name)


def test_a_truncated_jpeg_is_an_error_when_read(tmp_path, region):
    Image.fromarray(region).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:200_000])
    with pytest.raises(SlideError, match=r"half.jpg"), open_slide(tmp_path / "half.jpg") as slide:
        slide.read(0, 0, 2500, 100, 100)


def test_fingerprint_follows_the_content(tmp_path):
    copy = tmp_path / "copy.svs"
    shutil.copy(SLIDE, copy)
    with open_slide(SLIDE) as slide, open_slide(copy) as same:
        original = slide.fingerprint()
        assert same.fingerprint() == original
    content = bytearray(copy.read_bytes())
    content[500_000] ^= 1
    copy.write_bytes(content)
    with open_slide(copy) as changed:
        assert changed.fingerprint() != original
