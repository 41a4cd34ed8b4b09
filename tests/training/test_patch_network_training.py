"""Networks of a trunk and a head train, resume, predict and are evaluated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from calls import run
from conftest import GENES, SLIDE
from patch_networks import PATCH_PX, TINY

from stpredict.data.cutting import write_tiles
from stpredict.data.dataset import read_dataset
from stpredict.model.file import load_model
from stpredict.networks import ARCHITECTURES, architecture_config, make_network
from stpredict.result.file import read_result

OPTIONS = "--epochs 1 --teach-patches 24 --batch-size 16 --threads 1 --min-depth 1 --panel-size 6"


@pytest.fixture(autouse=True)
def tiny_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, sizes in TINY.items():
        monkeypatch.setitem(ARCHITECTURES, name, sizes)


@pytest.fixture(scope="module")
def tiles(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiles") / "small.tiles.h5"
    sections = [section for section in read_dataset(dataset) if section.name != "A2"]
    write_tiles(sections, path, patch_px=PATCH_PX, mpp=2, unlabelled=12, threads=1, report=print)
    return path


def train(tiles: Path, out: Path, *more: object):
    return run("train", tiles, "-o", out, *OPTIONS.split(), *more)


@pytest.fixture(scope="module")
def trained(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "mine.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "stnet", TINY["stnet"])
        done = train(tiles, out, "--arch", "stnet")
    assert done.exit_code == 0, done.output
    return out


def test_the_card_says_what_it_is(trained: Path):
    card = load_model(trained).card
    assert card["architecture"] == "stnet"
    assert card["pixel_scaling"] == "RGB uint8 / 255, less ImageNet's mean, over its deviation"
    assert [fold["name"] for fold in card["held_out"]] == ["A", "B"]
    shown = run("models", "show", trained)
    assert shown.exit_code == 0
    assert "mine: stnet, 6 genes" in shown.stdout


def test_statistics_of_batch_norms_stay_in_single_precision(trained: Path):
    tensors = load_model(trained).tensors
    kinds = {name: tensor.dtype for name, tensor in tensors.items() if "norm0" in name or "conv0" in name}
    assert kinds["trunk.features.norm0.running_var"] == np.float32
    assert kinds["trunk.features.conv0.weight"] == np.float16


@pytest.mark.parametrize("engine", ["eager", "openvino"])
def test_it_predicts_a_slide(trained: Path, tmp_path: Path, engine: str):
    call = ("predict", SLIDE, "-m", trained, "--pitch", 300, "--engine", engine, "--threads", 1, "-o", tmp_path)
    done = run(*call)
    assert done.exit_code == 0, done.output
    result = read_result(tmp_path / f"{SLIDE.stem}.h5ad")
    assert result.provenance["engine"] == engine
    assert np.isfinite(result.expression(result.genes[0].name)).all()


def test_it_is_evaluated(trained: Path, tiles: Path, tmp_path: Path):
    model = trained.with_suffix(".run") / "fold-2" / "model.safetensors"
    call = ("evaluate", model, tiles, "--allow-patient-leak", "--min-depth", 1, "--threads", 1, "-o", tmp_path)
    done = run(*call)
    assert done.exit_code == 0, done.output
    assert "ridge on colour and texture" in done.stdout


def test_a_killed_run_ends_as_if_undisturbed(trained: Path, tiles: Path, tmp_path: Path, monkeypatch):
    import stpredict.training.fit as room

    real, out = room.Log.add, tmp_path / "mine.safetensors"

    def die(self, stage, epoch, *arguments):
        real(self, stage, epoch, *arguments)
        if stage == "teach" and epoch == 2 and self.path.parent.name == "all":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(room.Log, "add", die)
        assert train(tiles, out, "--arch", "stnet").exit_code == 130
    assert train(tiles, out, "--arch", "stnet").exit_code == 0
    whole, resumed = load_model(trained), load_model(out)
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(tensor, resumed.tensors[name], err_msg=name)


@pytest.mark.parametrize("architecture", [name for name in TINY if name != "stnet"])
def test_each_begins_with_the_users_weights(tiles: Path, tmp_path: Path, architecture: str):
    torch.manual_seed(5)
    theirs = make_network(architecture_config(architecture, n_genes=1, patch_px=PATCH_PX)).trunk.state_dict()
    weights, out = tmp_path / "trunk.safetensors", tmp_path / "mine.safetensors"
    safetensors.torch.save_file(theirs, weights)
    options = [option for option in OPTIONS.split() if option not in ("--teach-patches", "24")]
    done = run("train", tiles, "-o", out, *options, "--arch", architecture, "--folds", "none", "--encoder-weights",
               weights, "--encoder-licence", "BSD-3-Clause", "--learning-rate", 1e-9)  # fmt: skip
    assert done.exit_code == 0, done.output
    model = load_model(out)
    assert set(model.panel) <= set(GENES)
    known = model.card["training"]["encoder_weights"]
    assert (known["file"], known["licence"], len(known["sha256"])) == (weights.name, "BSD-3-Clause", 64)
    for name, tensor in theirs.items():
        if name.endswith("weight"):
            np.testing.assert_allclose(model.tensors[f"trunk.{name}"], tensor, atol=2e-3, err_msg=name)


def test_what_does_not_fit_is_refused(tiles: Path, dataset: Path, tmp_path: Path):
    out, weights = tmp_path / "m.safetensors", tmp_path / "w.pth"
    torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, weights)
    odd = tmp_path / "odd.tiles.h5"
    write_tiles(read_dataset(dataset)[:1], odd, patch_px=72, mpp=2, threads=1, report=print)
    for source, more, said in (
        (tiles, ("--arch", "stnet", "--encoder-weights", weights), "w.pth: holds no trunk of --arch stnet"),
        (tiles, ("--arch", "resnet50", "--encoder-weights", weights), "w.pth: not the trunk of --arch resnet50"),
        (tiles, ("--encoder-weights", weights), "only for a network that has a trunk, --arch triplex"),
        (tiles, ("--arch", "stnet", "--attach-teacher"), "--attach-teacher: only for --arch triplex"),
        (tiles, ("--arch", "stnet", "--counts-only", dataset), "stnet learns nothing from counts alone"),
        (tiles, ("--arch", "stnet", "--head", "linear"), "stnet has a head of its own"),
        (odd, ("--arch", "vit-b16", "--folds", "none"), "--arch vit-b16: its tokens"),
    ):
        refused = run("train", source, "-o", out, *more)
        assert refused.exit_code == 2, refused.output
        assert said in refused.stderr
