"""Networks with a bank of measured spots train, resume, predict and are evaluated, and say whose spots they hold."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import run
from conftest import SLIDE

from stpredict.data.cutting import write_tiles
from stpredict.data.dataset import read_dataset
from stpredict.data.tiles import Tiles, read_tiles
from stpredict.engines.eager import run_reference
from stpredict.errors import UsageError
from stpredict.model.file import load_model
from stpredict.networks import architecture_config, make_network
from stpredict.networks.bleep import Bleep
from stpredict.networks.egn import Egn
from stpredict.result.file import read_result
from stpredict.statistics.metrics import log_cpm, spot_correlation
from stpredict.training.anonymous import numbered, without_names
from stpredict.training.folds import Fold
from stpredict.training.retrieval import (
    Measurements,
    check_exemplars,
    fill_bank,
    find_exemplars,
    groups_apart,
    predict_apart,
)

PATCH_PX = 64
BLEEP = "bleep:nearest=5:projection=8:trunk=resnet18:trunk_width=2"
EGN = "egn:exemplars=3:channels=16:depth=2:heads=2:mlp_dim=16:bridge_heads=2:bridge_dim=4:trunk=resnet18:trunk_width=2"
OPTIONS = "--epochs 1 --teach-patches 24 --batch-size 16 --threads 1 --min-depth 1 --panel-size 6 --licence CC0"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiles(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiles") / "small.tiles.h5"
    write_tiles(read_dataset(dataset), path, patch_px=PATCH_PX, mpp=2, unlabelled=12, threads=1, report=print)
    return path


def train(tiles: Path, out: Path, *more: object):
    return run("train", tiles, "-o", out, *OPTIONS.split(), *more)


@pytest.fixture(scope="module")
def bleep(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "mine.safetensors"
    done = train(tiles, out, "--arch", BLEEP)
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture(scope="module")
def egn(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "hidden.safetensors"
    done = train(tiles, out, "--arch", EGN, "--folds", "none", "--anonymous")
    assert done.exit_code == 0, done.output
    return out


def test_the_bank_is_of_the_training_spots_and_the_card_says_whose(bleep: Path, tiles: Path):
    model, measured = load_model(bleep), read_tiles(tiles)
    assert model.card["training"]["bank"] == {"spots": len(measured.spot), "genes": 6, "of_each": "the embedding"}
    observed = log_cpm(measured.panel_counts(model.panel), measured.depth)
    np.testing.assert_allclose(model.tensors["head.bank.expression"], observed, atol=0.01)
    fold = load_model(bleep.with_suffix(".run") / "fold-2" / "model.safetensors")
    assert fold.card["held_out"][0]["name"] == "B"
    assert fold.card["training"]["bank"]["spots"] == int((measured.patient == "A").sum())
    shown = run("models", "show", bleep).stdout
    assert f"of {len(measured.spot)} spots; licence of the data: CC0" in shown
    assert "holds measurements of patients (A, B): the embedding and expression of 6 genes" in shown
    assert model.card["parameters"]["link"] == "identity"


@pytest.mark.parametrize("engine", ["eager", "openvino"])
@pytest.mark.parametrize("which", ["bleep", "egn"])
def test_it_predicts_a_slide(which: str, engine: str, tmp_path: Path, request: pytest.FixtureRequest):
    model = request.getfixturevalue(which)
    call = ("predict", SLIDE, "-m", model, "--pitch", 300, "--engine", engine, "--threads", 1, "-o", tmp_path)
    done = run(*call)
    assert done.exit_code == 0, done.output
    result = read_result(tmp_path / f"{SLIDE.stem}.h5ad")
    assert result.provenance["engine"] == engine
    assert result.provenance["card"]["training"]["bank"]["spots"] > 0
    assert np.isfinite(result.expression(result.genes[0].name)).all()


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_other_precisions_are_refused(bleep: Path, tmp_path: Path, precision: str):
    refused = run("predict", SLIDE, "-m", bleep, "--pitch", 300, "--precision", precision, "-o", tmp_path)
    assert refused.exit_code != 0
    assert "needs fp32" in refused.output or "for M2ORT alone" in refused.output


def test_what_is_said_of_held_out_spots_is_what_the_folds_model_says(bleep: Path, tiles: Path):
    fold, found = bleep.with_suffix(".run") / "fold-2", read_tiles(tiles)
    scores = json.loads((fold / "scores.json").read_text())
    assert scores["test"] == ["B1"]
    model, rows = load_model(fold / "model.safetensors"), np.flatnonzero(found.section == "B1")
    said = run_reference(model, found.read_patches(rows))[:, : len(model.panel)].astype(float)
    _, rmse = spot_correlation(said, found.panel_counts(model.panel)[rows], found.depth[rows])
    assert scores["rows"]["model"]["log_cpm_rmse"] == pytest.approx(rmse, abs=0.01)


def test_a_killed_run_ends_as_if_undisturbed(bleep: Path, tiles: Path, tmp_path: Path, monkeypatch):
    import stpredict.training.fit as room

    real, out = room.Log.add, tmp_path / "mine.safetensors"

    def die(self, stage, epoch, *arguments):
        real(self, stage, epoch, *arguments)
        if stage == "select":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(room.Log, "add", die)
        assert train(tiles, out, "--arch", BLEEP).exit_code == 130
    assert train(tiles, out, "--arch", BLEEP).exit_code == 0
    whole, resumed = load_model(bleep), load_model(out)
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(tensor, resumed.tensors[name], err_msg=name)


def test_an_anonymous_card_names_nobody(egn: Path, tiles: Path, tmp_path: Path):
    card = load_model(egn).card
    assert card["training"]["patients"] == ["patient 1", "patient 2"]
    assert card["training"]["sections"] == ["section 1", "section 2", "section 3"]
    assert card["training"]["bank"]["of_each"] == "frozen features"
    with (egn.with_suffix(".run") / "names.csv").open() as file:
        assert {row["called"]: row["name"] for row in csv.DictReader(file)}["section 2"] == "A2"
    call = ("evaluate", egn, tiles, "--min-depth", 1, "--threads", 1, "-o", tmp_path)
    refused = run(*call)
    assert refused.exit_code == 2
    assert "does not name the patients" in refused.output
    allowed = run(*call, "--allow-patient-leak")
    assert allowed.exit_code == 0, allowed.output
    assert "LEAK: the model's card does not name the patients" in allowed.stdout


def test_anonymous_parts_are_numbered_too(tiles: Path):
    parts = [
        ("patient", "A", ["A1", "A2"], ["B1"]),
        ("section", "A2", ["A2"], ["A1", "B1"]),
        ("patient", "A+B", [], []),
    ]
    held_out = [
        {"kind": kind, "name": name, "test": test, "train": train, "validation": [], "spots": 5}
        for kind, name, test, train in parts
    ]
    card = without_names(
        {"training": {"sections": ["A1"], "patients": ["A"]}, "held_out": held_out}, numbered(read_tiles(tiles))
    )
    assert card["training"] == {"sections": ["section 1"], "patients": ["patient 1"], "anonymous": True}
    assert [fold["name"] for fold in card["held_out"]] == ["patient 1", "section 2", "patient 1+patient 2"]
    assert card["held_out"][1]["train"] == ["section 1", "section 3"]
    assert {fold["spots"] for fold in card["held_out"]} == {5}


def test_one_section_alone_gives_no_exemplars(tiles: Path, tmp_path: Path):
    refused = train(tiles, tmp_path / "mine.safetensors", "--arch", EGN)
    assert refused.exit_code == 2
    assert "without A there is one alone, B1" in refused.output
    assert not (tmp_path / "mine.run").exists()
    check_exemplars(EGN, read_tiles(tiles), [Fold("B", "patient", ["B1"])])
    check_exemplars("bleep", read_tiles(tiles), [Fold("A", "patient", ["A1", "A2"])])
    with pytest.raises(UsageError, match="more sections"):
        check_exemplars("egn", read_tiles(tiles), [Fold("m", "section", ["A1"], ["A2"], ["B1"])])


def told_apart(found: Tiles, rows: np.ndarray) -> Measurements:
    """Of each section other measurements: gene 0 tells its patient, gene 1 its section."""
    values = np.stack([found.patient == "B", found.section == "A2"], axis=1).astype(np.float32)
    return Measurements(values, values, groups_apart(found, rows), rows, seed=0)


def test_no_spot_is_predicted_from_its_own_patient_or_section(tiles: Path):
    found = read_tiles(tiles)
    network = make_network(architecture_config(BLEEP, n_genes=2, patch_px=PATCH_PX))
    assert isinstance(network, Bleep)
    everything = np.arange(len(found.spot))
    said = predict_apart(network, told_apart(found, everything), found, everything, CPU)
    np.testing.assert_array_equal(said[:, 0], found.patient == "A")
    assert network.config.bank == 0
    of_one = np.flatnonzero(found.patient == "A")
    said = predict_apart(network, told_apart(found, of_one), found, everything, CPU, keep=True)
    np.testing.assert_array_equal(said[of_one, 1], found.section[of_one] == "A1")
    assert network.config.bank == len(of_one)
    alone = np.flatnonzero(found.section == "B1")
    assert len(set(groups_apart(found, alone)[alone])) == 5


def test_exemplars_are_never_of_the_own_patient_or_section(tiles: Path):
    found = read_tiles(tiles)
    network = make_network(architecture_config(EGN, n_genes=2, patch_px=PATCH_PX))
    assert isinstance(network, Egn)
    features = torch.rand(len(found.spot), 16, generator=torch.Generator().manual_seed(0)).half()
    for rows, labels in (
        (np.arange(len(found.spot)), found.patient),
        (np.flatnonzero(found.patient == "A"), found.section),
    ):
        one = told_apart(found, rows)
        known = Measurements(one.targets, one.expression, one.group, rows, 0, features)
        nearest = find_exemplars(network, known, CPU)
        assert nearest.shape == (len(found.spot), 3)
        assert (labels[nearest[rows]] != labels[rows][:, None]).all()
        others = rows[labels[rows] != labels[rows[0]]]
        distance = (features[others].float() - features[rows[0]].float()).norm(dim=1)
        assert set(nearest[rows[0]]) == set(others[distance.argsort()[:3].numpy()])


def test_larger_banks_are_drawn_at_random(tiles: Path, monkeypatch):
    import stpredict.training.retrieval as room

    found = read_tiles(tiles)
    network = make_network(architecture_config(BLEEP, n_genes=2, patch_px=PATCH_PX))
    monkeypatch.setattr(room, "MAX_SPOTS", 10)
    everything = np.arange(len(found.spot))
    rows = fill_bank(network, told_apart(found, everything), everything)
    assert (len(rows), network.config.bank) == (10, 10)
    assert len(set(found.section[rows])) > 1
