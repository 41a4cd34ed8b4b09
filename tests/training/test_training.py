from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import run
from conftest import GENES
from held_out import check_reported_correlation
from patch_networks import PATCH_PX
from PIL import Image
from torchrun import free_port, in_two_processes

from stpredict.data.cutting import write_tiles
from stpredict.data.dataset import read_dataset
from stpredict.data.tiles import read_tiles
from stpredict.engines.eager import load_network
from stpredict.errors import UsageError
from stpredict.model.file import load_model
from stpredict.model.reliability import held_out_correlation, read_reliability, reliable_genes
from stpredict.model.show import show_card
from stpredict.networks import ARCHITECTURES
from stpredict.statistics.colour_texture import N_FEATURES, colour_texture_features
from stpredict.training.augmentation import augment, jitter_stain
from stpredict.training.folds import check_leaks, choose_validation, plan_folds

TINY = {"channels": 12, "depth": 2, "heads": 1, "head_dim": 12, "mixing": "per_level"}
OPTIONS = (
    "--arch m2ort-tiny --teach ridge --epochs 2 --unlabelled 40 --teach-patches 40 --batch-size 16 "
    "--learning-rate 1e-3 --threads 1 --min-depth 1"
)


pytestmark = pytest.mark.usefixtures("tiny_architecture")


@pytest.fixture(scope="module")
def dataset(small_dataset: Path) -> Path:
    return small_dataset


@pytest.fixture(scope="module")
def tiles(dataset: Path, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("tiles") / "mine.tiles.h5"
    write_tiles(read_dataset(dataset), path, patch_px=PATCH_PX, unlabelled=40, report=print)
    return read_tiles(path)


def train(source: Path, out: Path, *more: str):
    return run("train", str(source), "-o", str(out), *OPTIONS.split(), *more)


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("run") / "mine.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "m2ort-tiny", TINY)
        done = train(dataset, out, "--hold-out", "A2", "--allow-patient-leak", "--genes-required", "<&>")
    assert done.exit_code == 0, done.output
    return out, done


def test_the_card_holds_the_folds_beside_the_baselines(trained):
    out, done = trained
    model = load_model(out)
    assert set(model.panel) == set(GENES)
    folds = {fold["name"]: fold for fold in model.card["held_out"]}
    assert {name: fold["kind"] for name, fold in folds.items()} == {"A": "patient", "B": "patient", "A2": "section"}
    assert folds["A"]["train"] == ["B1"]
    assert folds["A"]["validation"] == []
    assert folds["B"]["validation"] == ["A2"]
    assert "same-patient mean" in folds["A2"]["rows"]
    assert "same-patient mean" not in folds["A"]["rows"]
    for fold in folds.values():
        assert fold["rows"]["training mean"]["depth_controlled"] is None  # it is the same for all spots
        assert abs(fold["counts_without_biology"]) < 0.3
        assert len(fold["per_gene"]["correlation"]) == len(model.panel)
    assert model.card["training"]["patients"] == ["A", "B"]
    assert np.isfinite(held_out_correlation(model.card)).all()
    assert done.stdout.strip() == str(out)
    assert "held-out B" in done.stderr


def test_the_log_and_the_curves(trained):
    folder = trained[0].with_suffix(".run")
    for name in ("fold-1", "fold-2", "fold-3", "all"):
        with (folder / name / "log.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert rows[0]["stage"] == "teach"
        assert rows[-1]["stage"] == "train"
        with Image.open(folder / name / "curves.png") as picture:
            assert picture.width > 500
    with (folder / "fold-2" / "log.csv").open() as file:
        assert [row["validation"] != "" for row in csv.DictReader(file) if row["stage"] == "select"] == [True, True]


def test_predicting_at_the_held_out_spots_gives_the_reported_correlation(trained, dataset: Path, tmp_path: Path):
    fold = trained[0].with_suffix(".run") / "fold-3"
    check_reported_correlation(fold, dataset, tmp_path, 1, "--engine", "eager", "--precision", "fp32", atol=5e-3)


@pytest.mark.parametrize("cut", ["teach", "select", "train"])
def test_a_killed_run_ends_as_if_undisturbed(trained, dataset: Path, tmp_path: Path, cut: str, monkeypatch):
    import stpredict.training.fit as room

    real, out = room.Log.add, tmp_path / "mine.safetensors"

    def die(self, stage, epoch, *arguments):
        real(self, stage, epoch, *arguments)
        if stage == cut and epoch == (1 if cut == "teach" else 2) and "fold-2" in str(self.path):
            raise KeyboardInterrupt

    more = ("--hold-out", "A2", "--allow-patient-leak", "--genes-required", "<&>")
    with monkeypatch.context() as patch:
        patch.setattr(room.Log, "add", die)
        killed = train(dataset, out, *more)
        assert killed.exit_code == 130
        assert not out.exists()
    assert train(dataset, out, *more).exit_code == 0
    whole, resumed = load_model(trained[0]), load_model(out)
    for name, tensor in whole.tensors.items():
        np.testing.assert_allclose(tensor, resumed.tensors[name], atol=2e-3)
    # Not to the bit: some processors round differently from run to run. Without the optimiser's state it is off by 0.2.
    for a, b in zip(whole.card["held_out"], resumed.card["held_out"], strict=True):
        assert a["epochs"] == b["epochs"]
        correlations = (np.array(fold["per_gene"]["correlation"], dtype=float) for fold in (a, b))
        np.testing.assert_allclose(*correlations, atol=0.02)


def test_a_typo_does_not_stand_in_the_way_of_its_correction(dataset: Path, tmp_path: Path):
    out = tmp_path / "mine.safetensors"
    for wrong in (
        ["--arch", "m3ort"],
        ["--objective", "residual"],
        ["--hold-out", "Z9"],
        ["--hold-out", "A2"],  # whose patient is also trained on
        ["--folds", "section"],
        ["--folds", "9"],
        ["--folds", "patients"],
        ["--panel", "size"],
        ["--genes-required", "GNASS"],
    ):
        refused = train(dataset, out, *wrong)
        assert refused.exit_code == 2, refused.output
        assert not (out.with_suffix(".run") / "run.json").exists()
    assert train(dataset, out, "--folds", "none", "--epochs", "1").exit_code == 0


def test_other_settings_and_existing_models_are_refused(trained, dataset: Path):
    out, _ = trained
    other = train(dataset, out, "--hold-out", "A2", "--allow-patient-leak", "--genes-required", "<&>", "--seed", "3")
    assert other.exit_code == 1
    assert "holds a run with other settings (seed 0 instead of 3); --overwrite" in other.stderr
    other = train(dataset, out, "--hold-out", "A2", "--allow-patient-leak", "--panel", "mean", "--panel-size", "3")
    told = (
        "other settings (with panel required instead of without, panel rule variance instead of mean, "
        "without panel size instead of with);"
    )
    assert told in other.stderr
    assert "--overwrite" in other.stderr


@pytest.mark.parametrize("objective", ["nb", "poisson", "mse"])
def test_other_objectives_train(tiles, tmp_path: Path, objective: str):
    done = train(tiles.path, tmp_path / "m.safetensors", "--objective", objective, "--folds", "none", "--epochs", "1")
    assert done.exit_code == 0, done.output
    model = load_model(tmp_path / "m.safetensors")
    assert model.card["objective"] == objective
    patches = torch.from_numpy(tiles.read_patches(range(8)))
    with torch.inference_mode():
        expression = load_network(model)(patches).numpy()[:, : len(model.panel)].mean(axis=0)
    # One epoch in, every gene is still near its training mean.
    np.testing.assert_allclose(expression, model.card["genes"]["training_mean"], atol=1.5)


def test_two_processes_train_as_one(tiles, tmp_path: Path):
    """Under torchrun each process takes its share of every batch. One call is taught by ridge, the other densely."""
    start = (
        "import os, sys; from stpredict.networks import ARCHITECTURES; from stpredict.cli import app\n"
        f"ARCHITECTURES['m2ort-tiny'] = {TINY}\n"
        "port, *call = sys.argv[1:]\n"
        "for teach in ('ridge', 'dense'):\n"
        "    app([*call, '-o', f'{teach}.safetensors', '--teach', teach], standalone_mode=False)\n"
        "    os.environ['MASTER_PORT'] = port\n"
    )
    one_left = len(tiles.spot) - 1  # the last batch has fewer spots than there are processes
    printed = in_two_processes(
        start, free_port(), "train", tiles.path, *OPTIONS.split(), "--folds", "none", "--batch-size", one_left,
        folder=tmp_path,
    )  # fmt: skip
    assert printed == ["ridge.safetensors\ndense.safetensors\n", ""]
    for teach in ("ridge", "dense"):
        out = tmp_path / f"{teach}.safetensors"
        training = load_model(out).card["training"]
        assert training["teach"] == teach
        assert training["epochs_used"] >= (1 if teach == "ridge" else 0)
        with (out.with_suffix(".run") / "all" / "log.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert {row["stage"] for row in rows} >= {"teach", "select"}
        assert all(np.isfinite(float(row["loss"])) for row in rows if row["epoch"] != "0")


def test_folds_share_nothing_they_should_not(tiles):
    folds = {fold.name: fold for fold in plan_folds(tiles, "patient", ["A1"])}
    assert (folds["A"].kind, folds["A"].test_sections) == ("patient", ["A1", "A2"])
    assert (folds["A1"].kind, folds["A1"].test_sections) == ("section", ["A1"])
    assert [fold.name for fold in plan_folds(tiles, "section", [])] == ["A1", "A2", "B1"]
    assert plan_folds(tiles, "none", []) == []
    with pytest.raises(UsageError, match="--hold-out Z"):
        plan_folds(tiles, "none", ["Z"])
    with pytest.raises(UsageError, match="holding out section A1 trains on the same patient"):
        check_leaks(list(folds.values()), allow_patient_leak=False)
    check_leaks(list(folds.values()), allow_patient_leak=True)
    check_leaks(plan_folds(tiles, "patient", ["B1"]), allow_patient_leak=False)
    assert [fold.name for fold in plan_folds(tiles, "patient", ["B1"])] == ["A", "B"]  # the same section
    assert choose_validation(tiles, ["A1", "A2"]) == ["A2"]
    assert choose_validation(tiles, ["A1"]) == []


def test_parts_are_of_whole_patients_and_about_as_large(tiles):
    patient = np.repeat(["P", "Q", "R", "S", "T"], [50, 30, 20, 10, 10])
    many = replace(tiles, patient=patient, section=np.char.add(patient, np.where(np.arange(120) % 2, "1", "2")))
    folds = plan_folds(many, "3")
    assert [fold.name for fold in folds] == ["P", "Q+T", "R+S"]
    assert {fold.kind for fold in folds} == {"patient"}
    assert sorted(name for fold in folds for name in fold.test_sections) == sorted(set(many.section))
    for wrong in ("1", "6"):
        with pytest.raises(UsageError, match="number of patients, which is 5"):
            plan_folds(many, wrong)


def test_the_card_says_how_reliable_each_gene_is(trained):
    out, done = trained
    model = load_model(out)
    found = read_reliability(model.card)
    assert "effective number of spots" in found.how
    assert (found.low < found.correlation).all()
    assert (found.correlation < found.high).all()
    by_fold = [fold["per_gene"]["ridge"] for fold in model.card["held_out"] if fold["kind"] == "patient"]
    np.testing.assert_allclose(found.ridge, np.mean(by_fold, axis=0), atol=1e-4)
    reliable = reliable_genes(model.card)
    assert reliable == [g for g, low, r, q in zip(model.panel, found.low, found.correlation, found.ridge, strict=True)
                        if low > 0 and r > q]  # fmt: skip
    assert "mean over 2 held-out parts by patient, depth-controlled correlation (lowest to highest):" in done.stderr
    assert any(f"{len(reliable)} of {len(model.panel)} genes are reliable" in line for line in show_card(model))


def test_the_eight_symmetries_are_eight():
    patch = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(1, 4, 4, 3)
    turned = augment(patch.repeat(8, axis=0), np.arange(8))
    assert len({patch.tobytes() for patch in turned}) == 8
    np.testing.assert_array_equal(turned[0], patch[0])


def test_jitter_changes_the_stains_and_leaves_glass_and_structure(region):
    torch.manual_seed(0)
    patches = torch.from_numpy(np.stack([region[500:724, 900:1124]] * 6))
    varied = jitter_stain(patches, 0.1).float()
    means = varied.mean(dim=(1, 2))
    assert (means.std(dim=0) > 1).all()
    assert (abs(means - patches.float().mean(dim=(1, 2))) < 40).all()
    correlation = np.corrcoef(varied[0].flatten(), patches[0].float().flatten())[0, 1]
    assert correlation > 0.95
    glass = torch.full((4, 8, 8, 3), 254, dtype=torch.uint8)
    assert (jitter_stain(glass, 0.1).float() >= 253).all()
    assert (jitter_stain(patches, 0.0).int() - patches.int()).abs().max() <= 1


def test_there_are_52_features_and_they_see_colour_and_texture(region):
    patches = np.stack([region[500:724, 900:1124], np.full((224, 224, 3), 200, np.uint8)])
    features = colour_texture_features(patches)
    assert features.shape == (2, N_FEATURES)
    assert np.isfinite(features).all()
    np.testing.assert_allclose(features[0, :3], patches[0].mean(axis=(0, 1)))
    np.testing.assert_allclose(features[1, 6:12], 0, atol=1e-6)  # no spread in a flat patch


def test_without_its_libraries_training_says_what_to_install(dataset: Path, tmp_path: Path):
    start = "import sys; sys.modules['sklearn'] = None; from stpredict.cli import app; app(sys.argv[1:])"
    call = [sys.executable, "-c", start, "train", dataset, "-o", tmp_path / "m.safetensors"]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 2
    assert "install stpredict with its extra [train]" in done.stderr
