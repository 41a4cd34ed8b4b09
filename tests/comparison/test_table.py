"""What the table makes of the jobs: means over parts and seeds, intervals over patients, and which seeds count."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from stpredict.comparison.cost import multiplications, parameters
from stpredict.comparison.jobs import FAILURE, SCORES, Job
from stpredict.comparison.request import BASELINES
from stpredict.comparison.table import make_rows
from stpredict.evaluation.splits import RIDGE
from stpredict.networks import architecture_config, make_network
from stpredict.slides.views import ONE_VIEW
from stpredict.training.folds import Fold

PATIENTS = "ABCDEF"


def job(folder: Path, system: str, patient: str, seed: int, score: float | None) -> Job:
    """A job that is done, with genes of which one scores more than its mean and one less, or failed if it has none."""
    made = Job(system, Fold(patient, "patient", [patient]), seed, folder / system / f"{patient}-{seed}")
    made.folder.mkdir(parents=True)
    if score is None:
        (made.folder / FAILURE).write_text(json.dumps({"reason": "too small."}))
        return made
    row = {
        "scores": {"depth_controlled": score, "log_cpm_rmse": 2 * score},
        "per_gene": [score - 0.1, score + 0.1, None],
        "per_patient": {patient: score},
    }
    found = {"fold": patient, "seed": seed, "genes": ["X", "Y", "Z"]}
    if system == BASELINES:
        found |= {"rows": {RIDGE: row}, "noise_ceiling": [0.5, 0.7, None]}
    else:
        cost = {"parameters": 10, "multiplications": 20, "spots_per_second": 5.0, "training_seconds": 1.0 + seed}
        found |= {"row": row, "epochs": 2 + seed, "cost": cost}
    (made.folder / SCORES).write_text(json.dumps(found))
    return made


def test_scores_are_means_over_patients_with_an_interval(tmp_path: Path):
    rng = np.random.default_rng(0)
    ridge, ours = rng.uniform(0.1, 0.2, 6), rng.uniform(0.2, 0.3, (2, 6))
    jobs = [job(tmp_path, BASELINES, p, 0, float(s)) for p, s in zip(PATIENTS, ridge, strict=True)]
    for seed in (0, 1):
        jobs += [job(tmp_path, "net", p, seed, float(s)) for p, s in zip(PATIENTS, ours[seed], strict=True)]
    (of_ridge, row), ceiling = make_rows(["net"], jobs)
    assert ceiling == pytest.approx({"X": 0.5, "Y": 0.7})
    assert of_ridge.name == RIDGE
    assert of_ridge.above_ridge is None
    assert row.scores["depth_controlled"] == pytest.approx(ours.mean())
    assert row.scores["log_cpm_rmse"] == pytest.approx(2 * ours.mean())
    expected = stats.t.interval(0.95, 5, ours.mean(axis=0).mean(), stats.sem(ours.mean(axis=0)))
    assert row.interval == pytest.approx(expected)
    assert row.between_seeds == pytest.approx(ours.mean(axis=1).std(ddof=1))
    assert row.per_gene == pytest.approx({"X": ours.mean() - 0.1, "Y": ours.mean() + 0.1})
    assert row.of_the_ceiling == pytest.approx(ours.mean() / 0.6)
    assert row.above_ridge == 1
    assert (row.seeds, row.epochs, row.costs["training_seconds"], row.reason) == (2, [2, 3], 1.5, None)


def test_few_patients_have_no_interval(tmp_path: Path):
    jobs = [job(tmp_path, BASELINES, p, 0, 0.1) for p in "AB"] + [job(tmp_path, "net", p, 0, 0.1) for p in "AB"]
    (_, row), _ = make_rows(["net"], jobs)
    assert (row.interval, row.between_seeds, row.above_ridge) == (None, None, 0)


def test_a_seed_counts_when_all_its_parts_are_done(tmp_path: Path):
    jobs = [job(tmp_path, BASELINES, p, 0, 0.1) for p in "AB"]
    jobs += [job(tmp_path, "net", "A", 0, 0.2), job(tmp_path, "net", "B", 0, 0.3)]
    jobs += [job(tmp_path, "net", "A", 1, 0.9), job(tmp_path, "net", "B", 1, None)]
    (_, row), _ = make_rows(["net"], jobs)
    assert row.scores["depth_controlled"] == pytest.approx(0.25)
    assert (row.seeds, row.reason) == (1, "too small. (1 of 4 jobs failed)")


def test_a_system_without_a_whole_seed_has_no_scores(tmp_path: Path):
    jobs = [job(tmp_path, BASELINES, p, 0, 0.1) for p in "AB"]
    undone = Job("net", Fold("B", "patient", ["B"]), 0, tmp_path / "net/B-0")
    (_, row), _ = make_rows(["net"], [*jobs, job(tmp_path, "net", "A", 0, 0.9), undone])
    assert (row.scores, row.per_gene, row.quartiles) == ({}, {}, None)
    assert row.reason == "1 of 2 jobs are not done yet."


@pytest.mark.parametrize(
    ("architecture", "n_parameters", "billions"),
    [("stnet", 7_210_106, 2.833), ("resnet50", 24_020_282, 4.088), ("m2ort-small", 6_293_770, 1.299)],
)
def test_costs_are_those_of_the_published_networks(architecture: str, n_parameters: int, billions: float):
    network = make_network(architecture_config(architecture, n_genes=250, patch_px=224))
    assert parameters(network) == n_parameters
    assert round(multiplications(network, 224, ONE_VIEW) / 1e9, 3) == billions
