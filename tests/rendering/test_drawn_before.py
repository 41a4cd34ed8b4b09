"""Pictures that stand there already, and drawing that fails: what is made anew, what stays, what is left behind."""

from __future__ import annotations

import resource
from dataclasses import replace

import pytest
from PIL import Image
from results_to_draw import draw, predict

from stpredict.errors import ResultError, SlideError
from stpredict.rendering.colour import ScaleRequest
from stpredict.rendering.styles import STYLES
from stpredict.slides.slide import OpenSlideSlide


@pytest.fixture(scope="module")
def result(tiny_model, tmp_path_factory):
    return predict(tiny_model, tmp_path_factory.mktemp("out"), genes=("GNAS", "A/../B", "CD74"))


def test_pictures_that_are_there_stay_and_others_are_refused(tiny_model, result, tmp_path):
    styles = ("heatmap", "channels", "spots", "pca", "csv")
    stamps = {path: path.stat().st_mtime_ns for path in draw(result, tmp_path, *styles, genes=())}
    assert {path: path.stat().st_mtime_ns for path in draw(result, tmp_path, *styles, genes=())} == stamps
    for change in ({"scale": ScaleRequest("slide")}, {"smooth": True}, {"downsample": 2}, {"origin": "bounds"}):
        with pytest.raises(ResultError, match=r"other settings.*--overwrite"):
            draw(result, tmp_path, "heatmap", **change)
    for style in ("channels", "spots", "csv"):
        with pytest.raises(ResultError, match="other settings"):
            draw(result, tmp_path, style, genes=["CD74"])
    other = predict(tiny_model, tmp_path, genes=("GNAS",), pitch_um=200.0)
    with pytest.raises(ResultError, match=r"other settings.*--overwrite"):
        draw(other, tmp_path, "heatmap")
    draw(other, tmp_path, "heatmap", overwrite=True)
    assert draw(other, tmp_path, "heatmap")[0].stat().st_mtime_ns > max(stamps.values())


def test_what_a_kill_leaves_is_made_anew_and_what_is_anothers_is_left(result, tmp_path):
    heatmap, preview = draw(result, tmp_path, "heatmap")
    whole = heatmap.read_bytes()
    heatmap.unlink()  # the record is written first
    draw(result, tmp_path, "heatmap")
    assert heatmap.read_bytes() == whole
    preview.unlink()
    assert draw(result, tmp_path, "heatmap")[1].exists()
    mine = tmp_path / "CMU-1-Small-Region.expression.csv"
    mine.write_text("my own")
    with pytest.raises(ResultError, match=r"CMU-1-Small-Region\.expression\.csv: exists and .* does not; --overwrite"):
        draw(result, tmp_path, "csv")
    assert mine.read_text() == "my own"


def test_a_result_that_was_predicted_anew_is_drawn_anew(result, tmp_path):
    draw(result, tmp_path, "heatmap")
    anew = replace(result, provenance={**result.provenance, "precision": "bf16"})
    with pytest.raises(ResultError, match="other settings"):
        draw(anew, tmp_path, "heatmap")
    moved = {**result.provenance, "slide": {**result.provenance["slide"], "path": "elsewhere.svs"}}
    draw(replace(result, provenance=moved), tmp_path, "heatmap")


def test_plain_and_compressed_spots_are_not_taken_for_one_another(result, tmp_path):
    (plain,) = draw(result, tmp_path, "spots")
    with pytest.raises(ResultError, match="other settings"):
        draw(result, tmp_path, "spots", compress=True)
    (packed,) = draw(result, tmp_path, "spots", compress=True, overwrite=True)
    assert packed.exists()
    assert not plain.exists()  # its record is gone


def test_the_same_result_gives_the_same_bytes(result, tmp_path):
    styles = ("heatmap", "channels", "spots", "pca", "csv")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        draw(result, tmp_path / folder, *styles, genes=(), compress=True)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(names) == 18
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_slide_that_is_named_and_gone_or_another_is_refused(result, tmp_path, region):
    with pytest.raises(SlideError, match="--slide"):
        draw(result, tmp_path, "heatmap", "overlay", slide=tmp_path / "gone.svs")
    Image.fromarray(region).save(tmp_path / "other.png")
    with pytest.raises(SlideError, match="not the slide"):
        draw(result, tmp_path, "heatmap", "report", slide=tmp_path / "other.png")
    assert not list(tmp_path.glob("*.tif"))  # it was asked for before anything was drawn


def test_a_slide_that_cannot_be_read_in_the_middle_leaves_nothing(result, tmp_path, monkeypatch):
    read = OpenSlideSlide._read_inside

    def broken(self, level, x, y, width, height):
        if y + height > 2000:
            raise SlideError("CMU-1-Small-Region.svs: damaged slide, a region cannot be decoded.")
        return read(self, level, x, y, width, height)

    monkeypatch.setattr(OpenSlideSlide, "_read_inside", broken)
    for style in ("overlay", "report"):
        with pytest.raises(SlideError, match="cannot be decoded"):
            draw(result, tmp_path, style)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("style", STYLES)
def test_a_full_disk_is_one_error_and_leaves_nothing(result, tmp_path, style):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))  # no file may grow beyond: writing fails as on a full disk
    try:
        with pytest.raises(ResultError, match="cannot be written"):
            draw(result, tmp_path, style, genes=())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
