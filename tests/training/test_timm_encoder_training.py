from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from calls import run
from conftest import DATA, GENES, SLIDE

from stpredict.model.file import list_models, load_model
from stpredict.result.file import read_result

WEIGHTS = DATA / "timm_vit_giant" / "model.safetensors"
OPTIONS = ("--mpp", "0.69", "--min-depth", "1", "--folds", "none", "--threads", "1")


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("run") / "mine.safetensors"
    done = run("train", dataset, "-o", out, "--encoder", WEIGHTS, *OPTIONS, "--encoder-licence", "MIT")
    assert done.exit_code == 0, done.output
    return out, done


def test_card_and_user_are_told_how_the_weights_are_read(trained):
    out, done = trained
    known = load_model(out).card["training"]["encoder"]
    vit = {"heads": 4, "pooling": "token", "activation": "silu", "epsilon": 1e-6, "told_by": "config.json"}
    vit["resampling"] = "antialiased"
    assert known["vit"] == load_model(out).card["parameters"]["vit"] == vit
    assert (known["file"], known["licence"]) == ("model.safetensors", "MIT")  # as given, whatever config.json says
    assert known["mean"] == [0.707223, 0.578729, 0.703617]
    assert "4 heads and silu, read by the class token, as its config.json has it; mean 0.707223," in done.stderr
    assert "16 features of" in done.stderr


@pytest.mark.parametrize("engine", ["eager", "openvino"])
def test_it_predicts_without_config_json_from_the_folder_of_models(
    trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
):
    shutil.copy(WEIGHTS, tmp_path)
    monkeypatch.setenv("STPREDICT_MODELS", str(tmp_path))
    call = ("predict", SLIDE, "-m", trained[0], "--pitch", "200", "--engine", engine, "-o", tmp_path / "out")
    done = run(*call)
    assert done.exit_code == 0, done.output
    assert np.ptp(read_result(tmp_path / "out" / "CMU-1-Small-Region.h5ad").expression(GENES[-1])) > 0


def test_an_encoder_among_the_models_is_not_taken_for_one(trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copy(WEIGHTS, tmp_path)
    shutil.copy(trained[0], tmp_path)
    (tmp_path / "damaged.safetensors").write_bytes(b"x")
    monkeypatch.setenv("STPREDICT_MODELS", str(tmp_path))
    assert {"mine", "damaged"} <= set(list_models())
    listed = run("models", "list")
    assert listed.exit_code == 0
    assert "mine  encoder, " in listed.stdout
    assert "model.safetensors" not in listed.output
    assert "damaged.safetensors: not a model file" in listed.stderr


def test_the_model_does_not_replace_its_encoder(dataset: Path, tmp_path: Path):
    weights = Path(shutil.copy(WEIGHTS, tmp_path))
    before = weights.read_bytes()
    shutil.copy(WEIGHTS.with_name("config.json"), tmp_path)
    refused = run("train", dataset, "-o", weights, "--encoder", weights, *OPTIONS, "--overwrite")
    assert refused.exit_code == 2
    assert "is the encoder's own file" in refused.stderr
    assert weights.read_bytes() == before


def test_weights_that_are_not_read_are_refused_before_patches_are_cut(dataset: Path, tmp_path: Path):
    weights = Path(shutil.copy(WEIGHTS, tmp_path))
    refused = run("train", dataset, "-o", tmp_path / "m.safetensors", "--encoder", weights, *OPTIONS)
    assert refused.exit_code == 2
    assert "model.safetensors: not read as a timm Vision Transformer (its width of 16 does not tell" in refused.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors"}
