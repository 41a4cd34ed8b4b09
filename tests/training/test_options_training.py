"""Networks with options behind their architecture's name train and predict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from calls import run
from conftest import SLIDE

from stpredict.data.cutting import write_tiles
from stpredict.data.dataset import read_dataset
from stpredict.model.file import load_model
from stpredict.networks import ARCHITECTURES
from stpredict.result.file import read_result

TINY = {"channels": 12, "depth": 2, "heads": 1, "head_dim": 12, "mixing": "per_level"}
NAME = "m2ort-tiny:levels=0+1:embedding=shared:pool=mean:mask_probability=0.2"
PLAIN = "--epochs 1 --teach-patches 24 --batch-size 16 --threads 1 --min-depth 1 --panel-size 6"
OPTIONS = f"{PLAIN} --balance patients"


pytestmark = pytest.mark.usefixtures("tiny_architecture")


@pytest.fixture(scope="module")
def tiles(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiles") / "small.tiles.h5"
    sections = [section for section in read_dataset(dataset) if section.name != "A2"]
    write_tiles(sections, path, patch_px=64, mpp=2, unlabelled=12, threads=1, report=print)
    return path


def train(tiles: Path, out: Path, arch: str):
    return run("train", tiles, "-o", out, *OPTIONS.split(), "--folds", "none", "--arch", arch)


@pytest.fixture(scope="module")
def trained(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "mine.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "m2ort-tiny", TINY)
        done = train(tiles, out, NAME)
    assert done.exit_code == 0, done.output
    return out


def test_the_card_and_models_show_say_which_options(trained: Path):
    card = load_model(trained).card
    assert card["architecture"] == NAME
    parameters = card["parameters"]
    assert (parameters["levels"], parameters["channels"], parameters["mlp_dim"]) == ([0, 1], 18, 24)
    assert (parameters["embedding"], parameters["pool"], parameters["mask_probability"]) == ("shared", "mean", 0.2)
    shown = run("models", "show", trained).stdout
    assert f"mine: {NAME}, 6 genes" in shown
    assert card["training"]["balance"] == "patients"
    assert "of 2 patients, patients counting alike;" in shown


@pytest.mark.parametrize("engine", ["eager", "openvino"])
def test_engines_predict_a_slide_with_them(trained: Path, tmp_path: Path, engine: str):
    call = ("predict", SLIDE, "-m", trained, "--pitch", 300, "--engine", engine, "--threads", 1, "-o", tmp_path)
    done = run(*call)
    assert done.exit_code == 0, done.output
    result = read_result(tmp_path / f"{SLIDE.stem}.h5ad")
    assert result.provenance["engine"] == engine
    assert np.std(result.expression(result.genes[0].name)) > 0


def test_other_options_are_another_run(trained: Path, tiles: Path):
    assert "up to date" in train(tiles, trained, NAME).output
    refused = train(tiles, trained, f"{NAME}:depth=1")
    assert refused.exit_code == 1
    assert "architecture" in refused.output
    refused = run("train", tiles, "-o", trained, *PLAIN.split(), "--folds", "none", "--arch", NAME)
    assert refused.exit_code == 1
    assert "other settings (with balance instead of without)" in refused.output


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--accumulate", "2", "--arch", "dictionary"), "--accumulate: not for a dictionary or an encoder"),
        (
            ("--accumulate", "2", "--arch", "bleep"),
            "--accumulate: bleep compares all spots of a batch with one another",
        ),
        (("--accumulate", "2", "--arch", "histogene"), "--accumulate: histogene compares all spots of a batch"),
        (("--balance", "spots"), "--balance spots: choose from sections, patients."),
        (("--balance", "sections", "--arch", "dictionary"), "--balance: not for a dictionary or an encoder"),
        (("--balance", "sections", "--arch", "histogene"), "learns section by section, so they count alike; leave it"),
    ],
)
def test_what_would_do_nothing_or_cannot_be_is_refused(tmp_path: Path, more: tuple[str, ...], said: str):
    refused = run("train", tmp_path, "-o", tmp_path / "mine.safetensors", *more)
    assert refused.exit_code == 2
    assert said in refused.output.replace("\n", " ")


def test_options_that_cannot_be_are_refused_before_anything_is_read(tmp_path: Path):
    refused = train(tmp_path / "missing.tiles.h5", tmp_path / "mine.safetensors", "m2ort-tiny:mixing=none")
    assert refused.exit_code == 2
    assert "add pool=mean" in refused.output


def test_the_target_view_of_a_triplex_alone_trains_on_tiles_and_runs_in_other_engines(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sizes = {"network": "triplex", "channels": 8, "trunk_width": 2}
    monkeypatch.setitem(ARCHITECTURES, "triplex-tiny", sizes)
    out = tmp_path / "tem.safetensors"
    done = train(tiles, out, "triplex-tiny:reads=target")
    assert done.exit_code == 0, done.output
    model = load_model(out)
    assert not model.reads_slide
    assert not any(name.startswith(("frozen", "neighbour", "global", "fusion")) for name in model.tensors)
    call = ("predict", SLIDE, "-m", out, "--pitch", 300, "--engine", "openvino", "--threads", 1, "-o", tmp_path)
    predicted = run(*call)
    assert predicted.exit_code == 0, predicted.output
    refused = train(tiles, tmp_path / "both.safetensors", "triplex-tiny:reads=target+global")
    assert refused.exit_code == 2
    assert "looks at the slides around the spots" in refused.output
