from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import run
from conftest import GENES, SLIDE
from encoders_to_try import export
from held_out import check_reported_correlation
from torchrun import in_two_processes

from stpredict.comparison.request import Comparison, system_settings
from stpredict.data.tiles import read_tiles
from stpredict.engines.eager import load_network
from stpredict.engines.engine import EngineRequest
from stpredict.evaluation.assessment import predict_spots
from stpredict.evaluation.measured import Shares
from stpredict.model.file import load_model
from stpredict.model.show import show_card
from stpredict.networks import ARCHITECTURES
from stpredict.networks.trunks.resnet import ResNet
from stpredict.result.file import read_result
from stpredict.statistics.normalisation import NORMALISATIONS
from stpredict.training import triplex as room
from stpredict.training.panels import Panel
from stpredict.training.settings import Settings

pytestmark = pytest.mark.usefixtures("small_patches")
PATCH_PX = 96
TINY = {
    "network": "triplex", "channels": 8, "fusion_heads": 2, "global_depth": 2, "global_heads": 2, "neighbour_depth": 1,
    "neighbour_heads": 2, "trunk_width": 2,
}  # fmt: skip
OPTIONS = (
    "--arch triplex-tiny --epochs 2 --unlabelled 30 --teach-patches 30 --batch-size 16 --learning-rate 1e-3 "
    "--threads 1 --mpp 1 --min-depth 1"
)


@pytest.fixture(autouse=True)
def tiny_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "triplex-tiny", TINY)


def train(source: Path, out: Path, *more: object):
    return run("train", source, "-o", out, *OPTIONS.split(), *more)


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("run") / "mine.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "triplex-tiny", TINY)
        done = train(dataset, out, "--hold-out", "A2", "--allow-patient-leak")
    assert done.exit_code == 0, done.output
    return out, done


def test_it_trains_with_folds_and_the_card_says_how(trained):
    out, done = trained
    model = load_model(out)
    assert {fold["name"] for fold in model.card["held_out"]} == {"A", "B", "A2"}
    assert model.card["architecture"] == "triplex-tiny"
    assert model.card["training"]["fusion_teacher"] == "detached"
    assert "encoder_weights" not in model.card["training"]
    assert "held-out B" in done.stderr
    assert any("triplex-tiny" in line for line in show_card(model))
    with (out.with_suffix(".run") / "fold-2" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    stages = [row["stage"] for row in rows]
    assert list(dict.fromkeys(stages)) == ["teach", "select", "train"]
    assert [row["validation"] != "" for row in rows if row["stage"] == "select"] == [True, True]
    network = load_network(model)
    different = [
        not torch.equal(one, other)
        for (name, one), other in zip(network.trunk.named_parameters(), network.frozen.parameters(), strict=True)
        if "conv" in name
    ]
    assert all(different)  # both began with what was taught, one was trained on


def test_predicting_at_the_held_out_spots_gives_the_reported_correlation(trained, dataset: Path, tmp_path: Path):
    check_reported_correlation(trained[0].with_suffix(".run") / "fold-3", dataset, tmp_path, 0.5)


@pytest.fixture(scope="module")
def untested(dataset: Path, tmp_path_factory: pytest.TempPathFactory):
    """A model of which nothing was held out."""
    out = tmp_path_factory.mktemp("run") / "mine.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "triplex-tiny", TINY)
        assert train(dataset, out, "--folds", "none").exit_code == 0
    return out


def test_two_processes_share_the_slides_and_train_as_one(dataset: Path, tmp_path: Path):
    start = (
        "from stpredict.networks import ARCHITECTURES; from stpredict.training import preparation;"
        f"from stpredict.cli import app; preparation.PATCH_PX = {PATCH_PX}; ARCHITECTURES['triplex-tiny'] = {TINY};"
        "app()"
    )
    quick = ("--epochs", 1, "--unlabelled", 0, "--teach-patches", 0, "--batch-size", 32, "--folds", "none")
    out, alone = tmp_path / "mine.safetensors", tmp_path / "alone.safetensors"
    printed = in_two_processes(start, "train", dataset, "-o", out, *OPTIONS.split(), *quick)
    assert printed == [f"{out}\n", ""]
    assert not (out.with_suffix(".run") / "all" / "surroundings").exists()
    assert train(dataset, alone, *quick).exit_code == 0
    losses = []
    for model in (out, alone):
        with (model.with_suffix(".run") / "all" / "log.csv").open() as file:
            losses.append({row["stage"]: float(row["loss"]) for row in csv.DictReader(file)})
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)  # some processors round to bf16


@pytest.mark.parametrize("cut", ["teach", "surroundings", "select", "train"])
def test_a_killed_run_ends_as_if_undisturbed(untested: Path, dataset: Path, tmp_path: Path, cut: str, monkeypatch):
    import stpredict.prediction.surroundings as around
    import stpredict.training.fit as fitting

    out, real_add, real_look = tmp_path / "mine.safetensors", fitting.Log.add, around.look_around

    def die_in_training(self, stage, epoch, *arguments):
        real_add(self, stage, epoch, *arguments)
        if stage == cut and epoch == 1:
            raise KeyboardInterrupt

    def die_around(folder, *arguments):
        found = real_look(folder, *arguments)
        if cut == "surroundings" and folder.name == "section-1":
            raise KeyboardInterrupt
        return found

    more = ("--folds", "none")
    with monkeypatch.context() as patch:
        patch.setattr(fitting.Log, "add", die_in_training)
        patch.setattr(around, "look_around", die_around)
        killed = train(dataset, out, *more)
        assert killed.exit_code == 130
        assert not out.exists()
        assert cut == "teach" or list(out.with_suffix(".run").rglob("features-*.npy"))
    assert train(dataset, out, *more).exit_code == 0
    assert not list(out.with_suffix(".run").rglob("features-*.npy"))
    whole, resumed = load_model(untested), load_model(out)
    for name, tensor in whole.tensors.items():
        np.testing.assert_allclose(resumed.tensors[name], tensor, atol=2e-3, err_msg=name)


def test_predict_render_and_evaluate(trained, dataset: Path, tmp_path: Path):
    slide, out = tmp_path / SLIDE.name, tmp_path / "out"
    shutil.copy(SLIDE, slide)
    done = run("predict", slide, "-m", trained[0], "-o", out, "--genes", "GNAS", "--pitch", 200, "--render")
    assert done.exit_code == 0, done.output
    result = read_result(out / f"{SLIDE.stem}.h5ad")
    assert result.provenance["engine"] == "eager"
    assert np.ptp(result.expression("GNAS")) > 0
    assert (out / f"{SLIDE.stem}.GNAS.overlay.tif").exists()
    model = trained[0].with_suffix(".run") / "fold-1" / "model.safetensors"
    scored = run("evaluate", model, dataset, "--allow-patient-leak", "--min-depth", 1, "-o", out)
    assert scored.exit_code == 0, scored.output
    assert "model" in scored.stdout


def test_evaluation_sees_each_spot_among_all_of_its_section(trained, dataset: Path, tmp_path: Path):
    folder = trained[0].with_suffix(".run")
    tiles, model = read_tiles(folder / "dataset.tiles.h5"), load_model(folder / "fold-1" / "model.safetensors")
    rows = np.flatnonzero(tiles.section == "A1")[::-3]
    request = EngineRequest("eager", batch_size=16)
    shares = Shares(tiles.depth, NORMALISATIONS[Settings.normalisation])
    some, every = (
        predict_spots(model, tiles, index, shares, request, print, dataset, tmp_path)
        for index in (np.sort(rows), np.arange(len(tiles.spot)))
    )
    np.testing.assert_allclose(some.expression, every.expression[np.sort(rows)], atol=1e-5)


def test_weights_of_the_users_own_begin_the_trunk_and_are_known_to_the_card(dataset: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "triplex-tiny", {**TINY, "trunk_width": 64})
    torch.manual_seed(5)
    theirs = ResNet()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    monkeypatch.setattr(room, "look_around_together", lambda *_: pytest.fail("far enough"))
    begun: dict[str, torch.Tensor] = {}
    real = room.freeze_trunk

    def keep(network):
        real(network)
        begun.update(network.frozen.state_dict())
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "freeze_trunk", keep)
    out = tmp_path / "mine.safetensors"
    call = ["train", dataset, "-o", out, "--arch", "triplex-tiny", "--encoder-weights", tmp_path / "resnet18.pth",
            "--encoder-licence", "BSD-3", "--mpp", 1, "--threads", 1, "--folds", "none"]  # fmt: skip
    assert run(*call).exit_code == 130
    known = json.loads((out.with_suffix(".run") / "run.json").read_text())
    assert known["encoder_weights"]["licence"] == "BSD-3"
    assert len(known["encoder_weights"]["sha256"]) == 64
    assert known["unlabelled"] == 0
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_allclose(begun[name], tensor, atol=1e-3)


def test_what_does_not_apply_is_refused(trained, dataset: Path, tmp_path: Path):
    out = tmp_path / "m.safetensors"
    tiles = trained[0].with_suffix(".run") / "dataset.tiles.h5"
    weights = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(1)}, weights)
    for call, said in (
        ((tiles, "-o", out, "--arch", "triplex"), "looks at the slides around the spots"),
        ((dataset, "-o", out, "--arch", "triplex", "--counts-only", dataset), "learns nothing from counts alone"),
        ((dataset, "-o", out, "--attach-teacher"), "--arch triplex"),
        ((dataset, "-o", out, "--encoder-weights", weights), "--arch triplex"),
        ((dataset, "-o", out, "--arch", "triplex", "--encoder-weights", weights), "holds no trunk of --arch triplex"),
        ((dataset, "-o", out, "--arch", "triplex", "--encoder-weights", weights, "--teach-patches", 3), "not taught"),
    ):
        refused = run("train", *call)
        assert refused.exit_code == 2, refused.output
        assert said in refused.stderr
    for more, said in (
        (("--engine", "openvino"), "runs in eager alone"),
        (("--precision", "bf16"), "needs fp32"),
        (("--precision", "int8"), "for M2ORT alone"),
        (("--tta",), "looks at the slide around them"),
    ):
        refused = run("predict", SLIDE, "-m", trained[0], "-o", tmp_path, *more)
        assert refused.exit_code == 2, refused.output
        assert said in refused.stderr
    for more, said in (((), "does not hold the slides"), (("--protocol", "hest"), "features of patches alone")):
        refused = run("evaluate", trained[0], tiles, "--allow-patient-leak", *more)
        assert refused.exit_code == 2, refused.output
        assert said in refused.stderr


@pytest.mark.parametrize("taught_by", ["dictionary", "encoder"])
def test_the_places_of_its_trunks_map_can_be_taught_densely(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taught_by: str
):
    monkeypatch.setattr(room, "teach_trunk", lambda *_: pytest.fail("colour and texture of whole patches"))
    frozen: dict[str, torch.Tensor] = {}
    real = room.freeze_trunk

    def keep(network):
        real(network)
        assert not any(parameter.requires_grad for parameter in network.frozen.parameters())
        frozen.update({name: tensor.clone() for name, tensor in network.frozen.state_dict().items()})

    monkeypatch.setattr(room, "freeze_trunk", keep)
    out, more = tmp_path / "mine.safetensors", ("--folds", "none", "--teach", "dense", "--teach-patches", 120)
    if taught_by == "encoder":
        torch.manual_seed(0)
        more = (*more, "--teacher", export(tmp_path / "map.pt2", torch.nn.Conv2d(3, 6, 32, stride=32), px=PATCH_PX))
    done = train(dataset, out, *more)
    assert done.exit_code == 0, done.output
    with (out.with_suffix(".run") / "all" / "log.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["stage"] == "teach"]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    model = load_model(out)
    assert model.card["training"]["teach"] == "dense"
    assert "gene_programmes" not in model.card["training"]  # its head is trained, not fitted
    assert model.card["training"].get("teacher", {"file": None})["file"] == (
        None if taught_by == "dictionary" else "map.pt2"
    )
    network = load_network(model)
    for name, tensor in network.frozen.state_dict().items():
        if "num_batches" not in name:
            np.testing.assert_allclose(tensor, frozen[name], atol=1e-3, rtol=1e-3)
    assert not torch.equal(network.trunk.conv1.weight, network.frozen.conv1.weight)
    assert not list(out.with_suffix(".run").rglob("lessons.npy"))


def test_by_default_it_learns_colour_and_texture(untested: Path, dataset: Path, tmp_path: Path):
    assert load_model(untested).card["training"]["teach"] == "ridge"
    request = Comparison(dataset, tmp_path, ["triplex"], 1, Settings(), Panel(), "patient")
    assert not system_settings(request, "triplex", 0).trunk_taught_densely
    refused = train(dataset, tmp_path / "m.safetensors", "--teacher", SLIDE)
    assert refused.exit_code == 2
    assert "--teacher: triplex-tiny learns what a teacher sees only with --teach dense" in refused.stderr


def test_the_teacher_can_be_attached(untested: Path, dataset: Path, tmp_path: Path):
    out = tmp_path / "mine.safetensors"
    assert train(dataset, out, "--folds", "none", "--attach-teacher").exit_code == 0
    one, other = load_model(untested), load_model(out)
    assert other.card["training"]["fusion_teacher"] == "attached"
    assert set(other.panel) == set(GENES)
    assert not np.array_equal(one.tensors["head.weight"], other.tensors["head.weight"])


def test_a_run_of_a_version_without_the_norm_is_not_continued(untested: Path, dataset: Path, tmp_path: Path):
    out = tmp_path / "mine.safetensors"
    shutil.copytree(untested.with_suffix(".run"), out.with_suffix(".run"))
    record = out.with_suffix(".run") / "run.json"
    known = json.loads(record.read_text())
    del known["neighbour_norm"]
    record.write_text(json.dumps(known))
    refused = train(dataset, out, "--folds", "none")
    assert refused.exit_code == 1
    assert "without neighbour_norm instead of with" in refused.stderr
