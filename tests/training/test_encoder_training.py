from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import run
from conftest import GENES, SLIDE
from encoders_to_try import Tiny, export

from stpredict.engines.eager import run_reference
from stpredict.model.file import load_model
from stpredict.model.self_test import fixed_images, self_test_of
from stpredict.result.file import read_result
from stpredict.training.shared_sums import SharedSums

OPTIONS = ("--mpp", "0.69", "--encoder-licence", "MIT", "--min-depth", "1")


@pytest.fixture(scope="module")
def trained(dataset: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("run") / "mine.safetensors"
    done = run("train", dataset, "-o", out, "--encoder", encoder, *OPTIONS, "--threads", "1")
    assert done.exit_code == 0, done.output
    return out, done


def test_the_card_knows_the_encoder_and_the_model_does_not_hold_it(trained, encoder: Path):
    out, done = trained
    model = load_model(out)
    known = model.card["training"]["encoder"]
    assert (known["file"], known["licence"], len(known["sha256"])) == ("tiny.pt2", "MIT", 64)
    assert known["mean"] == [0.485, 0.456, 0.406]
    assert model.card["parameters"]["n_features"] == 9
    assert not any(name.startswith("encoder") for name in model.tensors)
    assert str(encoder.parent) not in str(model.card)
    assert [fold["name"] for fold in model.card["held_out"]] == ["A", "B"]
    assert "mine.safetensors needs tiny.pt2 beside it" in done.stderr
    assert "9 features of" in done.stderr


def test_the_file_of_its_options_repeats_the_call(trained, encoder: Path, dataset: Path, tmp_path: Path):
    written = tomllib.loads((trained[0].with_suffix(".run") / "config.toml").read_text())
    assert written["dataset"] == str(dataset)
    assert (written["encoder"], written["mpp"], written["min-depth"]) == (str(encoder), 0.69, 1)
    assert "protocol" not in written  # what has no value
    other = tmp_path / "mine.safetensors"
    again = run("train", "--config", trained[0].with_suffix(".run") / "config.toml", "-o", other)
    assert again.exit_code == 0, again.output
    first, second = load_model(trained[0]), load_model(other)
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        np.testing.assert_allclose(tensor, second.tensors[name], rtol=1e-5, atol=1e-6)


def test_the_model_keeps_what_it_gives_of_a_fixed_image(trained, encoder: Path, tmp_path: Path):
    model = load_model(Path(shutil.copy(trained[0], tmp_path)))
    shutil.copy(encoder, tmp_path)
    expected = run_reference(model, fixed_images(224))[:, : len(model.panel)]
    np.testing.assert_allclose(self_test_of(model), expected, rtol=1e-4, atol=1e-5)


def test_int8_is_refused(trained, encoder: Path, tmp_path: Path):
    shutil.copy(encoder, tmp_path)
    model = shutil.copy(trained[0], tmp_path)
    refused = run("predict", SLIDE, "-m", model, "--precision", "int8", "-o", tmp_path / "out")
    assert refused.exit_code != 0
    assert "for M2ORT alone" in refused.stderr


@pytest.mark.parametrize("engine", ["eager", "openvino"])
def test_it_predicts_a_slide_with_its_encoder_at_hand(trained, encoder: Path, tmp_path: Path, engine: str):
    model = shutil.copy(trained[0], tmp_path)
    call = ["predict", SLIDE, "-m", model, "--pitch", "200", "--engine", engine, "-o", tmp_path / "out"]
    alone = run(*call)
    assert alone.exit_code != 0
    assert "tiny.pt2 beside it" in alone.stderr
    shutil.copy(encoder, tmp_path)
    done = run(*call)
    assert done.exit_code == 0, done.output
    result = read_result(tmp_path / "out" / "CMU-1-Small-Region.h5ad")
    assert set(GENES) <= {gene.name for gene in result.genes}
    assert np.ptp(result.expression(GENES[-1])) > 0


def test_a_run_with_another_encoder_is_another_run(trained, dataset: Path, tmp_path: Path):
    changed = Tiny()
    with torch.no_grad():
        changed.edges.weight.add_(1)
    other = export(tmp_path / "tiny.pt2", changed, px=224)
    again = run("train", dataset, "-o", trained[0], "--encoder", other, *OPTIONS)
    assert again.exit_code == 1
    assert "sha256" in again.stderr


def test_what_is_missing_is_said(dataset: Path, encoder: Path, tmp_path: Path):
    out = tmp_path / "m.safetensors"
    for more, said in (
        ((), "--mpp"),
        (("--mpp", "0.69", "--arch", "dictionary"), "takes no --arch"),
        (("--mpp", "0.69", "--encoder-mean", "127,127,127"), "--encoder-mean 127,127,127"),
        (("--mpp", "0.69", "--encoder-std", "half"), "--encoder-std half"),
    ):
        refused = run("train", dataset, "-o", out, "--encoder", encoder, *more)
        assert refused.exit_code == 2, refused.output
        assert said in refused.stderr
    for alone in (("--arch", "encoder"), ("--encoder-licence", "MIT")):
        refused = run("train", dataset, "-o", out, *alone)
        assert refused.exit_code == 2
        assert "--encoder FILE" in refused.stderr
    missing = run("train", dataset, "-o", out, "--encoder", tmp_path / "nowhere.pt2", "--mpp", "0.69")
    assert missing.exit_code == 2
    assert "nowhere.pt2" in missing.stderr


def test_of_many_spots_sums_that_all_parts_share_give_the_same_model(
    dataset: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("stpredict.training.programmes.STRENGTHS", np.array([100.0]))
    call = ("train", dataset, "--encoder", encoder, *OPTIONS, "--threads", "1", "-o")
    assert run(*call, tmp_path / "all.safetensors").exit_code == 0
    monkeypatch.setattr("stpredict.training.head_sums.FEW_SPOTS", 5)
    monkeypatch.setattr("stpredict.training.head_sums.SPOTS_PER_FEATURE", 0)
    made = SharedSums.of_parts
    monkeypatch.setattr(
        SharedSums, "of_parts",
        lambda tiles, parts, *more: made(tiles, parts, *more) if len(parts) > 1 else pytest.fail("nothing is shared"),
    )  # fmt: skip
    assert run(*call, tmp_path / "sums.safetensors").exit_code == 0
    whole, sums = (load_model(tmp_path / f"{name}.safetensors") for name in ("all", "sums"))
    assert whole.tensors.keys() == sums.tensors.keys()
    for name, tensor in whole.tensors.items():
        np.testing.assert_allclose(tensor, sums.tensors[name], rtol=1e-3, atol=1e-3)
    for one, other in zip(whole.card["held_out"], sums.card["held_out"], strict=True):
        scores = [held_out["rows"]["model"]["depth_controlled"] for held_out in (one, other)]
        assert scores[0] == pytest.approx(scores[1], abs=2e-3)
        assert one["spots"] == other["spots"]
