from __future__ import annotations

import json

import numpy as np
import openslide
import pytest
import tifffile
from conftest import SLIDE
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from slides_to_try import leica_with_bounds

from stpredict.engines import EngineRequest
from stpredict.errors import ResultError, SlideError, UsageError
from stpredict.prediction import Request, predict_slides
from stpredict.rendering.cells import Canvas, make_cells
from stpredict.rendering.colour import ColourScale, lookup_table
from stpredict.rendering.pictures import OPACITY, STYLES, file_name, render
from stpredict.result import read_result
from stpredict.slides.lattice import Spots, lattice
from stpredict.slides.slide import Bounds, Mpp


def predict(model, out, slide=SLIDE, **request):
    asked = Request(engine=EngineRequest("eager", "fp32"), **request)
    (outcome,) = predict_slides([slide], model, asked, out, print, lambda _done, _total: None)
    return read_result(outcome.result)


@pytest.fixture(scope="module")
def result(tiny_model, tmp_path_factory):
    return predict(tiny_model, tmp_path_factory.mktemp("out"), genes=("GNAS", "A/../B"))


@pytest.fixture(scope="module")
def pictures(result, tmp_path_factory):
    out = tmp_path_factory.mktemp("pictures")
    return list(render(result, ["GNAS"], STYLES, out, None, False))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["square", "hex"]),
    st.floats(30, 90),
    st.floats(0.98, 1.02),
    st.sampled_from([Bounds(0, 0, 230, 190), Bounds(31, 17, 170, 150)]),
)
def test_every_pixel_belongs_to_its_nearest_centre(layout, pitch_um, anisotropy, bounds):
    mpp = Mpp(1.0, anisotropy)
    spots = lattice(bounds, mpp, pitch_um, layout)
    values = np.arange(len(spots), dtype=float)[:, None]
    painted = make_cells(spots, Canvas((230, 190), bounds, mpp, 50.0)).paint(values, np.array([-1.0])).numpy()
    y, x = np.mgrid[0:190, 0:230] + 0.5
    places = np.stack([x, y], axis=-1)
    distance = np.linalg.norm((places[:, :, None] - spots.centres) * mpp, axis=-1)
    drawn = painted.reshape(190, 230).astype(int)
    inside = (x > bounds.x) & (x < bounds.x + bounds.width) & (y > bounds.y) & (y < bounds.y + bounds.height)
    assert (drawn[~inside] == -1).all()
    mine = np.take_along_axis(distance, np.maximum(drawn, 0)[..., None], axis=-1)[..., 0]
    assert (drawn[inside] >= 0).all()
    np.testing.assert_allclose(mine[inside], distance.min(axis=-1)[inside], atol=0.02)


def test_given_spots_are_disks_of_the_spot_diameter():
    centres = np.array([[50.0, 60.0], [120.0, 60.0]])
    spots = Spots(centres, np.zeros(2, int), np.arange(2), "given", 50.0)
    canvas = Canvas((200, 100), Bounds(0, 0, 200, 100), Mpp(0.5, 0.5), 20.0)
    drawn = make_cells(spots, canvas).paint(np.array([[1.0], [2.0]]), np.array([0.0])).numpy().reshape(100, 200)
    y, x = np.mgrid[0:100, 0:200] + 0.5
    for value, (cx, cy) in zip((1, 2), centres, strict=True):
        inside = (x - cx) ** 2 + (y - cy) ** 2
        assert (drawn[inside < 18**2] == value).all()
    assert (drawn == 1).sum() == pytest.approx(np.pi * 20**2, rel=0.05)


def test_pictures_are_pyramids_the_size_of_the_slide(pictures):
    for path in pictures[:2]:
        with openslide.OpenSlide(path) as slide:
            assert slide.dimensions == (2220, 2967)
            assert slide.level_count == 5
            assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.499, rel=1e-6)
            assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.499, rel=1e-6)
            for level in range(slide.level_count):
                slide.read_region((0, 0), level, slide.level_dimensions[level])
        with tifffile.TiffFile(path) as tiff:
            assert tiff.is_bigtiff
            assert tiff.pages[0].is_tiled
            assert tiff.series[0].levels[0].shape == (2967, 2220, 3)


def test_heatmap_shows_each_spots_colour_and_white_without_tissue(result, pictures):
    heatmap = tifffile.imread(pictures[0])
    low, high = (bounds[0] for bounds in result.provenance["display_range"])
    scale = ColourScale("GNAS", low, high, "", "")
    colours = scale.colours(result.expression("GNAS"))
    x, y = result.spots.centres.astype(int).T
    np.testing.assert_array_equal(heatmap[y, x], colours)
    whole = lattice(Bounds(0, 0, 2220, 2967), Mpp(0.499, 0.499), 100.0)
    taken = set(zip(result.spots.row, result.spots.column, strict=True))
    empty = [i for i in range(len(whole)) if (whole.row[i], whole.column[i]) not in taken]
    x, y = whole.centres[empty].astype(int).T
    assert (heatmap[y, x] == 255).all()


def test_overlay_is_the_slide_under_the_map_and_untouched_elsewhere(region, pictures):
    heatmap, overlay = (tifffile.imread(path).astype(float) for path in pictures[:2])
    empty = (heatmap == 255).all(axis=-1)
    assert abs(overlay - region)[empty].mean() < 3  # JPEG
    blended = (1 - OPACITY) * region + OPACITY * heatmap
    assert abs(overlay - blended)[~empty].mean() < 4


def test_the_sidecar_and_the_preview(pictures):
    sidecar = json.loads((pictures[0].parent / "CMU-1-Small-Region.GNAS.scale.json").read_text())
    assert (sidecar["low"], sidecar["high"]) == (4.0, 6.0)  # the card's, not the slide's
    assert sidecar["held_out_correlation"] == 0.3
    assert sidecar["unit"] == "ln(1 + CPM) of the expected share"
    with Image.open(pictures[2]) as preview:
        assert preview.format == "PNG"
        assert min(preview.size) > 500


def test_colours_clip_and_follow_the_map():
    scale = ColourScale("G", 2.0, 4.0, "", "")
    table = lookup_table("viridis")
    assert table.shape == (256, 3)
    np.testing.assert_array_equal(scale.colours(np.array([-9, 2, 3, 4, 99.0])), table[[0, 0, 128, 255, 255]])


def test_names_from_files_never_become_paths(result, tmp_path):
    paths = list(render(result, ["A/../B"], ["heatmap"], tmp_path, None, False))
    assert {path.parent for path in paths} == {tmp_path}
    assert len(list(tmp_path.iterdir())) == 3
    assert file_name("GNAS") == "GNAS"
    assert file_name("HLA-A") == "HLA-A"
    assert "/" not in file_name("../../etc/passwd")
    assert file_name("a/b") != file_name("a_b")
    assert len(file_name("G" * 10_000)) < 100


def test_pictures_that_are_there_stay_and_others_are_refused(tiny_model, result, tmp_path):
    first = list(render(result, ["GNAS"], ["heatmap"], tmp_path, None, False))
    stamp = first[0].stat().st_mtime_ns
    list(render(result, ["GNAS"], ["heatmap"], tmp_path, None, False))
    assert first[0].stat().st_mtime_ns == stamp
    other = predict(tiny_model, tmp_path, genes=("GNAS",), pitch_um=200.0)
    with pytest.raises(ResultError, match=r"other settings.*--overwrite"):
        list(render(other, ["GNAS"], ["heatmap"], tmp_path, None, False))
    list(render(other, ["GNAS"], ["heatmap"], tmp_path, None, True))


def test_a_slide_that_is_gone_or_another_is_named(result, tmp_path, region):
    with pytest.raises(SlideError, match="--slide"):
        list(render(result, ["GNAS"], ["overlay"], tmp_path, tmp_path / "gone.svs", False))
    Image.fromarray(region).save(tmp_path / "other.png")
    with pytest.raises(SlideError, match="not the slide"):
        list(render(result, ["GNAS"], ["overlay"], tmp_path, tmp_path / "other.png", False))
    assert not list(tmp_path.glob("*.tif"))


def test_unknown_genes_are_named(result, tmp_path):
    with pytest.raises(UsageError, match="GNASS"):
        list(render(result, ["GNASS"], ["heatmap"], tmp_path, None, False))


def test_bounds_lie_where_they_lie_on_the_slide(tiny_model, tmp_path, region):
    leica_with_bounds(tmp_path / "b.scn", region[500:1700, :1400], corner=(300, 200), size=(2500, 2000))
    result = predict(tiny_model, tmp_path, tmp_path / "b.scn", genes=("GNAS",))
    heatmap = tifffile.imread(next(render(result, ["GNAS"], STYLES, tmp_path, None, False)))
    assert heatmap.shape == (2000, 2500, 3)
    assert (heatmap[:200] == 255).all()
    assert (heatmap[:, :300] == 255).all()
    assert (heatmap[1400:] == 255).all()
    x, y = result.spots.centres.astype(int).T
    assert (heatmap[y, x] != 255).any(axis=-1).all()


def test_memory_stays_bounded_on_a_large_canvas():
    """Cells of a 60,000 x 50,000 pixel slide are lazy: making them and reading one corner is immediate."""
    canvas = Canvas((60_000, 50_000), Bounds(0, 0, 60_000, 50_000), Mpp(0.25, 0.25), 100.0)
    spots = lattice(canvas.bounds, canvas.mpp, 100.0, "hex")
    image = make_cells(spots, canvas).paint(np.zeros((len(spots), 3)), np.full(3, 255.0))
    assert (image.width, image.height) == (60_000, 50_000)
    assert (image.crop(59_000, 49_000, 64, 64).numpy() == 0).all()
