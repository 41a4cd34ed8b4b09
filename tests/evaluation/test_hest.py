from __future__ import annotations

import json

import numpy as np
import pytest
from calls import run
from scipy import stats

from stpredict.evaluation.hest import score_depth, score_features, standardised_dispersion


def test_dispersions_are_those_of_scanpy():
    rng = np.random.default_rng(0)
    level = rng.uniform(0.05, 8, 400)
    shape = np.where(np.arange(400) < 40, 0.5, 20)
    counts = rng.poisson(rng.gamma(shape, level / shape, (300, 400))).astype(float)
    counts[:, 399] = 0
    excess = standardised_dispersion(counts)
    assert np.isnan(excess[399])
    assert set(np.argsort(-np.nan_to_num(excess, nan=-9))[:20]) <= set(range(40))
    scanpy = pytest.importorskip("scanpy", reason="scanpy is not installed")
    table = scanpy.AnnData(np.log1p(counts))
    scanpy.pp.highly_variable_genes(table, flavor="seurat", n_top_genes=50)
    theirs = table.var["dispersions_norm"].to_numpy()
    known = np.isfinite(theirs) & np.isfinite(excess)
    assert known.sum() > 390
    np.testing.assert_allclose(excess[known], theirs[known], rtol=1e-3, atol=1e-3)


def test_features_that_know_score_and_features_that_do_not_do_not():
    rng = np.random.default_rng(1)
    patient = np.repeat(["A", "B", "C"], 100)
    hidden = rng.normal(size=(300, 4))
    targets = hidden @ rng.normal(size=(4, 50)) + rng.normal(size=(300, 50)) * 0.1
    knows = score_features(np.hstack([hidden, rng.normal(size=(300, 20))]), targets, patient)
    assert set(knows) == {"A", "B", "C"}
    assert min(knows.values()) > 0.95
    assert abs(np.mean(list(score_features(rng.normal(size=(300, 24)), targets, patient).values()))) < 0.1
    targets[patient == "B", 0] = 3.0  # constant there: left out of that patient's mean
    assert np.isfinite(score_features(hidden, targets, patient)["B"])


def test_depth_is_pooled_over_a_patients_sections():
    rng = np.random.default_rng(2)
    depth, patient = rng.lognormal(8, 1, 90), np.repeat(["A", "B"], 45)
    targets = np.log1p(rng.poisson(depth[:, None] * 0.002, (90, 5)))
    expected = np.mean([stats.pearsonr(np.log1p(depth[:45]), targets[:45, g])[0] for g in range(5)])
    assert score_depth(depth, targets, patient)["A"] == pytest.approx(expected)


def test_the_command_prints_its_own_table(tiny_model_path, dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = ("evaluate", tiny_model_path, dataset, "--protocol", "hest", "-o", "out")
    done = run(*call)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "tiny on her2st0, protocol hest"
    assert lines[1].split() == ["correlation", "per", "gene", "mean", "A", "B"]
    assert "CPM" not in "".join(lines[:5])
    found = json.loads((tmp_path / "out" / "tiny-her2st0.hest.json").read_text())
    assert set(found["rows"]) == {"depth (true)", "52 colour and texture features", "features of tiny"}
    assert all(-1 <= r <= 1 for row in found["rows"].values() for r in row.values())
    assert run(*call).exit_code == 1
    refused = run(*call, "--engine", "eager", "--precision", "auto", "--min-depth", "5")
    assert refused.exit_code == 2
    assert "--protocol hest has its own settings; leave --engine, --min-depth out." in refused.stderr
    other = run("evaluate", tiny_model_path, dataset, "--protocol", "m2ort")
    assert other.exit_code == 2
    assert "belong to train" in other.stderr
