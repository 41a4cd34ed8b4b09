from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_assessment import made_up
from test_training import train

from stpredict.errors import UsageError
from stpredict.model.file import load_model
from stpredict.statistics.objectives import make_objective
from stpredict.statistics.spatial import neighbour_mean
from stpredict.training.folds import check_leaks
from stpredict.training.protocols import find_protocol

pytestmark = pytest.mark.usefixtures("tiny_architecture")


@pytest.fixture(scope="module")
def dataset(small_dataset: Path) -> Path:
    return small_dataset


def many_sections(patients: int, each: int):
    tiles, _, _ = made_up(patients, truth=True)
    number = np.arange(len(tiles.spot)) % 60 // (60 // each)
    return replace(tiles, section=np.char.add(tiles.patient.astype(str), number.astype(str)))


def test_the_split_of_m2ort_is_by_section_and_shares_patients():
    tiles = many_sections(5, 4)
    (fold,) = find_protocol("m2ort").folds(tiles, 7)
    order = sorted(set(tiles.section))
    random.Random(7).shuffle(order)
    assert fold.train == sorted(order[:12])
    assert fold.validation == sorted(order[12:14])
    assert fold.test_sections == sorted(order[14:])
    assert fold.kind == "section"
    with pytest.raises(UsageError, match="--allow-patient-leak"):
        check_leaks([fold], allow_patient_leak=False)
    (alone,) = find_protocol("m2ort").folds(many_sections(5, 1), 0)
    assert alone.kind == "patient"


def test_the_split_of_triplex_is_by_patient_and_chooses_on_the_test():
    for patients, parts in ((4, 4), (11, 8)):
        folds = find_protocol("triplex").folds(many_sections(patients, 2), 0)
        assert len(folds) == parts
        assert all(fold.validation == fold.test_sections and fold.leak for fold in folds)
    with pytest.raises(UsageError, match="two patients or more"):
        find_protocol("triplex").folds(many_sections(1, 2), 0)
    with pytest.raises(UsageError, match="--protocol hist: choose m2ort, triplex"):
        find_protocol("hist")


def test_labels_are_smoothed_within_the_section():
    lattice = np.array([(x, y) for x in range(5) for y in range(5)], dtype=float)
    section = np.repeat(["A", "B"], 25)
    smooth = neighbour_mean(section, np.vstack([lattice, lattice]))
    np.testing.assert_allclose(smooth.sum(axis=1), 1)
    values = np.random.default_rng(0).normal(size=50)
    around = (abs(lattice - lattice[12]) <= 1).all(axis=1)
    assert (smooth @ values)[12] == pytest.approx(values[:25][around].mean())
    counts, depth = np.random.default_rng(1).poisson(5, (50, 3)).astype(float), np.full(50, 1000.0)
    fit = section == "A"
    rough, soft = (
        make_objective("standardised-mse", counts, depth, section, fit, weights) for weights in (None, smooth)
    )
    rough_labels, soft_labels = (x.offset + x.slope * x.targets for x in (rough, soft))
    np.testing.assert_allclose(soft_labels, smooth @ rough_labels)
    with pytest.raises(UsageError, match="--smooth-labels"):
        make_objective("nb", counts, depth, section, fit, smooth)


def test_a_protocol_refuses_what_it_sets_itself(dataset, tmp_path):
    call = ("--protocol", "triplex", "--objective", "nb", "--folds", "section", "--panel", "variance")
    refused = train(dataset, tmp_path / "m.safetensors", *call, "--hold-out", "B1", "--smooth-labels")
    assert refused.exit_code == 2
    assert "leave --objective, --folds, --hold-out, --smooth-labels out." in refused.stderr


def test_a_paper_protocol_is_trained_and_printed_with_its_leak(dataset, tmp_path):
    done = train(dataset, tmp_path / "m.safetensors", "--protocol", "triplex", "--epochs", "1")
    assert done.exit_code == 0, done.output
    lines = done.stderr.splitlines()
    start = lines.index("paper protocol triplex, ln(1 + counts per 10,000), mean over 2 held-out parts")
    assert lines[start + 1].startswith("LEAK: the epochs")
    assert lines[start + 2].split() == ["per", "spot", "RMSE", "PCC(M)", "PCC(H)", "MSE", "MAE"]
    card = load_model(tmp_path / "m.safetensors").card
    assert card["objective"] == "mse"
    assert card["loss"] == "squared error on expression"
    (paper,) = (line for line in lines if line.startswith("the paper's: patients or parts"))
    (ours,) = (line for line in lines if line.startswith("ours: the optimiser (AdamW)"))
    assert "squared error" in paper
    assert "squared error" not in ours
    assert card["training"]["smooth_labels"]
    assert all("test sections" in fold["leak"] for fold in card["held_out"])


def test_the_split_of_m2ort_is_trained_and_printed_with_its_leak(dataset, tmp_path):
    out = tmp_path / "m.safetensors"
    call = ("--protocol", "m2ort", "--epochs", "1", "--seed", "0")
    refused = train(dataset, out, *call)
    assert refused.exit_code == 2
    assert "--protocol m2ort tests and trains on the same patient" in refused.stderr
    done = train(dataset, out, *call, "--allow-patient-leak")
    assert done.exit_code == 0, done.output
    lines = done.stderr.splitlines()
    assert "hold out section m2ort: train on A1, epochs chosen on B1" in lines  # sections in random.Random(0)'s order
    start = lines.index("paper protocol m2ort, ln(1 + CPM), mean over 1 held-out part")
    assert lines[start + 1] == (
        "LEAK: sections of one patient are on both sides of the split; the mean of the same patient's training "
        "sections passes the published networks"
    )
    assert lines[start + 2].split() == ["per", "spot", "RMSE", "PCC(M)", "PCC(H)", "MSE", "MAE"]
    (fold,) = load_model(out).card["held_out"]
    assert (fold["kind"], fold["train"], fold["validation"], fold["test"]) == ("section", ["A1"], ["B1"], ["A2"])
    printed = {line[:30].strip(): line[30:].split() for line in lines[start + 3 : start + 3 + len(fold["rows"])]}
    for name in ("model", "training mean"):
        row = fold["rows"][name]
        per_spot, rmse = (f"{row[key]:.3f}" for key in ("log_cpm_per_spot", "log_cpm_rmse"))
        assert printed[name][:2] == [per_spot, rmse]
    assert all(float(value) > 0 for value in printed["model"][4:])
