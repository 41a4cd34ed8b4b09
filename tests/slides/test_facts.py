"""Which page of a file is the slide, which plane of a stack, and which way up."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import tifffile
from calls import run
from PIL import Image, ImageOps

from stpredict.errors import MaskError, SlideError, SpotsError
from stpredict.result.file import read_provenance
from stpredict.slides.grid import GridRequest, choose_spots
from stpredict.slides.mask import MaskRequest, inside_mask, read_mask
from stpredict.slides.overview import make_overview
from stpredict.slides.slide import Mpp, open_slide, resolve_mpp

PER_CM = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
TILED = {"tile": (128, 128), "compression": "deflate"}
JPEG = {"tile": (128, 128), "compression": "jpeg"}
STRIPS = {"rowsperstrip": 32}
STORAGE = pytest.mark.parametrize("storage", [TILED, JPEG, STRIPS], ids=["tiles", "JPEG tiles", "strips"])


@pytest.fixture(scope="module")
def pixels(region):
    return np.ascontiguousarray(region[1000:1400, 600:1200])


def write_pages(path, pages, storage=TILED, flags=None, **more):
    """A TIFF of pages at 0.5 um if they are the first's full size, else at what is left of it."""
    with tifffile.TiffWriter(path) as tiff:
        for page, flag in zip(pages, flags or [0] * len(pages), strict=True):
            tiff.write(page, photometric="rgb", metadata=None, subfiletype=flag, **{**storage, **PER_CM, **more})
    return path


def smaller(pixels, by):
    return np.ascontiguousarray(pixels[::by, ::by])


@STORAGE
@pytest.mark.parametrize("flag", [0, 1])
def test_a_preview_before_the_slide_is_passed_over(tmp_path, pixels, storage, flag):
    path = write_pages(tmp_path / "s.tif", [smaller(pixels, 8), pixels, smaller(pixels, 2)], storage, [flag, 0, 1])
    with open_slide(path) as slide:
        assert slide.dimensions == (600, 400)
        assert resolve_mpp(slide) == (0.5, 0.5)
        difference = slide.read(0, 100, 120, 80, 60).astype(int) - pixels[120:180, 100:180]
        assert abs(difference).mean() < (4 if storage is JPEG else 1e-9)
        assert slide.notes == ["its page 2 is read, the largest; the first, 75 x 50 pixels, is a preview"]


@STORAGE
def test_a_pyramid_that_begins_with_its_smallest_level_is_read_from_its_largest(tmp_path, pixels, storage):
    path = write_pages(tmp_path / "s.tif", [smaller(pixels, by) for by in (8, 4, 2, 1)], storage, [1, 1, 1, 0])
    with open_slide(path) as slide:
        assert slide.dimensions == (600, 400)


def test_the_resolution_is_that_of_the_page_that_is_read(tmp_path, pixels):
    with tifffile.TiffWriter(tmp_path / "s.tif") as tiff:
        for page, per_cm in ((smaller(pixels, 4), 5_000), (pixels, 20_000)):
            tiff.write(page, photometric="rgb", metadata=None, resolution=(per_cm, per_cm), resolutionunit=3)
    with open_slide(tmp_path / "s.tif") as slide:
        assert resolve_mpp(slide) == (0.5, 0.5)


@STORAGE
def test_a_larger_page_of_other_proportions_is_refused(tmp_path, pixels, storage):
    path = write_pages(tmp_path / "s.tif", [np.ascontiguousarray(pixels[:128, :128]), pixels], storage)
    with pytest.raises(
        SlideError, match=r"s\.tif: its page 2, 600 x 400 pixels, is larger than its first.* of its own"
    ):
        open_slide(path)


@STORAGE
def test_pyramids_labels_and_masks_after_the_slide_need_no_words(tmp_path, pixels, storage):
    label = np.ascontiguousarray(pixels[:150, :300])
    path = write_pages(tmp_path / "s.tif", [pixels, smaller(pixels, 2), label], storage, [0, 1, 0])
    mask = np.ones((400, 600), bool)
    tifffile.imwrite(path, mask, append=True, photometric="minisblack", subfiletype=4, metadata=None)
    with open_slide(path) as slide:
        assert (slide.dimensions, slide.notes) == ((600, 400), [])


def test_a_slide_within_a_preview_is_refused_and_a_pyramid_within_a_slide_is_not(tmp_path, pixels):
    for name, order in (("thumb.tif", (8, 1)), ("pyramid.tif", (1, 2))):
        with tifffile.TiffWriter(tmp_path / name) as tiff:
            tiff.write(smaller(pixels, order[0]), photometric="rgb", metadata=None, subifds=1, **TILED)
            tiff.write(smaller(pixels, order[1]), photometric="rgb", metadata=None, subfiletype=1, **TILED)
    with pytest.raises(SlideError, match=r"thumb\.tif: its largest image lies within another page"):
        open_slide(tmp_path / "thumb.tif")
    with open_slide(tmp_path / "pyramid.tif") as slide:
        assert slide.dimensions == (600, 400)


@STORAGE
@pytest.mark.parametrize(
    ("axes", "says"), [("Z", "5 focal planes"), ("T", "5 time points"), ("C", "5 channels")]
)  # fmt: skip
def test_the_planes_of_an_ome_stack_are_told(tmp_path, pixels, storage, axes, says):
    physical = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    stack = np.stack([pixels] * 5)
    tifffile.imwrite(
        tmp_path / "s.ome.tif", stack, photometric="rgb", metadata={"axes": f"{axes}YXS", **physical}, **storage
    )
    with open_slide(tmp_path / "s.ome.tif") as slide:
        assert resolve_mpp(slide) == (0.5, 0.5)
        assert slide.notes == [f"it holds {says}, of which the first is read"]


@pytest.mark.parametrize(
    ("axes", "says"), [("Z", "3 focal planes"), ("T", "3 time points"), ("C", "3 pages of one size")]
)
def test_the_planes_of_an_imagej_stack_are_told(tmp_path, pixels, axes, says):
    stack = np.stack([pixels] * 3)
    metadata = {"axes": f"{axes}YXS", "unit": "um"}
    tifffile.imwrite(tmp_path / "s.tif", stack, imagej=True, photometric="rgb", resolution=(2, 2), metadata=metadata)
    with open_slide(tmp_path / "s.tif") as slide:
        assert resolve_mpp(slide) == (0.5, 0.5)
        assert slide.notes == [f"it holds {says}, of which the first is read"]


@STORAGE
def test_pages_of_one_size_are_told(tmp_path, pixels, storage):
    with open_slide(write_pages(tmp_path / "s.tif", [pixels] * 3, storage)) as slide:
        assert slide.notes == ["it holds 3 pages of one size, of which the first is read"]


@pytest.mark.parametrize("imagej", [True, False])
@pytest.mark.parametrize(("axes", "says"), [("Z", "focal planes"), ("T", "time points"), ("C", "channels")])
def test_stacks_of_grey_pages_are_refused(tmp_path, pixels, imagej, axes, says):
    path = tmp_path / ("s.tif" if imagej else "s.ome.tif")
    stack = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    tifffile.imwrite(path, stack, imagej=imagej, photometric="minisblack", metadata={"axes": f"{axes}YX"})
    with pytest.raises(SlideError, match=f"its {says} are separate pages, of which one would be read; save it as RGB"):
        open_slide(path)


def test_a_stack_of_imagej_in_one_page_is_no_single_image(tmp_path, pixels):
    """ImageJ writes large stacks as one page and the rest behind it."""
    text = "ImageJ=1.53t\nimages=3\nslices=3\nunit=um\n"
    tifffile.imwrite(tmp_path / "s.tif", pixels[..., 0], photometric="minisblack", metadata=None, description=text)
    with pytest.raises(SlideError, match="focal planes"):
        open_slide(tmp_path / "s.tif")


def test_red_green_and_blue_are_no_stack(tmp_path, pixels):
    """Bio-Formats writes them as planes of one page, and counts them for ImageJ."""
    text = "ImageJ=\nhyperstack=true\nimages=3\nchannels=3\nslices=1\nframes=1"
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    separate = {"photometric": "rgb", "planarconfig": "separate", "metadata": None, "description": text}
    tifffile.imwrite(tmp_path / "s.tif", planes, **separate, **PER_CM)
    with open_slide(tmp_path / "s.tif") as slide:
        assert (resolve_mpp(slide), slide.notes) == ((0.5, 0.5), [])
        np.testing.assert_array_equal(slide.read(0, 0, 0, 600, 400), pixels)


def turned_image(path, pixels, orientation):
    """An image as a camera stores it that was held otherwise, in the format of the path's suffix."""
    if path.suffix == ".tif":
        tag = [(274, "H", 1, orientation, True)]
        storage = TILED if "tiles" in path.stem else JPEG if "jpeg" in path.stem else STRIPS
        tifffile.imwrite(path, pixels, photometric="rgb", metadata=None, extratags=tag, **storage, **PER_CM)
        return
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(path, exif=exif.tobytes(), dpi=(50_800, 50_800))


@pytest.mark.parametrize("name", ["s.jpg", "s.png", "strips.tif", "tiles.tif", "jpeg.tif"])
def test_an_image_that_its_tag_turns_is_refused(tmp_path, pixels, name):
    """QuPath shows it as it is stored, image editors as it is to be: masks and pictures would lie on one of them."""
    path = tmp_path / name
    for orientation in range(2, 9):
        turned_image(path, pixels, orientation)
        with pytest.raises(SlideError, match=rf"its orientation tag \({orientation}\) turns it .* save it upright"):
            open_slide(path)
    for upright in (0, 1):
        turned_image(path, pixels, upright)
        with open_slide(path) as slide:
            assert slide.dimensions == (600, 400)


def test_a_png_may_say_after_its_pixels_that_it_is_turned(tmp_path, pixels):
    path = tmp_path / "s.png"
    turned_image(path, pixels, 6)
    content = path.read_bytes()
    at = content.index(b"eXIf") - 4
    size = int.from_bytes(content[at : at + 4], "big") + 12
    chunk, rest = content[at : at + size], content[:at] + content[at + size :]
    path.write_bytes(rest[:-12] + chunk + rest[-12:])
    assert zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
    with pytest.raises(SlideError, match=r"orientation tag \(6\)"):
        open_slide(path)


def test_a_turned_photograph_saved_upright_is_read_with_its_mask(tmp_path, pixels):
    """The way out that the refusal names."""
    turned_image(tmp_path / "s.jpg", pixels, 6)
    with Image.open(tmp_path / "s.jpg") as image:
        ImageOps.exif_transpose(image).save(tmp_path / "upright.png")
    painted = np.zeros((60, 40), np.uint8)
    painted[:30] = 255
    Image.fromarray(painted).save(tmp_path / "mask.png")
    with open_slide(tmp_path / "upright.png") as slide:
        assert slide.dimensions == (400, 600)
        inside = inside_mask(MaskRequest(tmp_path / "mask.png"), slide, np.array([[200.0, 100.0], [200.0, 500.0]]))
        assert inside.tolist() == [True, False]
        assert make_overview(slide, 40, 60).shape == (60, 40, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_a_mask_lies_as_it_was_drawn(tmp_path, suffix):
    drawn = np.zeros((40, 60), np.uint8)
    drawn[:16, :24] = 255
    turns = Image.Transpose
    stored_by = {
        2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM, 5: turns.TRANSPOSE, 6: turns.ROTATE_90,
        7: turns.TRANSVERSE, 8: turns.ROTATE_270,
    }  # fmt: skip
    for orientation, turn in stored_by.items():
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(drawn).transpose(turn).save(tmp_path / f"m.{suffix}", exif=exif)
        np.testing.assert_array_equal(read_mask(tmp_path / f"m.{suffix}")[4::8, 4::8], drawn[4::8, 4::8] > 0)


def test_a_mask_on_its_side_is_refused_and_told_how_to_mend(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "s.png", dpi=(50_800, 50_800))
    Image.fromarray(np.full((60, 40), 255, np.uint8)).save(tmp_path / "m.png")
    with open_slide(tmp_path / "s.png") as slide, pytest.raises(MaskError, match="turn it by 90 degrees"):
        inside_mask(MaskRequest(tmp_path / "m.png"), slide, np.array([[1.0, 1.0]]))


def test_a_slide_too_small_for_a_spot_says_how_small(tmp_path, pixels):
    Image.fromarray(pixels[:64, :80]).save(tmp_path / "s.png", dpi=(50_800, 50_800))
    with open_slide(tmp_path / "s.png") as slide:
        with pytest.raises(SpotsError, match=r"s\.png: too small for spots 100 um apart: it is 40 x 32 um, at 0.5 um"):
            choose_spots(slide, Mpp(0.5, 0.5), GridRequest(100.0, 100.0), 1)
        _, spots, _ = choose_spots(slide, Mpp(0.5, 0.5), GridRequest(100.0, 20.0, min_tissue=0.0), 1)
        assert len(spots) == 4


def test_predict_says_what_it_does_not_read_and_records_it(tmp_path, region, tiny_model_path):
    image = np.ascontiguousarray(region[1000:1600, 600:1200])
    path = write_pages(tmp_path / "s.tif", [image, image])
    call = ("predict", path, "--model", tiny_model_path, "--engine", "eager", "--genes", "GNAS", "-o", tmp_path / "out")
    done, said = run(*call), "it holds 2 pages of one size, of which the first is read"
    assert done.exit_code == 0
    assert done.stderr.count(f"s.tif: {said}.") == 1
    assert read_provenance(tmp_path / "out" / "s.h5ad")["slide"]["of_file"] == [said]
    assert said in run("tile", path, "--model", tiny_model_path, "-o", tmp_path).stderr
    assert said in run(*call[:-1], tmp_path / "plan", "--dry-run").stderr
    run("render", tmp_path / "out" / "s.h5ad", "--style", "report", "-o", tmp_path / "out")
    (page,) = (tmp_path / "out").glob("*.html")
    assert said in page.read_text(encoding="utf-8")
