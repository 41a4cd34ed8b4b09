from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import openslide
import pytest
import tifffile
from conftest import SLIDE, make_model
from PIL import Image, ImageDraw
from results_to_draw import draw, made_up, predict
from slides_to_try import leica_with_bounds

from stpredict.errors import ResultError, SlideError, UsageError
from stpredict.model.file import load_model
from stpredict.rendering.cells import make_cells, make_layer
from stpredict.rendering.colour import ColourScale
from stpredict.rendering.jpeg import write_jpeg
from stpredict.rendering.preview import draw_preview, tick_decimals
from stpredict.rendering.styles import file_name
from stpredict.rendering.tiff import level_count
from stpredict.result.file import read_result
from stpredict.result.frame import Frame
from stpredict.slides.lattice import Spots, lattice
from stpredict.slides.slide import Bounds, Mpp


@pytest.fixture(scope="module")
def result(tiny_model, tmp_path_factory):
    return predict(tiny_model, tmp_path_factory.mktemp("out"), genes=("GNAS", "A/../B", "CD74"))


@pytest.fixture(scope="module")
def pictures(result, tmp_path_factory):
    heatmap, _, overlay, _ = draw(result, tmp_path_factory.mktemp("pictures"), "heatmap", "overlay")
    return heatmap, overlay


def test_pictures_are_pyramids_the_size_of_the_slide(pictures):
    for path in pictures:
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
    colours = scale.colours(result.expression("GNAS")[:, None])
    x, y = result.spots.centres.astype(int).T
    np.testing.assert_array_equal(heatmap[y, x], colours)
    whole = lattice(Bounds(0, 0, 2220, 2967), Mpp(0.499, 0.499), 100.0)
    taken = set(zip(result.spots.row, result.spots.column, strict=True))
    empty = [i for i in range(len(whole)) if (whole.row[i], whole.column[i]) not in taken]
    x, y = whole.centres[empty].astype(int).T
    assert (heatmap[y, x] == 255).all()


def test_overlay_is_the_slide_under_the_map_and_untouched_elsewhere(region, pictures):
    heatmap, overlay = (tifffile.imread(path).astype(float) for path in pictures)
    empty = (heatmap == 255).all(axis=-1)
    assert abs(overlay - region)[empty].mean() < 3  # JPEG
    assert abs(overlay - (region + heatmap) / 2)[~empty].mean() < 4


def test_opacity_is_that_of_the_map(result, region, pictures, tmp_path):
    heatmap = tifffile.imread(pictures[0]).astype(float)
    overlay = tifffile.imread(draw(result, tmp_path, "overlay", opacity=0.9)[0])
    known = (heatmap != 255).any(axis=-1)
    assert abs(overlay - (0.1 * region + 0.9 * heatmap))[known].mean() < 4
    assert json.loads((tmp_path / "CMU-1-Small-Region.GNAS.overlay.json").read_text())["opacity"] == 0.9
    whole, _ = draw(result, tmp_path, "overlay", opacity=1.0, overwrite=True)
    assert abs(tifffile.imread(whole)[known] - heatmap[known]).mean() < 4
    for opacity in (0, 1.1, float("nan")):
        with pytest.raises(UsageError, match="--opacity"):
            draw(result, tmp_path, "overlay", opacity=opacity)


def test_the_record_and_the_preview(pictures):
    for path in pictures:
        record = json.loads(path.with_suffix(".json").read_text())
        assert (record["low"], record["high"]) == (4.0, 6.0)  # the card's, not the slide's
        assert record["held_out_correlation"] == 0.3
        assert record["predicted_when_tested"] is True
        assert record["unit"] == "ln(1 + CPM) of the expected share"
        assert str(path.parent) not in path.with_suffix(".json").read_text()
        with Image.open(path.with_suffix(".png")) as preview:
            assert preview.format == "PNG"
            assert min(preview.size) > 500
            bar = np.flatnonzero((np.asarray(preview.convert("RGB"))[-30:, :250] == 0).all(axis=2).any(axis=0))
        um_per_px = 0.499 * 2967 / 900
        assert len(bar) == pytest.approx(200 / um_per_px, abs=1.5)  # a line of 200 um, in the corner


def test_a_downsampled_picture_keeps_its_place_by_its_mpp(result, pictures, tmp_path):
    whole = [tifffile.imread(path) for path in pictures]
    heatmap, _, overlay, _ = draw(result, tmp_path, "heatmap", "overlay", downsample=3.7)
    x, y = result.spots.centres.T
    for path, large in zip((heatmap, overlay), whole, strict=True):
        with openslide.OpenSlide(path) as slide:
            assert slide.dimensions == (600, 802)
            assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.499 * 3.7, rel=1e-5)
        small = tifffile.imread(path)
        inner = (x < 2200) & (y < 2940)
        at = np.s_[(y[inner] / 3.7).astype(int), (x[inner] / 3.7).astype(int)]
        if path == heatmap:
            np.testing.assert_array_equal(small[at], large[y[inner].astype(int), x[inner].astype(int)])
    big, little = Image.fromarray(whole[1]), Image.fromarray(tifffile.imread(overlay))
    reduced = np.asarray(big.resize((599, 801), Image.Resampling.BOX, box=(0, 0, 599 * 3.7, 801 * 3.7)), float)
    assert abs(reduced - np.asarray(little)[:801, :599]).mean() < 5
    for downsample in (0.5, 0, -1, float("nan"), 1e9):
        with pytest.raises(UsageError, match="--downsample"):
            draw(result, tmp_path, "heatmap", downsample=downsample)


def test_smooth_pictures_pass_through_the_spots_values(result, tmp_path):
    heatmap = tifffile.imread(draw(result, tmp_path, "heatmap", smooth=True)[0])
    colours = ColourScale("GNAS", 4.0, 6.0, "", "").colours(result.expression("GNAS")[:, None])
    x, y = result.spots.centres.astype(int).T
    assert abs(heatmap[y, x].astype(int) - colours).max() <= 3
    assert (heatmap[:100, :300] == 255).all()  # no tissue there
    assert len(np.unique(heatmap.reshape(-1, 3), axis=0)) > len(np.unique(colours, axis=0))


def test_given_spots_are_not_smoothed_and_that_is_known_before_anything_is_drawn(tmp_path):
    spots = Spots(np.array([[5.0, 5.0]]), np.zeros(1, int), np.arange(1), "given", 50.0)
    given = made_up(tmp_path / "given.h5ad", spots, np.ones((1, 1)))
    with pytest.raises(UsageError, match="--smooth"):
        draw(given, tmp_path, "csv", "heatmap", genes=(), smooth=True)
    assert [path.name for path in tmp_path.iterdir()] == ["given.h5ad"]


def test_names_from_files_never_become_paths(result, tmp_path):
    paths = draw(result, tmp_path, "heatmap", genes=["A/../B"])
    assert {path.parent for path in paths} == {tmp_path}
    assert len(list(tmp_path.iterdir())) == 3
    assert file_name("GNAS") == "GNAS"
    assert file_name("HLA-A") == "HLA-A"
    assert "/" not in file_name("../../etc/passwd")
    assert file_name("a/b") != file_name("a_b")
    assert len(file_name("G" * 10_000)) < 100
    assert file_name("Gnas", ["Gnas", "GNAS"]).casefold() != file_name("GNAS", ["Gnas", "GNAS"]).casefold()


def test_ticks_of_a_narrow_range_differ():
    assert [tick_decimals(span) for span in (100, 2, 0.4, 0.1, 0.01)] == [2, 2, 2, 2, 3]
    for span in (1.0, 0.1, 0.01, 1e-5):
        assert len({f"{value:.{tick_decimals(span)}f}" for value in np.linspace(3, 3 + span, 5)}) == 5


def test_a_result_and_its_slide_may_move_together(tiny_model, tmp_path):
    (tmp_path / "a").mkdir()
    shutil.copy(SLIDE, tmp_path / "a" / "s.svs")
    result = predict(tiny_model, tmp_path / "a", tmp_path / "a" / "s.svs", genes=("GNAS",), pitch_um=300.0)
    (tmp_path / "a").rename(tmp_path / "b")
    moved = read_result(tmp_path / "b" / result.path.name)
    assert draw(moved, tmp_path, "overlay")[0].exists()


@pytest.mark.parametrize("size", [(1, 700), (700, 1), (257, 255), (513, 1025), (2049, 300)])
def test_every_level_of_an_overlay_is_the_mean_of_the_one_before(tmp_path, size):
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 255, (height // 64 + 1, width // 64 + 1, 3), dtype=np.uint8)
    pixels = pixels.repeat(64, axis=0).repeat(64, axis=1)[:height, :width]
    frame = Frame(0, 0, width, height, Mpp(0.5, 0.25))
    write_jpeg(tmp_path / "p.tif", frame, lambda x, y, w, h: pixels[y : y + h, x : x + w])
    with tifffile.TiffFile(tmp_path / "p.tif") as tiff:
        assert len(tiff.pages) == level_count(frame)
        levels = [page.asarray().astype(float) for page in tiff.pages]
    assert levels[0].shape == (height, width, 3)
    assert abs(levels[0] - pixels).mean() < 2
    for fine, coarse in pairwise(levels):
        h, w = coarse.shape[:2]
        assert (h, w) == (fine.shape[0] // 2, fine.shape[1] // 2)
        mean = fine[: 2 * h, : 2 * w].reshape(h, 2, w, 2, 3).mean(axis=(1, 3))
        assert abs(coarse - mean).mean() < 5  # JPEG; a shift by a pixel makes 20
    if min(size) > 1:
        with openslide.OpenSlide(tmp_path / "p.tif") as slide:
            assert slide.level_count == len(levels)


def test_a_picture_of_nearly_the_slides_size_does_not_drift(tiny_model, tmp_path):
    """At a factor of 1.005 a line near the end of a wide slide lies where it should, without seams."""
    pixels = np.full((400, 6000, 3), 255, np.uint8)
    pixels[:, 100:6000:500] = 0
    pixels[100:300, 1000:1300] = (150, 60, 120)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    result = predict(tiny_model, tmp_path, tmp_path / "wide.png", genes=("GNAS",), mpp=0.5, min_tissue=0.0)
    overlay, _ = draw(result, tmp_path, "overlay", downsample=1.005, opacity=0.01)
    dark = 255 - tifffile.imread(overlay)[20, :, 1].astype(float)
    for at in range(100, 6000, 500):
        around = np.arange(int(at / 1.005) - 8, int(at / 1.005) + 9)
        assert (dark[around] @ (around + 0.5)) / dark[around].sum() == pytest.approx((at + 0.5) / 1.005, abs=0.6)


def test_reducing_a_slide_without_a_pyramid_reads_it_piece_by_piece(tiny_model, tmp_path, region, monkeypatch):
    Image.fromarray(region).save(tmp_path / "flat.png")
    result = predict(tiny_model, tmp_path, tmp_path / "flat.png", genes=("GNAS",), mpp=0.5)
    whole = tifffile.imread(draw(result, tmp_path, "overlay", downsample=5.3)[0]).astype(float)
    monkeypatch.setattr("stpredict.rendering.overlay.MAX_SOURCE_PX", 300**2)
    pieces = tifffile.imread(draw(result, tmp_path, "overlay", downsample=5.3, overwrite=True)[0])
    assert abs(whole - pieces).mean() < 1
    assert abs(whole[:, 1:] - pieces[:, :-1]).mean() > 3


@pytest.mark.parametrize("name", ['a b\'s "c" & <d>', "Präparat 12 — 切片", "-rf", "=1+1"])
def test_slides_of_any_name(tiny_model, tmp_path, name):
    shutil.copy(SLIDE, tmp_path / f"{name}.svs")
    result = predict(tiny_model, tmp_path, tmp_path / f"{name}.svs", genes=("GNAS", "CD74", "<&>"), pitch_um=300.0)
    styles = ("heatmap", "overlay", "channels", "spots", "pca", "csv")
    for path in draw(result, tmp_path, *styles, genes=()):
        assert path.stat().st_size > 0
        assert path.name.startswith(name)


def test_a_gene_that_is_named_twice_is_drawn_once(result, tmp_path):
    (table,) = draw(result, tmp_path, "csv", genes=["GNAS", "CD74", "GNAS"])
    assert table.read_text("utf-8-sig").splitlines()[0].endswith('"fold","pale","GNAS","CD74"')


def test_a_style_that_cannot_be_drawn_costs_no_other(result, tmp_path, monkeypatch):
    two = replace(result, genes=result.genes[:2])
    with pytest.raises(ResultError, match="three components need"):
        draw(two, tmp_path, "pca", "csv", "heatmap", genes=())
    assert {path.name.split(".", 1)[1] for path in tmp_path.iterdir()} == {
        f"{stem}.{kind}"
        for stem in ("GNAS.heatmap", f"{file_name('A/../B')}.heatmap")
        for kind in ("tif", "png", "json")
    } | {"expression.csv", "expression.json"}
    with pytest.raises(ResultError, match="exists with other settings"):  # which the table does not share
        draw(two, tmp_path, "heatmap", "spots", genes=(), smooth=True)
    assert (tmp_path / "CMU-1-Small-Region.spots.geojson").exists()
    monkeypatch.setattr("stpredict.rendering.styles.write_overlay", refuse_to_read)
    monkeypatch.setattr("stpredict.rendering.styles.write_report", refuse_to_read)
    with pytest.raises(ResultError, match=r"heatmap.tif: exists with other settings.* damaged slide.$") as told:
        draw(two, tmp_path, "heatmap", "overlay", "report", "channels", genes=(), smooth=True)
    assert str(told.value).count("damaged slide") == 1
    assert (tmp_path / "CMU-1-Small-Region.channels.ome.tif").exists()
    assert not list(tmp_path.glob("*overlay*"))


def refuse_to_read(*_args):
    raise SlideError("CMU-1-Small-Region.svs: damaged slide.")


def test_pictures_tell_of_turns_and_of_the_unit(tmp_path, monkeypatch):
    captions: list[str] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda _self, _at, text, *_rest, **_more: captions.append(text))
    spots = lattice(Bounds(0, 0, 600, 400), Mpp(0.5, 0.5), 20.0)
    once = made_up(tmp_path / "s.h5ad", spots, np.random.default_rng(0).normal(5, 1, (len(spots), 3)))
    styles = ("heatmap", "channels", "spots", "pca", "csv")
    for turned in (False, True):
        captions.clear()
        unit = "ln(1 + CPM of the panel)" if turned else once.provenance["expression_unit"]
        more = {"tta": {"expression": "mean"}} if turned else {}
        result = replace(once, provenance={**once.provenance, **more, "expression_unit": unit})
        draw(result, tmp_path, *styles, genes=["G0", "G1", "G2"], overwrite=True)
        records = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
        assert len(records) == 7
        assert all(record["unit"] == unit for record in records)
        said = [record.get("tta", "") for record in records]
        assert all("--tta" in text for text in said) if turned else said == [""] * 7
        assert sum("--tta" in text for text in captions) == (4 if turned else 0)
        assert (unit if turned else "ln(1 + CPM)") in captions
        assert sum("variance of ln(1 + CPM" in text for text in captions) == 1


def test_a_label_of_the_unit_is_not_cut_off(tmp_path):
    spots = lattice(Bounds(0, 0, 60, 40), Mpp(0.5, 0.5), 20.0)
    result = made_up(tmp_path / "s.h5ad", spots, np.ones((len(spots), 1)), size=(60, 40))
    layer = make_layer(make_cells(result.spots, result.canvas), np.ones((len(spots), 1), np.float32), grey, False)
    for unit in ("ln(1 + CPM of the panel)", "ln(1 + counts per 10,000)"):
        draw_preview(tmp_path / "p.png", result, layer, None, "t", ("n",), ColourScale("G", 0.0, 1.0, unit, ""))
        with Image.open(tmp_path / "p.png") as picture:
            assert (np.asarray(picture)[:, -8:] == 255).all()


def grey(values):
    return np.full((*values.shape[:-1], 3), 128, np.uint8)


def test_unknown_genes_are_named(result, tmp_path):
    with pytest.raises(UsageError, match="GNASS"):
        draw(result, tmp_path, "heatmap", genes=["GNASS"])


def test_bounds_lie_where_they_lie_on_the_slide(tiny_model, tmp_path, region):
    leica_with_bounds(tmp_path / "b.scn", region[500:1700, :1400], corner=(300, 200), size=(2500, 2000))
    result = predict(tiny_model, tmp_path, tmp_path / "b.scn", genes=("GNAS",))
    whole = [tifffile.imread(path) for path in draw(result, tmp_path, "heatmap", "overlay")[::2]]
    assert whole[0].shape == (2000, 2500, 3)
    assert (whole[0][:200] == 255).all()
    assert (whole[0][:, :300] == 255).all()
    assert (whole[0][1400:] == 255).all()
    x, y = result.spots.centres.astype(int).T
    assert (whole[0][y, x] != 255).any(axis=-1).all()

    cropped = [tifffile.imread(path) for path in draw(
        result, tmp_path, "heatmap", "overlay", origin="bounds", overwrite=True)[::2]]  # fmt: skip
    assert cropped[0].shape == (1200, 1400, 3)
    np.testing.assert_array_equal(cropped[0], whole[0][200:1400, 300:1700])
    assert abs(cropped[1].astype(float) - whole[1][200:1400, 300:1700]).mean() < 3

    for origin, shift in (("slide", (0, 0)), ("bounds", (300, 200))):
        geojson, table = draw(result, tmp_path, "spots", "csv", origin=origin, overwrite=True)
        corners = np.array(json.loads(geojson.read_text())["features"][0]["geometry"]["coordinates"][0][:4])
        np.testing.assert_allclose(corners.mean(axis=0), result.spots.centres[0] - shift, atol=0.01)
        cells = table.read_text().splitlines()[1].split(",")
        np.testing.assert_allclose([float(cell) for cell in cells[3:5]], result.spots.centres[0] - shift, atol=0.01)


def test_many_genes_must_be_named_except_for_tables(tmp_path):
    model = load_model(make_model(tmp_path / "many.safetensors", names=[f"G{i}" for i in range(20)]))
    result = predict(model, tmp_path, pitch_um=300.0)
    for style in ("heatmap", "channels", "spots", "report"):
        with pytest.raises(UsageError, match=f"20 genes; name those for {style}"):
            draw(result, tmp_path, style, genes=())
    table, pca, _ = draw(result, tmp_path, "csv", "pca", genes=())
    assert table.read_text().splitlines()[0].endswith(',"G18","G19"')
    assert pca.exists()
    channels = draw(result, tmp_path, "channels", genes=[f"G{i}" for i in range(17)])
    assert [path.name for path in channels] == [
        "CMU-1-Small-Region.channels-1.ome.tif", "CMU-1-Small-Region.channels-2.ome.tif"]  # fmt: skip
