from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from conftest import GENES, make_model
from scipy.sparse import csr_array
from test_cli import run

from stpredict import metrics
from stpredict.assessment import Predicted, assess, score_all
from stpredict.assessment_report import show
from stpredict.data.dataset import read_dataset
from stpredict.data.tiles import Tiles
from stpredict.engines import EngineRequest
from stpredict.errors import DatasetError, UsageError
from stpredict.result import read_result
from stpredict.weights import load_model

EAGER = EngineRequest("eager", "fp32")


def assess_quietly(what, dataset, **changes):
    asked = {"min_depth": 1, "allow_patient_leak": False, "engine": EAGER, "report": lambda _: None, **changes}
    return assess(what, dataset, **asked)


def made_up(patients: int, truth: bool, seed: int = 0):
    """Tiles of one section per patient, and a prediction that knows the shares, or nothing."""
    rng = np.random.default_rng(seed)
    n, genes = 60 * patients, 12
    patient = np.repeat([f"P{i}" for i in range(patients)], 60)
    depth = np.round(rng.lognormal(8, 0.7, n))
    shares = np.exp(rng.normal(0, 1, (n, genes))) * 0.01
    counts = rng.poisson(depth[:, None] * shares)
    rest = np.maximum(depth - counts.sum(axis=1), 0).astype(int)
    names = [f"G{i}" for i in range(genes)]
    tiles = Tiles(
        path=None, patch_px=8, mpp=1.0, spot_diameter_um=100.0, pitch_um=200.0, spot=np.arange(n).astype(str),
        section=np.char.add(patient.astype(str), "s"), patient=patient, centres=np.zeros((n, 2)),
        genes=[*names, "REST"], counts=csr_array(np.column_stack([counts, rest])), unlabelled_section=np.array([]),
    )  # fmt: skip
    expression = np.log1p(1e6 * shares) if truth else rng.normal(0, 1, (n, genes))
    return tiles, Predicted(np.arange(n), names, expression, np.full(genes, 0.1)), rng.normal(size=(n, 52))


def test_a_predictor_that_knows_scores_its_ceiling_and_one_that_does_not_scores_nothing():
    tiles, knows, features = made_up(3, truth=True)
    found = score_all("t", [], tiles, knows, features)
    assert found.rows["model"]["of_the_ceiling"] == pytest.approx(1, abs=0.1)
    assert abs(found.rows["ridge on colour and texture"]["depth_controlled"]) < 0.1
    assert "the model beats ridge on 100% of the genes" in found.notes
    assert not any("learnt nothing" in note for note in found.notes)
    tiles, guesses, features = made_up(3, truth=False)
    found = score_all("t", [], tiles, guesses, features)
    assert abs(found.rows["model"]["depth_controlled"]) < 0.1
    assert found.rows["training mean"]["depth_controlled"] == 0


def test_intervals_are_over_patients_from_six_on():
    for patients in (2, 5, 6, 9):
        tiles, predicted, features = made_up(patients, truth=True)
        found = score_all("t", [], tiles, predicted, features)
        interval = found.rows["model"]["interval"]
        assert (interval is not None) == (patients >= 6)
        if interval:
            assert interval[0] < found.rows["model"]["depth_controlled"] < interval[1]
            assert any(f"over {patients} patients" in note for note in found.notes)
            assert any("(" in line and " to " in line for line in show(found))
        else:
            assert any("single points" in note for note in found.notes)


def test_a_model_and_its_result_at_the_same_spots_score_the_same(tiny_model_path, dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sections = {section.name: section for section in read_dataset(dataset)}
    one = sections["B1"]
    lines = ["x,y", *(f"{x},{y}" for x, y in one.centres)]
    (tmp_path / "spots.csv").write_text("\n".join(lines))
    done = run("predict", one.image, "-m", tiny_model_path, "--spots", "spots.csv", "--mpp", one.mpp.x, "--engine",
               "eager", "--precision", "fp32")  # fmt: skip
    assert done.exit_code == 0, done.output
    result = assess_quietly(read_result(tmp_path / "B1.h5ad"), dataset)
    assert "depth (true)" in result.rows
    assert any("one section" in note for note in result.notes)
    model = assess_quietly(load_model(tiny_model_path), dataset)
    assert model.genes == GENES
    assert set(model.rows) == {
        "training mean", "depth (true)", "depth (ridge)", "ridge on colour and texture", "model"}  # fmt: skip
    only = np.flatnonzero([name == "GNAS" for name in model.genes])[0]
    assert np.isfinite(result.per_gene["depth_controlled"][only])


def test_patients_that_the_model_was_trained_on_are_refused(dataset, tmp_path):
    model = load_model(make_model(tmp_path / "m.safetensors", training={"patients": ["A", "Z"]}))
    with pytest.raises(UsageError, match=r"patients of these names \(A\).*--allow-patient-leak"):
        assess_quietly(model, dataset)
    found = assess_quietly(model, dataset, allow_patient_leak=True)
    assert any(note.startswith("LEAK") for note in found.notes)


def test_data_that_do_not_fit_are_named(tiny_model, tmp_path, dataset):
    with pytest.raises(DatasetError, match="no spot has counts enough"):
        assess_quietly(tiny_model, dataset, min_depth=10**9)
    other = load_model(make_model(tmp_path / "o.safetensors", names=["NONE1", "NONE2"], held_out=[]))
    with pytest.raises(DatasetError, match="none of its genes was measured"):
        assess_quietly(other, dataset)
    with pytest.raises(DatasetError, match="no such file"):
        assess_quietly(tiny_model, tmp_path / "gone")


def test_the_command_prints_the_table_and_writes_both_files(tiny_model_path, dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("evaluate", tiny_model_path, dataset, "--min-depth", "1", "-o", "out", "--engine", "eager")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "tiny on her2st0"
    assert lines[2].startswith("training mean")
    assert sum(line.startswith("model ") for line in lines) == 1
    found = json.loads((tmp_path / "out" / "tiny-her2st0.evaluation.json").read_text())
    assert found["rows"]["depth (true)"]["log_cpm_per_spot"] is None
    with (tmp_path / "out" / "tiny-her2st0.genes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["gene"] for row in rows) == sorted(GENES)
    scores = [float(row["depth_controlled"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert found["data_set"] == "her2st0"
    assert found["min_depth"] == 1
    assert len(found["model"]) == 64
    again = run("evaluate", tiny_model_path, dataset, "--min-depth", "2", "-o", "out", "--engine", "eager")
    assert again.exit_code == 1
    assert "tiny-her2st0.evaluation.json: exists; --overwrite" in again.stderr


def test_ranks_within_sections_agree_with_scipy():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    counts, depth = rng.poisson(3, (50, 4)).astype(float), rng.integers(500, 900, 50).astype(float)
    predicted, section = rng.normal(size=(50, 4)).round(1), np.repeat(["a", "b"], 25)
    ours = metrics.log_cpm_rank_correlation(predicted, counts, depth, section)
    observed = metrics.log_cpm(counts, depth)
    theirs = [
        np.mean([spearmanr(predicted[section == s, g], observed[section == s, g])[0] for s in "ab"]) for g in range(4)
    ]
    np.testing.assert_allclose(ours, theirs)
