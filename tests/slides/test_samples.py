"""Every kind of samples gives the colours that were put in, whichever way the pixels are stored."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image, ImageCms

from stpredict.errors import SlideError
from stpredict.slides.slide import open_slide

HEIGHT, WIDTH = 200, 330
LAYOUTS = {"strips": {"rowsperstrip": 32}, "tiles": {"tile": (64, 64)}}


@pytest.fixture(scope="module")
def image(region) -> np.ndarray:
    return np.ascontiguousarray(region[600 : 600 + HEIGHT, 600 : 600 + WIDTH])


def read(path: Path) -> np.ndarray:
    with open_slide(path) as slide:
        assert slide.dimensions == (WIDTH, HEIGHT)
        whole = slide.read(0, 0, 0, WIDTH, HEIGHT)
        np.testing.assert_array_equal(slide.read(0, 61, 30, 90, 41), whole[30:71, 61:151])
    return whole


def notes(path: Path) -> list[str]:
    with open_slide(path) as slide:
        return slide.notes


def written(path: Path, pixels: np.ndarray, layout: str = "tiles", **options: Any) -> Path:
    options = {"photometric": "rgb", "compression": "deflate", "metadata": None, **LAYOUTS[layout], **options}
    tifffile.imwrite(path, pixels, resolution=(20_000, 20_000), resolutionunit="CENTIMETER", **options)
    return path


def deep(image: np.ndarray, top: float, dtype: Any = np.uint16) -> np.ndarray:
    return np.round(image / 255 * top).astype(dtype)


def grey(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).convert("L"))


def assert_close(found: np.ndarray, wanted: np.ndarray, most: float = 1) -> None:
    assert abs(found.astype(int) - wanted.astype(int)).max() <= most


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("top", [255, 1023, 4095, 16383, 65535])
@pytest.mark.parametrize(
    "options", [{}, {"byteorder": ">"}, {"predictor": 2}, {"bigtiff": True}, {"compression": None}]
)
def test_16_bits_are_read_by_the_range_of_their_values(tmp_path, image, layout, top, options):
    path = written(tmp_path / "deep.tif", deep(image, top), layout, **options)
    assert_close(read(path), image)
    assert len(notes(path)) == (top != 65535)
    assert all(f"{top:,} is taken for full intensity" in note for note in notes(path))
    with open_slide(path) as slide:
        assert slide.native_mpp == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "top"),
    [(np.float16, 1), (np.float32, 1), (np.float64, 255), (np.float32, 65535), (np.uint32, 4095),
     (np.uint32, 2**32 - 1), (np.int16, 32767), (np.int16, 4095), (np.int32, 255)],
)  # fmt: skip
def test_other_numbers_are_read_too(tmp_path, image, layout, dtype, top):
    values = image / 255 * top if np.dtype(dtype).kind == "f" else deep(image, top, dtype)
    assert_close(read(written(tmp_path / "numbers.tif", values.astype(dtype), layout)), image)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_floats_with_their_predictor_and_packed_bits_are_read(tmp_path, image, layout):
    floats = (image / 255).astype(np.float32)
    assert_close(read(written(tmp_path / "floats.tif", floats, layout, predictor=3)), image)
    for bits in (10, 12, 14):
        packed = {"bitspersample": bits, "compression": None}
        assert_close(read(written(tmp_path / f"{bits}.tif", deep(image, 2**bits - 1), layout, **packed)), image)


@pytest.mark.parametrize("values", [-0.5, np.nan, 1e9])
def test_floats_that_are_no_intensities_are_refused(tmp_path, image, values):
    floats = (image / 255).astype(np.float32)
    floats[5, 5] = values
    with pytest.raises(SlideError, match=r"floats\.tif: .*(no intensities|no numbers)"):
        open_slide(written(tmp_path / "floats.tif", floats))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_range_that_is_stated_is_believed_if_the_values_fit(tmp_path, image, layout):
    dim = deep(image, 900)
    stated = written(tmp_path / "stated.tif", dim, layout, extratags=[(281, 3, 3, (4095,) * 3, True)])
    assert_close(read(stated), dim / 4095 * 255)
    ome = {"metadata": {"axes": "YXS", "SignificantBits": 12}}
    assert_close(read(written(tmp_path / "stated.ome.tif", dim, layout, **ome)), dim / 4095 * 255)
    for wrong in (65535, 255):
        path = written(tmp_path / "wrong.tif", deep(image, 4095), layout, extratags=[(281, 3, 3, (wrong,) * 3, True)])
        assert_close(read(path), image)


def png(path: Path, pixels: np.ndarray, significant: int = 0) -> Path:
    """A PNG of 16 bits with, or without, its significant bits."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, n = pixels.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[n], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    bits = chunk(b"sBIT", bytes([significant] * n)) if significant else b""
    parts = chunk(b"IHDR", head) + bits + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path


@pytest.mark.parametrize("top", [255, 4095, 65535])
def test_png_of_16_bits(tmp_path, image, top):
    assert_close(read(png(tmp_path / "rgb.png", deep(image, top))), image)
    opaque = np.full((HEIGHT, WIDTH, 1), 65535, np.uint16)
    assert_close(read(png(tmp_path / "rgba.png", np.dstack([deep(image, top), opaque]))), image)
    grey_image = np.repeat(grey(image)[..., None], 3, axis=2)
    assert_close(read(png(tmp_path / "grey.png", deep(grey_image[..., :1], top))), grey_image)
    assert len(notes(tmp_path / "rgb.png")) == (top != 65535)


def test_significant_bits_of_png(tmp_path, image):
    dim = deep(image, 900)
    assert_close(read(png(tmp_path / "raw.png", dim, significant=12)), dim / 4095 * 255)
    assert_close(read(png(tmp_path / "scaled.png", deep(image, 65535), significant=12)), image)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_grey_inverted_palette_and_bilevel(tmp_path, image, layout):
    one, three = grey(image), np.repeat(grey(image)[..., None], 3, axis=2)
    light = np.repeat((one > 180)[..., None], 3, axis=2) * 255
    files = {
        "grey": (one, "minisblack", three), "inverted": (255 - one, "miniswhite", three),
        "deep inverted": (65535 - deep(one, 65535), "miniswhite", three),
        "deep grey": (deep(one, 4095), "minisblack", three),
        "bilevel": (one > 180, "minisblack", light), "bilevel inverted": (one <= 180, "miniswhite", light),
    }  # fmt: skip
    for name, (pixels, kind, wanted) in files.items():
        assert_close(read(written(tmp_path / f"{name}.tif", pixels, layout, photometric=kind)), wanted)
    quantised = Image.fromarray(image).quantize(64)
    colours = np.zeros((3, 256), np.uint16)
    listed = np.array(quantised.getpalette()).reshape(-1, 3)
    colours[:, : len(listed)] = listed.T * 257
    indices = {"photometric": "palette", "colormap": colours}
    path = written(tmp_path / "palette.tif", np.asarray(quantised), layout, **indices)
    assert_close(read(path), np.asarray(quantised.convert("RGB")))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opacity_is_told_from_other_samples(tmp_path, image, layout):
    opacity = np.full((HEIGHT, WIDTH), 255, np.uint8)
    opacity[:60] = 0
    over_white = np.where(opacity[..., None] == 0, 255, image)
    premultiplied = np.where(opacity[..., None] == 0, 0, image).astype(np.uint8)
    for name, pixels, extra, wanted in (
        ("unassociated", np.dstack([image, opacity]), ["unassalpha"], over_white),
        ("associated", np.dstack([premultiplied, opacity]), ["assocalpha"], over_white),
        ("unspecified", np.dstack([image, opacity * 0]), ["unspecified"], image),
        ("two", np.dstack([image, opacity, opacity * 0]), ["unassalpha", "unspecified"], over_white),
        ("deep", np.dstack([deep(image, 4095), opacity.astype(np.uint16) * 257]), ["unassalpha"], over_white),
    ):
        assert_close(read(written(tmp_path / f"{name}.tif", pixels, layout, extrasamples=extra)), wanted)
    pixels = np.dstack([grey(image), opacity])
    path = written(tmp_path / "grey.tif", pixels, layout, photometric="minisblack", extrasamples=["unassalpha"])
    assert_close(read(path)[..., 0], np.where(opacity == 0, 255, grey(image)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_planes_of_16_bits_and_samples_that_are_no_colours(tmp_path, image, layout):
    planes = np.ascontiguousarray(deep(image, 4095).transpose(2, 0, 1))
    assert_close(read(written(tmp_path / "planes.tif", planes, layout, planarconfig="separate")), image)
    grey_samples = {"photometric": "minisblack", "planarconfig": "contig"}
    with pytest.raises(SlideError, match=r"channels\.tif: its 3 samples are not said to be colours; save it as RGB"):
        open_slide(written(tmp_path / "channels.tif", image, layout, **grey_samples))


@pytest.fixture(scope="module")
def cmyk_profile() -> bytes:
    profile = pyvips.Image.profile_load("cmyk")
    return bytes(profile)


def test_cmyk_has_the_same_colours_in_all_files(tmp_path, image):
    inks = np.dstack([255 - image, np.zeros((HEIGHT, WIDTH), np.uint8)])
    for layout in LAYOUTS:
        cmyk = {"photometric": "separated"}
        assert_close(read(written(tmp_path / "a.tif", inks, layout, **cmyk)), image)
        assert_close(read(written(tmp_path / "b.tif", deep(inks, 65535), layout, **cmyk)), image)
        jpeg = {"compression": "jpeg", "compressionargs": {"level": 98}}
        assert abs(read(written(tmp_path / "c.tif", inks, layout, **cmyk, **jpeg)).astype(int) - image).mean() < 1
    Image.frombytes("CMYK", (WIDTH, HEIGHT), inks.tobytes()).save(tmp_path / "pillow.jpg", quality=98)
    for name in ("CMYK", "YCCK"):  # with Adobe's marker, and inverted
        content = imagecodecs.jpeg_encode(
            np.ascontiguousarray(255 - inks), level=98, colorspace="CMYK", outcolorspace=name, subsampling="444"
        )
        assert b"Adobe" in content[:100]
        (tmp_path / f"{name}.jpg").write_bytes(content)
    for name in ("pillow", "CMYK", "YCCK"):
        assert abs(read(tmp_path / f"{name}.jpg").astype(int) - image).mean() < 1.5


def test_a_cmyk_profile_is_followed_by_all_readers(tmp_path, image, cmyk_profile):
    (tmp_path / "cmyk.icc").write_bytes(cmyk_profile)
    theirs, srgb = ImageCms.ImageCmsProfile(str(tmp_path / "cmyk.icc")), ImageCms.createProfile("sRGB")
    inks = ImageCms.profileToProfile(Image.fromarray(image), srgb, theirs, outputMode="CMYK")
    wanted = np.asarray(ImageCms.profileToProfile(inks, theirs, srgb, outputMode="RGB"))
    for layout in LAYOUTS:
        options = {"photometric": "separated", "iccprofile": cmyk_profile}
        assert_close(read(written(tmp_path / "inks.tif", np.asarray(inks), layout, **options)), wanted)
    inks.save(tmp_path / "inks.jpg", quality=98, icc_profile=cmyk_profile)
    assert abs(read(tmp_path / "inks.jpg").astype(int) - wanted).mean() < 2
    damaged = {"photometric": "separated", "iccprofile": cmyk_profile[:200] + bytes(200)}
    with pytest.raises(SlideError, match=r"damaged\.tif: its colour profile cannot be followed"):
        open_slide(written(tmp_path / "damaged.tif", np.asarray(inks), **damaged))


@pytest.mark.parametrize("suffix", [".tif", ".png", ".jpg"])
def test_a_profile_of_an_rgb_image_is_left_alone(tmp_path, image, suffix):
    """As OpenSlide leaves it."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    Image.fromarray(image).save(tmp_path / f"plain{suffix}")
    Image.fromarray(image).save(tmp_path / f"profiled{suffix}", icc_profile=profile)
    np.testing.assert_array_equal(read(tmp_path / f"profiled{suffix}"), read(tmp_path / f"plain{suffix}"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cielab_and_ycbcr_are_read_alike_in_strips_and_tiles(tmp_path, image, layout):
    lab = ImageCms.profileToProfile(
        Image.fromarray(image), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    stored = np.frombuffer(lab.tobytes(), np.uint8).reshape(image.shape)
    found = read(written(tmp_path / "lab.tif", stored, layout, photometric="cielab"))
    assert abs(found.astype(int) - image).mean() < 1.5
    ycbcr = np.asarray(Image.fromarray(image).convert("YCbCr"))
    for compression in (None, "deflate", 33003):
        options = {"photometric": "ycbcr", "compression": compression, "subsampling": (1, 1)}
        found = read(written(tmp_path / "ycbcr.tif", ycbcr, layout, **options))
        assert abs(found.astype(int) - image).mean() < 2


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "compression", ["jpegxl", "jpeg2000", 33005, "lerc", "webp", "zstd", "lzma", "packbits", "lzw", "png", None]
)
def test_compressions_that_are_read(tmp_path, image, layout, compression):
    np.testing.assert_array_equal(
        read(written(tmp_path / "compressed.tif", image, layout, compression=compression)), image
    )


@pytest.mark.parametrize("compression", ["jpegxl", "lerc", "lzma", "deflate"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("how", ["zeroed", "cut"])
def test_damage_is_refused_whatever_the_samples(tmp_path, image, layout, compression, how):
    pixels = deep(image, 4095) if compression == "deflate" else image
    path = written(tmp_path / "damaged.tif", pixels, layout, compression=compression)
    content, middle = bytearray(path.read_bytes()), path.stat().st_size // 2
    content[middle : middle + 400] = bytes(400)
    path.write_bytes(content if how == "zeroed" else content[:middle])
    with pytest.raises(SlideError, match=r"damaged\.tif"), open_slide(path) as slide:
        slide.read(0, 0, 0, WIDTH, HEIGHT)


def test_levels_of_a_deep_pyramid_share_one_range(tmp_path, region):
    image = region[:1100, :1400]
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as tiff:
        for step in (1, 2, 4):
            level = np.ascontiguousarray(image[::step, ::step])
            tiff.write(deep(level, 4095), tile=(256, 256), photometric="rgb", compression="lzw", metadata=None,
                       subfiletype=int(step > 1))  # fmt: skip
    with open_slide(tmp_path / "pyramid.tif") as slide:
        assert slide.level_dimensions == [(1400, 1100), (700, 550), (350, 275)]
        for level, step in enumerate((1, 2, 4)):
            found = slide.read(level, 0, 0, *slide.level_dimensions[level])
            assert_close(found, image[::step, ::step])
        assert (slide.read(1, 690, 540, 30, 30)[10:] == 255).all()
