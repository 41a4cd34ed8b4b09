from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import pyvips
import tifffile
from calls import run
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from slides_to_try import aperio_jpeg_2000

from stpredict.errors import MissingMppError
from stpredict.result.file import read_provenance
from stpredict.slides.lengths import micrometres
from stpredict.slides.ome_xml import MAX_CHARACTERS, read_ome_xml
from stpredict.slides.resolution import PLAUSIBLE_MPP, Mpp, Resolution, Statement, stated_per_unit
from stpredict.slides.slide import open_slide, resolve_mpp

OME = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
TILED = {"tile": (256, 256)}
STRIPS = {"rowsperstrip": 32}


@pytest.fixture(scope="module")
def pixels(region):
    return np.ascontiguousarray(region[1000:1400, 600:1200])


def mpp_of(path):
    with open_slide(path) as slide:
        return resolve_mpp(slide)


def says_nothing(path):
    with open_slide(path) as slide, pytest.raises(MissingMppError, match="the file does not say"):
        resolve_mpp(slide)
    return True


def write_tiff(path, pixels, storage, per_unit=(1, 1), unit=1, description=None):
    """A TIFF of so many pixels, numerator and denominator, per unit."""
    tifffile.imwrite(
        path, pixels, photometric="rgb", metadata=None, description=description, resolution=(2, 2), **storage
    )
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tags = tiff.pages.first.tags
        for code, value in ((282, per_unit), (283, per_unit), (296, unit)):
            tags[code].overwrite(value)
    return path


def without(path, code):
    """The file with a tag renamed to one that nobody knows."""
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages.first.tags[code].offset
    content = bytearray(path.read_bytes())
    content[at : at + 2] = (code + 2).to_bytes(2, "little")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("storage", [TILED, STRIPS], ids=["tiles", "strips"])
@pytest.mark.parametrize(
    ("unit", "per_unit", "um"),
    [
        (3, (20_000, 1), 0.5), (2, (50_800, 1), 0.5), (4, (2_000, 1), 0.5), (5, (2, 1), 0.5), (3, (100_000, 10), 1.0),
        (1, (2_000, 1), None), (1, (1, 1), None), (7, (2_000, 1), None), (3, (0, 0), None), (3, (1, 0), None),
    ],
)  # fmt: skip
def test_tags_count_in_their_unit_and_unit_none_says_nothing(tmp_path, pixels, storage, unit, per_unit, um):
    path = write_tiff(tmp_path / "s.tif", pixels, storage, per_unit, unit)
    assert says_nothing(path) if um is None else mpp_of(path) == pytest.approx((um, um))


@pytest.mark.parametrize("more", [{"bigtiff": True}, {"byteorder": ">"}], ids=["BigTIFF", "big-endian"])
def test_every_kind_of_tiff_is_read(tmp_path, pixels, more):
    path = tmp_path / "s.tif"
    with tifffile.TiffWriter(path, **more) as tiff:
        tiff.write(pixels, photometric="rgb", metadata=None, resolution=(20_000, 19_900), resolutionunit=3)
    assert mpp_of(path) == pytest.approx((0.5, 1e4 / 19_900))


def test_tags_that_are_absent_say_nothing_and_an_absent_unit_is_an_inch(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "none.tif")
    assert says_nothing(tmp_path / "none.tif")
    path = without(write_tiff(tmp_path / "s.tif", pixels, TILED, (50_800, 1), 3), 296)
    assert mpp_of(path) == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize("dpi", [72, 96, 300, 1200])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_what_a_printer_takes_is_implausible(tmp_path, pixels, dpi, suffix):
    Image.fromarray(pixels).save(tmp_path / f"s.{suffix}", dpi=(dpi, dpi))
    with open_slide(tmp_path / f"s.{suffix}") as slide, pytest.raises(MissingMppError, match=r"by its .* implausible"):
        resolve_mpp(slide)


@pytest.mark.parametrize("storage", [TILED, STRIPS], ids=["tiles", "strips"])
@pytest.mark.parametrize(
    ("unit", "per_unit", "um"),
    [
        ("micron", 2, 0.5), ("um", 2, 0.5), ("\\u00B5m", 2, 0.5), ("mm", 2000, 0.5), ("cm", 10_000, 1.0),
        ("nm", 2e-3, 0.5),
        ("inch", 50_800, 0.5), ("microns", 4, 0.25), ("pixel", 2, None), ("", 2, None), ("furlong", 2, None),
    ],
)  # fmt: skip
def test_imagej_says_the_unit_of_its_tags(tmp_path, pixels, storage, unit, per_unit, um):
    ratio = float(per_unit).as_integer_ratio() if per_unit >= 1 else (2, 1000)
    text = f"ImageJ=1.53t\nunit={unit}\nloop=false\nmin=0.0\n"
    path = write_tiff(tmp_path / "s.tif", pixels, storage, ratio, 1, text)
    assert says_nothing(path) if um is None else mpp_of(path) == pytest.approx((um, um))


def test_imagej_in_latin_1_and_without_a_unit(tmp_path, pixels):
    path = write_tiff(tmp_path / "s.tif", pixels, STRIPS, (2, 1), 1, b"ImageJ=1.53t\nunit=\xb5m\n")
    assert mpp_of(path) == (0.5, 0.5)
    path = write_tiff(tmp_path / "cm.tif", pixels, STRIPS, (20_000, 1), 3, "ImageJ=1.53t\n")
    assert mpp_of(path) == (0.5, 0.5)
    path = write_tiff(tmp_path / "y.tif", pixels, STRIPS, (2000, 1), 1, "ImageJ=\nunit=mm\nyunit=mm\n")
    assert mpp_of(path) == (0.5, 0.5)


@pytest.mark.parametrize("storage", [TILED, {}], ids=["tiles", "strips"])
@pytest.mark.parametrize(
    ("size", "unit", "um"),
    [
        (0.5, "µm", 0.5), (0.5, "\u03bcm", 0.5), (0.5, None, 0.5), (0.0005, "mm", 0.5), (500, "nm", 0.5),
        (5e-5, "cm", 0.5),
        (0.5 / 25_400, "in", 0.5), (5000, "\u00c5", 0.5), (5000, "\u212b", 0.5), (5e-7, "m", 0.5), (0.5, "pixel", None),
        (0.5, "reference frame", None), (0.0, "µm", None), (-0.5, "µm", None),
    ],
)  # fmt: skip
def test_ome_xml_is_read_with_its_unit(tmp_path, pixels, storage, size, unit, um):
    path = tmp_path / "s.ome.tif"
    physical = {f"PhysicalSize{axis}": size for axis in "XY"}
    units = {f"PhysicalSize{axis}Unit": unit for axis in "XY"} if unit else {}
    tifffile.imwrite(path, pixels, photometric="rgb", metadata={"axes": "YXS", **physical, **units}, **storage)
    assert says_nothing(path) if um is None else mpp_of(path) == pytest.approx((um, um))


def ome(pixels, *, before="", root="OME", space=f'xmlns="{OME}"', prefix="", after="", **attributes):
    size = {"SizeX": 600, "SizeY": 400, "SizeC": 3, "SizeZ": 1, "SizeT": 1}
    said = " ".join(f'{key}="{value}"' for key, value in {**size, **attributes}.items())
    p = f"{prefix}:" if prefix else ""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>{before}<{p}{root} {space}>{pixels}<{p}Image ID="Image:0">'
        f'<{p}Pixels ID="Pixels:0" {said}><{p}Channel ID="c" SamplesPerPixel="3"/></{p}Pixels></{p}Image>'
        f"{after}</{p}{root}>"
    )


HALF = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
BOMB = (
    "<!DOCTYPE OME [<!ENTITY a 'aaaaaaaaaa'>"
    + "".join(
        f"<!ENTITY {name} '{'&' + before + ';' * 1}{('&' + before + ';') * 9}'>"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "]>"
)


@pytest.mark.parametrize(
    ("text", "um"),
    [
        (ome("", **HALF), 0.5),
        (ome("", **HALF, space=f'xmlns:OME="{OME}"', prefix="OME"), 0.5),
        (ome("", **HALF, space='xmlns="http://www.openmicroscopy.org/Schemas/OME/2012-06"'), 0.5),
        (ome("", **HALF, space=""), 0.5),
        ("\ufeff \n" + ome("", **HALF), 0.5),
        (ome("", **HALF, before=f"<!--{'huge ' * 200_000}-->"), 0.5),
        (ome("", **HALF, space='xmlns="urn:another"'), None),
        (ome("", **HALF, root="NOTOME"), None),
        (ome("", PhysicalSizeX=0.5), None),
        (ome("", PhysicalSizeX="much", PhysicalSizeY="more"), None),
        (ome("", **HALF, before=BOMB), None),
        (ome("", **HALF, before='<!DOCTYPE OME SYSTEM "file:///etc/passwd">'), None),
        (ome("", **HALF)[:-40], 0.5),
        # The first image is another one, as a preview; what lies elsewhere is no image.
        (ome('<Image ID="I"><Pixels SizeX="60" SizeY="40" PhysicalSizeX="5" PhysicalSizeY="5"/></Image>', **HALF), 0.5),
        (ome('<Image ID="I"><Pixels SizeX="60" SizeY="40" PhysicalSizeX="0.5" PhysicalSizeY="0.5"/></Image>'), None),
        (ome("", after='<A><Image><Pixels SizeX="600" PhysicalSizeX="1" PhysicalSizeY="1"/></Image></A>'), None),
        (ome("<Pixels PhysicalSizeX='3' PhysicalSizeY='3'/>", **HALF), 0.5),
    ],
)  # fmt: skip
def test_strangers_ome_xml(tmp_path, pixels, text, um):
    path = write_tiff(tmp_path / "s.tif", pixels, TILED, (1, 1), 1, text.encode())
    assert says_nothing(path) if um is None else mpp_of(path) == pytest.approx((um, um))


def test_ome_xml_without_end_is_read_up_to_a_limit():
    assert read_ome_xml(ome("", **HALF, before=f"<!--{'x' * MAX_CHARACTERS}-->")) == []
    assert read_ome_xml(ome("", **HALF, after="<X>" * 100_000))[0].size == (600, 400)
    assert read_ome_xml("ImageJ=1.53t\n") == read_ome_xml("") == read_ome_xml("<svg/>") == []


@pytest.mark.parametrize(
    ("unit", "density", "um"),
    [(1, 50_800, 0.5), (2, 20_000, 0.5), (0, 20_000, None), (0, 1, None), (1, 0, None)],
)  # fmt: skip
def test_jfif_units(tmp_path, pixels, unit, density, um):
    path = tmp_path / "s.jpg"
    Image.fromarray(pixels).save(path, quality=95)
    content = bytearray(path.read_bytes())
    assert content[6:11] == b"JFIF\0"
    content[13] = unit
    content[14:18] = density.to_bytes(2, "big") * 2
    path.write_bytes(content)
    assert says_nothing(path) if um is None else mpp_of(path) == pytest.approx((um, um))


@pytest.mark.parametrize(("unit", "um"), [(3, 0.5), (2, 1.27), (1, None)])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_says_it_where_nothing_else_does(tmp_path, pixels, unit, um, suffix):
    exif = Image.Exif()
    exif[282], exif[283], exif[296] = 20_000.0, 20_000.0, unit
    path = tmp_path / f"s.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif.tobytes())
    assert says_nothing(path) if um is None else mpp_of(path) == pytest.approx((um, um))


@pytest.mark.parametrize(("unit", "um"), [(1, 0.5), (0, None)])
def test_png_phys_in_metres_or_in_no_unit(tmp_path, pixels, unit, um):
    path = tmp_path / "s.png"
    Image.fromarray(pixels).save(path, dpi=(50_800, 50_800))
    content = path.read_bytes()
    at = content.index(b"pHYs") + 4
    chunk = b"pHYs" + (2_000_000).to_bytes(4, "big") * 2 + bytes([unit])
    path.write_bytes(content[: at - 4] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + content[at + 13 :])
    assert says_nothing(path) if um is None else mpp_of(path) == pytest.approx((um, um))


@pytest.mark.parametrize("suffix", ["tif", "png", "jpg"])
def test_what_libvips_writes(tmp_path, pixels, suffix):
    image = pyvips.Image.new_from_array(pixels).copy(xres=2000, yres=2000, interpretation="srgb")
    image.write_to_file(str(tmp_path / f"s.{suffix}"), **({"resunit": "cm"} if suffix == "tif" else {}))
    assert mpp_of(tmp_path / f"s.{suffix}") == pytest.approx((0.5, 0.5), rel=1e-3)
    image.tiffsave(str(tmp_path / "p.tif"), tile=True, pyramid=True, subifd=True, resunit="inch", compression="deflate")
    assert mpp_of(tmp_path / "p.tif") == pytest.approx((0.5, 0.5), rel=1e-3)


def test_aperios_description_in_files_that_openslide_does_not_take_for_aperios(tmp_path, pixels):
    text = "Aperio Image Library v11\r\n600x400|AppMag = 20|MPP = 0.2520|Left = 1"
    assert mpp_of(write_tiff(tmp_path / "s.tif", pixels, STRIPS, description=text)) == (0.252, 0.252)
    aperio_jpeg_2000(tmp_path / "s.svs", pixels, mpp="0.2520")
    with open_slide(tmp_path / "s.svs") as slide:
        assert slide.resolution == Resolution((Statement("aperio metadata", Mpp(0.252, 0.252)),))


def test_statements_that_differ_are_told_and_the_makers_own_is_used(tmp_path, pixels):
    path = write_tiff(tmp_path / "s.tif", pixels, TILED, (40_000, 1), 3, ome("", **HALF).encode())
    with open_slide(path) as slide:
        assert resolve_mpp(slide) == (0.5, 0.5)
        (note,) = slide.notes
        for part in ("0.5 um per pixel in its OME-XML, which is used", "0.25 in its TIFF tags", "--mpp"):
            assert part in note
        assert resolve_mpp(slide) == (0.5, 0.5)
        assert len(slide.notes) == 1
    with open_slide(path) as slide:
        assert resolve_mpp(slide, 0.4) == (0.4, 0.4)
        assert not slide.notes


@pytest.mark.parametrize("per_cm", [20_500, 28])  # 2.4 %, and a printer's 72 dpi
def test_statements_that_agree_or_are_no_microscopes_are_not_told(tmp_path, pixels, per_cm):
    path = write_tiff(tmp_path / "s.tif", pixels, TILED, (per_cm, 1), 3, ome("", **HALF).encode())
    with open_slide(path) as slide:
        assert resolve_mpp(slide) == (0.5, 0.5)
        assert not slide.notes


def test_an_implausible_statement_gives_way_and_is_told(tmp_path, pixels):
    text = ome("", PhysicalSizeX=1000, PhysicalSizeY=1000).encode()
    path = write_tiff(tmp_path / "s.tif", pixels, TILED, (20_000, 1), 3, text)
    with open_slide(path) as slide:
        assert resolve_mpp(slide) == (0.5, 0.5)
        assert "0.5 um per pixel in its TIFF tags, which is used, but 1000 in its OME-XML" in slide.notes[0]


def test_predict_tells_and_records_which_statement_was_used(tmp_path, region, tiny_model_path):
    text = ome("", SizeX=1200, SizeY=1200, **HALF).encode()
    image = np.ascontiguousarray(region[600:1800, 600:1800])
    path = write_tiff(tmp_path / "s.tif", image, TILED, (40_000, 1), 3, text)
    call = ("predict", path, "--model", tiny_model_path, "--engine", "eager", "--genes", "GNAS", "-o")
    done = run(*call, tmp_path / "out")
    assert done.exit_code == 0
    assert "s.tif: it states 0.5 um per pixel in its OME-XML, which is used, but 0.25 in its TIFF tags" in done.stderr
    found = read_provenance(tmp_path / "out" / "s.h5ad")["slide"]
    assert (found["mpp"], found["mpp_by"]) == ([0.5, 0.5], "OME-XML")
    assert found["stated_mpp"] == {"OME-XML": [0.5, 0.5], "TIFF tags": [0.25, 0.25]}
    done = run(*call, tmp_path / "given", "--mpp", 0.5)
    assert "which is used" not in done.stderr
    assert read_provenance(tmp_path / "given" / "s.h5ad")["slide"]["mpp_by"] == "--mpp"


MICRO = st.sampled_from(["um", "µm", "\u03bcm", "micron", "Microns", "\\u00B5m", " um ", "micrometer", "Âµm"])


@given(st.floats(*PLAUSIBLE_MPP), MICRO)
def test_one_length_in_every_unit_is_one_mpp(um, micro):
    for unit, size in (
        (micro, 1.0),
        ("mm", 1e3),
        ("cm", 1e4),
        ("inch", 25_400.0),
        ("in", 25_400.0),
        ("nm", 1e-3),
        ("m", 1e6),
    ):
        assert micrometres(unit) == pytest.approx(size)
        (statement,) = stated_per_unit("x", size / um, size / um, unit)
        assert statement.mpp == pytest.approx((um, um))


@given(st.text(max_size=12))
def test_any_unit_is_a_positive_length_or_none(unit):
    found = micrometres(unit)
    assert found is None or (found > 0 and math.isfinite(found))


SIDE = st.floats(1e-3, 1e3)


@given(st.lists(st.builds(Statement, st.sampled_from("ABCD"), st.builds(Mpp, SIDE, SIDE)), max_size=4))
def test_the_first_plausible_statement_is_used(statements):
    resolution = Resolution(tuple(statements))
    plausible = [one for one in statements if one.mpp.plausible]
    assert resolution.used == (plausible or statements or [None])[0]
    if resolution.disagreement:
        assert any(abs(a / b - 1) > 0.05 for one in statements for a, b in zip(one.mpp, plausible[0].mpp, strict=True))
