"""Calls of `stpredict render`, and what they say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from calls import run
from conftest import SLIDE, make_model
from results_to_draw import made_up

from stpredict.slides.lattice import lattice
from stpredict.slides.slide import Bounds, Mpp

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def test_render_of_nothing_and_of_other_files():
    missing = run("render", "nothing.h5ad")
    assert missing.exit_code == 2
    assert "no such file" in missing.stderr
    other = run("render", SLIDE)
    assert other.exit_code == 1
    assert "not a result" in other.stderr
    style = run("render", SLIDE, "--style", "oil")
    assert style.exit_code == 2
    assert "heatmap, overlay" in style.stderr


def test_one_colour_scale_for_a_folder_of_results(tiny_model_path, tmp_path):
    for name, pitch in (("a", "200"), ("b", "300")):
        shutil.copy(SLIDE, f"{name}.svs")
        assert run("predict", f"{name}.svs", "-m", tiny_model_path, "--genes", "GNAS", "--pitch", pitch).exit_code == 0
    done = run("render", "a.h5ad", "b.h5ad", "--style", "heatmap", "--scale-from", ".", "--cmap", "magma", "-o", "maps")
    assert done.exit_code == 0, done.output
    scales = [json.loads((tmp_path / "maps" / f"{name}.GNAS.heatmap.json").read_text()) for name in "ab"]
    assert scales[0]["range_from"] == "percentiles 1 to 99 of 2 slides"
    assert scales[0]["colour_map"] == "magma"
    assert [scale["low"] for scale in scales] == [scales[0]["low"]] * 2
    limits = run("render", "a.h5ad", "--style", "heatmap", "--vmin", "1", "--vmax", "2", "-o", "maps")
    assert limits.exit_code == 1
    assert "a.GNAS.heatmap.tif: exists with other settings; --overwrite replaces it." in limits.stderr


def test_two_results_of_one_slide_do_not_overwrite_one_another(tiny_model_path):
    for out, pitch in (("one", "200"), ("two", "300")):
        asked = ("--genes", "GNAS", "--pitch", pitch, "-o", out)
        assert run("predict", SLIDE, "-m", tiny_model_path, *asked).exit_code == 0
    results = [f"{out}/CMU-1-Small-Region.h5ad" for out in ("one", "two")]
    done = run("render", *results, "--style", "csv", "--overwrite", "-o", "both")
    assert done.exit_code == 1
    assert "of the same slide as one/CMU-1-Small-Region.h5ad" in done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_a_folder_of_results_is_drawn_into_folders_of_the_same_names():
    spots = lattice(Bounds(0, 0, 600, 400), Mpp(0.5, 0.5), 50.0)
    for place in ("results/a.h5ad", "results/deep/a.h5ad"):
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        made_up(Path(place), spots, np.ones((len(spots), 1)))
    Path("results/.b.h5ad").touch()
    done = run("render", "results", "--style", "csv", "-o", "out")
    assert done.exit_code == 0, done.output
    assert sorted(done.stdout.split()) == ["out/a.expression.csv", "out/deep/a.expression.csv"]
    Path("empty").mkdir()
    empty = run("render", "empty")
    assert empty.exit_code == 2
    assert "empty: holds no results" in empty.stderr


def test_a_result_that_is_drawn_comes_before_another_of_its_slide_in_the_colour_scale():
    spots = lattice(Bounds(0, 0, 600, 400), Mpp(0.5, 0.5), 50.0)
    for place, value in (("a/s.h5ad", 1.0), ("z/s.h5ad", 5.0)):
        Path(place).parent.mkdir()
        made_up(Path(place), spots, value + np.linspace(0, 1, len(spots))[:, None])
    done = run("render", "z/s.h5ad", "--style", "heatmap", "--scale-from", ".", "-o", "out")
    assert "leaves out a/s.h5ad: of the same slide as z/s.h5ad" in done.stderr
    assert json.loads(Path("out/s.G0.heatmap.json").read_text())["low"] > 4.9


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--style", "oil"], "heatmap, overlay, channels, spots, pca, report, csv"),
        (["--style", ","], "--style: choose from"),
        (["--cmap", "jet"], "--cmap jet: choose from viridis"),
        (["--scale", "mine"], "--scale mine: choose from card, slide"),
        (["--origin", "centre"], "--origin centre: choose from slide, bounds"),
        (["--vmin", "3", "--vmax", "2"], "span no range"),
        (["--opacity", "2"], "--opacity 2: must be"),
        (["--downsample", "0.5"], "--downsample 0.5: must be"),
        (["--scale-from", "gone.h5ad"], "--scale-from: gone.h5ad: no such file"),
        (["--scale-from", "empty"], "--scale-from empty: holds no results"),
        (["--genes", "GNASS"], "nearest: GNAS"),
    ],
)
def test_wrong_ways_to_draw_get_one_sentence(tiny_model_path, arguments, says):
    Path("empty").mkdir()
    assert run("predict", SLIDE, "-m", tiny_model_path, "--genes", "GNAS", "--pitch", "300").exit_code == 0
    done = run("render", "CMU-1-Small-Region.h5ad", *arguments)
    assert done.exit_code == 2, done.output
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(Path().glob("*.tif"))


@pytest.mark.parametrize(
    ("style", "option", "users"),
    [
        ("heatmap,overlay", ["--gzip"], "spots"),
        ("csv,spots", ["--smooth"], "heatmap, overlay, pca"),
        ("csv", ["--cmap", "magma"], "heatmap, overlay, report"),
        ("pca", ["--scale", "slide"], "heatmap, overlay, report"),
        ("channels", ["--scale-from", "."], "heatmap, overlay, report"),
        ("spots", ["--vmin", "1"], "heatmap, overlay, report"),
        ("spots", ["--vmax", "9"], "heatmap, overlay, report"),
        ("heatmap", ["--opacity", "0.3"], "overlay"),
        ("report", ["--downsample", "2"], "heatmap, overlay, channels, pca"),
        ("report", ["--origin", "bounds"], "heatmap, overlay, channels, spots, pca, csv"),
        ("csv", ["--slide", str(SLIDE)], "overlay, report"),
    ],
)
def test_an_option_that_no_style_uses_is_refused(style, option, users):
    spots = lattice(Bounds(0, 0, 600, 400), Mpp(0.5, 0.5), 30.0)
    made_up(Path("s.h5ad"), spots, np.random.default_rng(0).normal(5, 1, (len(spots), 3)))
    refused = run("render", "s.h5ad", "--style", style, *option, "-o", "new")
    assert refused.exit_code == 2
    named = ", ".join(style.split(","))
    assert refused.stderr == f"stpredict: {option[0]}: only for {users}; --style names {named}.\n"
    assert not Path("new").exists()


def test_an_option_that_one_of_the_styles_uses_is_accepted():
    spots = lattice(Bounds(0, 0, 600, 400), Mpp(0.5, 0.5), 30.0)
    made_up(Path("s.h5ad"), spots, np.random.default_rng(0).normal(5, 1, (len(spots), 3)))
    done = run("render", "s.h5ad", "--style", "heatmap,channels,spots", "--smooth", "--gzip", "--vmin", "1")
    assert done.exit_code == 0, done.output


def test_many_genes_must_be_named_to_be_drawn(tmp_path):
    model = make_model(tmp_path / "m.safetensors", names=[f"G{i}" for i in range(17)], held_out=[])
    refused = run("predict", SLIDE, "-m", model, "--pitch", "300", "--render")
    assert refused.exit_code == 2
    assert "up to 16 genes" in refused.stderr
    assert run("predict", SLIDE, "-m", model, "--pitch", "300").exit_code == 0
    unnamed = run("render", "CMU-1-Small-Region.h5ad")
    assert unnamed.exit_code == 2
    assert "holds 17 genes" in unnamed.stderr
    assert run("render", "CMU-1-Small-Region.h5ad", "--style", "heatmap", "--genes", "G1,G16").exit_code == 0
    assert len(list(tmp_path.glob("*.tif"))) == 2


def test_one_result_that_cannot_be_drawn_costs_only_itself(tiny_model_path):
    assert run("predict", SLIDE, "-m", tiny_model_path, "--genes", "GNAS").exit_code == 0
    shutil.copy("CMU-1-Small-Region.h5ad", "other.h5ad")
    Path("broken.h5ad").write_bytes(b"x")
    done = run("render", "broken.h5ad", "CMU-1-Small-Region.h5ad", "--style", "heatmap")
    assert done.exit_code == 1
    assert "CMU-1-Small-Region.GNAS.heatmap.tif" in done.stdout
    assert "1 of 2 results failed" in done.stderr


def test_an_overlay_of_a_slide_that_was_damaged_since_names_the_slide(tiny_model_path):
    content = bytearray(SLIDE.read_bytes())
    shutil.copy(SLIDE, "slide.svs")
    assert run("predict", "slide.svs", "-m", tiny_model_path, "--genes", "GNAS").exit_code == 0
    # Within the fingerprint's blind spot there is nothing in so small a file: the slide is another one.
    content[700_000:760_000] = bytes(60_000)
    Path("slide.svs").write_bytes(content)
    done = run("render", "slide.h5ad")
    assert done.exit_code == 1
    assert "not the slide" in done.stderr
    assert not list(Path().glob("*.overlay.tif"))
