from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from calls import run
from conftest import GENES, SLIDE, make_quick_model
from results_to_draw import predict
from scipy import stats

from stpredict.data.counts import in_memory
from stpredict.data.dataset import read_dataset
from stpredict.data.tiles import Tiles
from stpredict.engines.engine import EngineRequest
from stpredict.errors import DatasetError, UsageError
from stpredict.evaluation.assessment import assess
from stpredict.evaluation.measured import Predicted, Shares
from stpredict.evaluation.report import show, write
from stpredict.evaluation.scores import score_all
from stpredict.model.file import load_model
from stpredict.result.file import read_result
from stpredict.statistics import metrics
from stpredict.statistics.normalisation import NORMALISATIONS

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
    share = np.exp(rng.normal(0, 1, (n, genes))) * 0.01
    counts = rng.poisson(depth[:, None] * share)
    rest = np.maximum(depth - counts.sum(axis=1), 0).astype(int)
    names = [f"G{i}" for i in range(genes)]
    place = np.arange(n) % 60
    tiles = Tiles(
        path=None, patch_px=8, mpp=1.0, spot_diameter_um=100.0, pitch_um=200.0, spot=np.arange(n).astype(str),
        section=np.char.add(patient.astype(str), "s"), patient=patient,
        centres=np.stack([place % 8, place // 8], axis=1) * 100.0,
        genes=[*names, "REST"], counts=in_memory(np.column_stack([counts, rest])), unlabelled_section=np.array([]),
    )  # fmt: skip
    expression = np.log1p(1e6 * share) if truth else rng.normal(0, 1, (n, genes))
    shares = Shares(tiles.depth, NORMALISATIONS["total"])
    return tiles, Predicted(np.arange(n), names, expression, np.full(genes, 0.1), shares), rng.normal(size=(n, 52))


def test_a_predictor_that_knows_scores_its_ceiling_and_one_that_does_not_scores_nothing():
    tiles, knows, features = made_up(3, truth=True)
    found = score_all("t", [], tiles, knows, knows.index, features)
    assert found.rows["model"]["of_the_ceiling"] == pytest.approx(1, abs=0.1)
    assert abs(found.rows["ridge on colour and texture"]["depth_controlled"]) < 0.1
    assert "the model beats ridge on 100% of the genes" in found.notes
    assert not any("learnt nothing" in note for note in found.notes)
    tiles, guesses, features = made_up(3, truth=False)
    found = score_all("t", [], tiles, guesses, guesses.index, features)
    assert abs(found.rows["model"]["depth_controlled"]) < 0.1
    assert found.rows["training mean"]["depth_controlled"] is None  # it is the same for all spots


def test_intervals_are_over_patients_from_six_on():
    for patients in (5, 6):
        tiles, predicted, features = made_up(patients, truth=True)
        found = score_all("t", [], tiles, predicted, predicted.index, features)
        interval = found.rows["model"]["interval"]
        assert (interval is not None) == (patients >= 6)
        if interval:
            assert np.mean(interval) == pytest.approx(found.rows["model"]["depth_controlled"], abs=1e-3)
            assert interval[0] < found.rows["model"]["depth_controlled"] < interval[1]
            assert any(f"over {patients} patients" in note for note in found.notes)
            assert any("(" in line and " to " in line for line in show(found))
        else:
            assert any("single points" in note for note in found.notes)


def test_a_patient_of_many_sections_counts_once_in_the_mean_and_in_its_interval():
    tiles, predicted, features = made_up(6, truth=True)
    first = tiles.patient == "P0"
    expression = predicted.expression.copy()
    expression[first] = np.random.default_rng(1).normal(size=expression[first].shape)
    parts = np.char.add("part", (np.arange(first.sum()) % 10).astype(str))
    section = tiles.section.astype("U8")
    section[first] = parts
    many = score_all("t", [], replace(tiles, section=section), replace(predicted, expression=expression),
                     predicted.index, features)  # fmt: skip
    row = many.rows["model"]
    r = [
        metrics.depth_controlled_correlation(
            expression[own], tiles.panel_counts(predicted.panel)[own], tiles.depth[own], section[own]
        ).mean()
        for own in (tiles.patient == name for name in sorted(set(tiles.patient)))
    ]
    expected = stats.ttest_1samp(r, 0).confidence_interval()
    assert row["depth_controlled"] == pytest.approx(np.mean(r), abs=1e-3)
    np.testing.assert_allclose(row["interval"], expected, atol=1e-3)


def test_a_leak_leaves_out_intervals_of_new_patients():
    tiles, predicted, features = made_up(5, truth=True)
    found = score_all("t", ["LEAK: x"], tiles, predicted, predicted.index, features, leak=True)
    assert not found.whole["intervals"]
    assert not any("half_width" in name for name in found.per_gene)
    assert not any("did not have" in note or "noisy measurements" in note for note in found.notes)
    assert any("no prediction intervals" in note for note in found.notes)


def test_baselines_of_one_scored_section_are_trained_on_the_others():
    tiles, knows, features = made_up(3, truth=True)
    own = np.flatnonzero(tiles.section == "P1s")
    some = replace(knows, index=own, expression=knows.expression[own])
    one = score_all("t", [], tiles, some, knows.index, features)
    whole = score_all("t", [], tiles, knows, knows.index, features)
    assert set(one.rows) == set(whole.rows)
    of_section = next(found for found in whole.sections if found["section"] == "P1s")
    assert one.sections[0]["rows"] == of_section["rows"]
    assert any("other patients" in note for note in one.notes)


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
    assert "ridge on colour and texture" in result.rows
    assert any("other patients" in note for note in result.notes)
    model = assess_quietly(load_model(tiny_model_path), dataset)
    assert model.genes == GENES
    assert set(model.rows) == {
        "training mean", "depth (true)", "depth (ridge)", "ridge on colour and texture", "k nearest neighbours",
        "model"}  # fmt: skip
    only = np.flatnonzero([name == "GNAS" for name in model.genes])[0]
    assert np.isfinite(result.per_gene["depth_controlled"][only])


def test_what_the_table_says_of_a_model_that_knows_and_one_that_does_not():
    tiles, knows, features = made_up(4, truth=True)
    found = score_all("t", [], tiles, knows, knows.index, features)
    assert found.whole["genes_beyond_chance"] == found.whole["genes_tested"] == 12
    assert set(found.by_row) == {*found.rows, "noise ceiling"}
    between = found.whole["between"]["sections"]
    assert between["correlation"] > 0.5
    calibration = found.whole["calibration"]
    assert calibration["measured"][-1] > 2
    assert any("Moran's I" in note for note in found.notes)
    tiles, guesses, features = made_up(4, truth=False)
    found = score_all("t", [], tiles, guesses, guesses.index, features)
    assert found.whole["genes_beyond_chance"] <= 1
    assert found.whole["calibration"]["measured"][-1] < 1.3


def test_small_p_values_are_written_as_they_are(tmp_path):
    tiles, knows, features = made_up(2, truth=True)
    found = score_all("t", [], tiles, knows, knows.index, features)
    *_, table = write(found, tmp_path / "s", {})
    with table.open() as file:
        p = [float(row["p_value"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(sorted(p), sorted(found.per_gene["p_value"]), rtol=1e-3)
    assert 0 < max(p) < 1e-4


def test_prediction_intervals_need_patients():
    for patients, levels in ((3, []), (5, [0.8])):
        tiles, knows, features = made_up(patients, truth=True)
        found = score_all("t", [], tiles, knows, knows.index, features)
        assert [one["level"] for one in found.whole["intervals"]] == levels
        assert [name for name in found.per_gene if "half_width" in name] == [f"half_width_{x:.0%}" for x in levels]
    assert found.whole["intervals"][0]["coverage"] >= 0.8  # of few patients, they are wider than they need be
    assert any("noisy measurements" in note for note in found.notes)


def test_what_cannot_be_scored_is_counted():
    tiles, knows, features = made_up(2, truth=True)
    counts = tiles.counts.rows().toarray()
    counts[:, 0] = 0
    counts[0, :12] = 0
    found = score_all("t", [], replace(tiles, counts=in_memory(counts)), knows, knows.index, features)
    assert "1 of the genes never counted, which have no score" in found.notes
    assert "2 of 24 pairs of gene and section not counted, left out of the means" in found.notes
    assert "1 of the spots without counts in the panel, so no correlation across genes" in found.notes
    assert np.isnan(found.per_gene["depth_controlled"][0])
    assert all(one.gene != "G0" for one in found.maps)


def test_maps_are_of_the_best_the_middling_and_the_worst_genes():
    tiles, knows, features = made_up(3, truth=True)
    found = score_all("t", [], tiles, knows, knows.index, features)
    assert [one.kind for one in found.maps] == ["best"] * 2 + ["middling"] * 2 + ["worst"] * 2
    order = [found.genes[i] for i in np.argsort(-found.per_gene["depth_controlled"])]
    assert [one.gene for one in found.maps] == [order[i] for i in (0, 1, 5, 6, 10, 11)]
    for one in found.maps:
        r = np.corrcoef(one.predicted, one.measured)[0, 1]
        assert r == pytest.approx(one.in_section)
        assert len(one.centres) == 60


def test_patients_that_the_model_was_trained_on_are_refused(dataset, tmp_path):
    training = {"patients": ["A", "B"], "sections": ["A1", "B1"]}
    model = load_model(make_quick_model(tmp_path / "m.safetensors", training=training))
    with pytest.raises(UsageError, match=r"patients of these names \(A, B\).*--allow-patient-leak"):
        assess_quietly(model, dataset)
    found = assess_quietly(model, dataset, allow_patient_leak=True)
    assert any(note.startswith("LEAK") and note.endswith("on sections of these: A1, B1") for note in found.notes)
    assert "baselines were trained on the data set's other sections" in found.notes  # they know the patients, too
    assert "same-patient mean" not in found.rows  # B has one section


def test_patients_that_the_model_has_not_seen_are_scored_and_baselines_learn_from_the_others(dataset, tmp_path):
    model = load_model(make_quick_model(tmp_path / "m.safetensors", training={"patients": ["A"]}))
    found = assess_quietly(model, dataset)
    assert [section["section"] for section in found.sections] == ["B1"]
    assert "not scored, as the model was trained on patients of these names: A" in found.notes
    assert "baselines were trained on the data set's other patients" in found.notes
    assert "ridge on colour and texture" in found.rows


def test_sections_of_few_spots_are_left_out(dataset, tiny_model):
    whole = assess_quietly(tiny_model, dataset)
    depths = sorted(read_dataset(dataset)[0].counts.per_spot)
    found = assess_quietly(tiny_model, dataset, min_depth=int(depths[-5]))
    assert len(found.sections) < len(whole.sections)
    assert any("sections with fewer than 10 other spots are left out: A1" in note for note in found.notes)


def test_a_result_is_not_scored_on_another_slide(tiny_model, dataset, tmp_path):
    result = predict(tiny_model, tmp_path, SLIDE, pitch_um=200.0)
    other = tmp_path / "other"
    other.mkdir()
    for path in dataset.glob("B1*"):
        shutil.copy(path, other)
    with pytest.raises(DatasetError, match="holds only section B1, which is another one"):
        assess_quietly(result, other)


def test_of_the_ceiling_is_the_ratio_of_what_is_shown():
    tiles, knows, features = made_up(6, truth=True)
    found = score_all("t", [], tiles, knows, knows.index, features)
    assert found.rows["model"]["interval"]
    one = np.nanmean([metrics.noise_ceiling(*of) for of in patients_of(tiles, knows)])
    assert found.rows["model"]["of_the_ceiling"] == pytest.approx(
        found.rows["model"]["depth_controlled"] / one, rel=0.01
    )


def patients_of(tiles, predicted):
    for name in np.unique(tiles.patient):
        own = tiles.patient == name
        yield tiles.panel_counts(predicted.panel)[own], tiles.depth[own], tiles.section[own]


def test_data_that_do_not_fit_are_named(tiny_model, tmp_path, dataset):
    with pytest.raises(DatasetError, match="no spot has counts enough"):
        assess_quietly(tiny_model, dataset, min_depth=10**9)
    other = load_model(make_quick_model(tmp_path / "o.safetensors", names=["NONE1", "NONE2"], held_out=[]))
    with pytest.raises(DatasetError, match="none of its genes was measured"):
        assess_quietly(other, dataset)
    with pytest.raises(DatasetError, match="no such file"):
        assess_quietly(tiny_model, tmp_path / "gone")


def test_tiles_of_two_runs_are_evaluated_into_one_folder(tiny_model_path, dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = tmp_path / "small"
    small.mkdir()
    for path in dataset.glob("B1*"):
        shutil.copy(path, small)
    how = ("--min-depth", "1", "--engine", "eager", "-o", "out")
    for name in ("first", "second"):
        folder = Path(f"{name}.run")
        done = run("tile", small, "-m", tiny_model_path, "--mpp", "0.69", "-o", folder)
        assert done.exit_code == 0, done.output
        (folder / "small.tiles.h5").rename(folder / "dataset.tiles.h5")  # as train calls them
        done = run("evaluate", tiny_model_path, folder / "dataset.tiles.h5", *how, "--json")
        assert done.exit_code == 0, done.output
        told = json.loads(done.stdout)
        files = [f"out/tiny-{name}.{kind}" for kind in ("evaluation.html", "evaluation.json", "genes.csv")]
        assert told.pop("files") == files
        assert told == json.loads(Path(files[1]).read_text())
        assert {"model", "data_set", "min_depth", "title", "rows", "sections", "notes", "stpredict"} <= told.keys()
    monkeypatch.chdir(small)
    done = run("evaluate", tiny_model_path, ".", *how[:-1], tmp_path / "out")
    assert done.exit_code == 0, done.output
    names = {path.name for path in (tmp_path / "out").glob("*.json")}
    assert names == {f"tiny-{name}.evaluation.json" for name in ("first", "second", "small")}


def test_the_command_prints_the_tables_and_writes_the_files(tiny_model_path, dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("evaluate", tiny_model_path, dataset, "--min-depth", "1", "-o", "out", "--engine", "eager")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "tiny on her2st0"
    assert lines[2].startswith("training mean")
    assert sum(line.startswith("model ") for line in lines) == 2  # our scores, and the papers'
    found = json.loads((tmp_path / "out" / "tiny-her2st0.evaluation.json").read_text())
    assert found["rows"]["depth (true)"]["log_cpm_per_spot"] is None
    with (tmp_path / "out" / "tiny-her2st0.genes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["gene"] for row in rows) == sorted(GENES)
    scores = [float(row["depth_controlled"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert [float(row["p_value"]) <= float(row["false_discovery_rate"]) for row in rows] == [True] * len(rows)
    assert {"A1", "A2", "B1"} == {one["section"] for one in found["sections"]}
    worst = [one["rows"]["model"] for one in found["sections"]]
    assert worst == sorted(worst)
    assert found["whole"]["between"]["patients"] == {"correlation": None, "slope": None}
    assert len(found["whole"]["calibration"]["measured"]) == 10
    page = (tmp_path / "out" / "tiny-her2st0.evaluation.html").read_text()
    assert page.count("data:image/webp") == 6
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
