from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import tifffile
from slides_to_try import aperio_jpeg_2000, tiff_pyramid

from stpredict.errors import SlideError
from stpredict.slides import stored_tiles
from stpredict.slides.raster import make_raster, read_patches
from stpredict.slides.slide import Mpp, OpenSlideSlide, open_slide

SLIDE = Path(__file__).parents[1] / "data" / "CMU-1-Small-Region.svs"


def jpeg_pyramid(path: Path, image: np.ndarray, levels: tuple[int, ...] = (1, 4), tile: int = 256, **options) -> Path:
    """A tiled TIFF of JPEG tiles; levels are every n-th pixel."""
    options = {"photometric": "ycbcr", "subsampling": (2, 2), "compressionargs": {"level": 90}, **options}
    with tifffile.TiffWriter(path) as tiff:
        for step in levels:
            tiff.write(
                np.ascontiguousarray(image[::step, ::step]), tile=(tile, tile), compression="jpeg", metadata=None,
                subfiletype=int(step > 1), resolution=(20_000, 20_000), resolutionunit="CENTIMETER", **options,
            )  # fmt: skip
    return path


def by_openslide(slide: OpenSlideSlide, *region: int) -> np.ndarray:
    return slide._compose(*region)


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr"])
def test_tiles_hold_what_openslide_sees(tmp_path, region, photometric):
    options = {"photometric": photometric}
    if photometric == "rgb":
        options |= {"subsampling": None, "compressionargs": {"level": 90, "outcolorspace": "rgb"}}
    path = jpeg_pyramid(tmp_path / "slide.tif", region, **options)
    rng = np.random.default_rng(0)
    with open_slide(path) as slide:
        assert slide.reader == "stored tiles"
        for _ in range(20):
            x, y, width, height = rng.integers(1, 1000, 4).tolist()
            read = slide.read(0, x, y, width, height)
            np.testing.assert_array_equal(read, by_openslide(slide, 0, x, y, width, height))


def test_the_example_slide_is_read_from_its_tiles(region):
    with open_slide(SLIDE) as slide:
        assert slide.reader == "stored tiles"
        np.testing.assert_array_equal(slide.read(0, 0, 0, 2220, 2967), region)
        beyond = slide.read(0, 2200, 2950, 40, 40)
    np.testing.assert_array_equal(beyond[:17, :20], region[2950:, 2200:])
    assert (beyond[17:] == 255).all()
    assert (beyond[:, 20:] == 255).all()


def test_a_level_of_odd_size_is_read_without_interpolation(tmp_path, region):
    path = jpeg_pyramid(tmp_path / "slide.tif", region)
    with open_slide(path) as slide:
        assert slide.reader == "stored tiles"
        assert not slide.interpolates
        coarse = slide.read(1, 300, 301, 200, 200)
    np.testing.assert_array_equal(coarse, tifffile.imread(path, key=1)[301:501, 300:500])


def test_a_level_whose_last_tile_is_a_sliver(tmp_path, region):
    path = jpeg_pyramid(tmp_path / "slide.tif", np.tile(region[:1033, :1041], (1, 2, 1))[:, :2081], compressionargs={})
    with open_slide(path) as slide:
        assert slide.level_dimensions[1] == (521, 259)
        assert slide.reader == "stored tiles"


@pytest.mark.parametrize("make", [aperio_jpeg_2000, lambda path, image: tiff_pyramid(path, image, (0.5, 0.5))])
def test_other_compressions_are_left_to_openslide(tmp_path, region, make):
    make(tmp_path / "slide.tif", np.ascontiguousarray(region[:600, :600]))
    with open_slide(tmp_path / "slide.tif") as slide:
        assert slide.reader == "openslide"
        assert slide.read(0, 0, 0, 600, 600).shape == (600, 600, 3)


def test_tiles_that_decode_to_something_else_are_left_to_openslide(monkeypatch, region):
    decode = simplejpeg.decode_jpeg

    def swapped(*args, **kwargs):
        pixels = decode(*args, **kwargs)
        pixels[:] = pixels[..., ::-1].copy()
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", swapped)
    with open_slide(SLIDE) as slide:
        assert slide.reader == "openslide"
        np.testing.assert_array_equal(slide.read(0, 500, 500, 300, 300), region[500:800, 500:800])


@pytest.mark.parametrize("damage", ["zeros", "end of image", "no jpeg", "short"])
def test_a_damaged_tile_is_an_error_and_never_grey(tmp_path, damage):
    path = Path(shutil.copy(SLIDE, tmp_path / "slide.svs"))
    with tifffile.TiffFile(path) as tiff:
        offset, size = tiff.pages[0].dataoffsets[45], tiff.pages[0].databytecounts[45]
    content = bytearray(path.read_bytes())
    half = offset + size // 2
    changed = {
        "zeros": (half, bytes(40)),
        "end of image": (half, b"\xff\xd9"),
        "no jpeg": (offset, bytes(10)),
        "short": (half, bytes(size - size // 2)),
    }
    at, new = changed[damage]
    content[at : at + len(new)] = new
    path.write_bytes(content)
    with open_slide(path) as slide:
        assert slide.read(0, 0, 0, 240, 240).std() > 0
        with pytest.raises(SlideError, match="damaged slide, a region cannot be decoded"):
            slide.read(0, 1200, 960, 240, 240)
        with pytest.raises(SlideError, match="damaged slide"):  # and again, though it was tried before
            slide.read(0, 1200, 960, 240, 240)


def test_a_tile_that_claims_another_size_is_an_error(tmp_path):
    for size in (64, 60_000):
        tile = np.zeros((16, size, 3), np.uint8)
        path = jpeg_pyramid(tmp_path / f"{size}.tif", np.full((512, 512, 3), 200, np.uint8), levels=(1,))
        with tifffile.TiffFile(path) as tiff:
            offset, room = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
        forged = simplejpeg.encode_jpeg(tile, 1, "RGB", "420")
        content = bytearray(path.read_bytes())
        content[offset : offset + len(forged)] = forged
        assert len(forged) > 0 and room > 0
        path.write_bytes(content)
        tiles = stored_tiles.open_stored_tiles(path, [(512, 512)])
        assert tiles is not None
        with pytest.raises(stored_tiles.TileError):
            tiles.read(0, 0, 0, 100, 100)
        tiles.close()


def test_each_tile_is_decoded_once_however_many_threads_want_it(monkeypatch):
    decoded: list[int] = []
    decode = stored_tiles.StoredTiles._decode

    def count(self, level, index):
        decoded.append(index)
        return decode(self, level, index)

    with open_slide(SLIDE) as slide:
        monkeypatch.setattr(stored_tiles.StoredTiles, "_decode", count)
        slide._tiles._tiles.clear()  # type: ignore[union-attr]
        start = threading.Barrier(8)

        def read(_: int) -> np.ndarray:
            start.wait()
            return slide.read(0, 100, 100, 1500, 1500)

        with ThreadPoolExecutor(8) as pool:
            first, *others = pool.map(read, range(8))
    assert all((first == other).all() for other in others)
    assert len(decoded) == len(set(decoded)) == 7 * 7


def test_with_little_room_tiles_are_forgotten_and_pixels_stay_right(monkeypatch, region):
    monkeypatch.setattr(stored_tiles, "CACHE_BYTES", 4 * 240 * 240 * 3)
    centres = np.random.default_rng(0).uniform(150, 2000, (80, 2))
    with open_slide(SLIDE) as slide:
        raster = make_raster(slide, Mpp(0.499, 0.499), 0.499)
        for index, patches in read_patches(raster, centres, 224, threads=8):
            for (x, y), patch in zip(raster.origins(centres[index], 224).tolist(), patches, strict=True):
                np.testing.assert_array_equal(patch, region[y : y + 224, x : x + 224])
        assert len(slide._tiles._tiles) <= 4  # type: ignore[union-attr]
