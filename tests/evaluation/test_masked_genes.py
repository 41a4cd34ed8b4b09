"""Scores on a data set of which some sections did not measure some of a model's genes."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lxml import html
from test_assessment import made_up

from stpredict.data.counts import in_memory
from stpredict.data.gene_mask import GeneMask
from stpredict.evaluation.report import write
from stpredict.evaluation.scores import score_all
from stpredict.evaluation.splits import NEIGHBOURS, RIDGE, SAME_PATIENT_MEAN, Split, evaluate_split, predict_baselines
from stpredict.statistics.objectives import make_objective

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
#: Of four patients of a section each, that did not measure some of twelve genes.
LACKING = {"P1s": [0, 1], "P2s": [0, 2], "P3s": [0]}


def partly(lacking=LACKING, patients: int = 4, seed: int = 0):
    """Tiles whose sections lack genes, and a prediction that knows the shares, or nothing of the first gene."""
    tiles, knows, features = made_up(patients, truth=True, seed=seed)
    sections = sorted(set(tiles.section))
    table = np.ones((len(sections), len(tiles.genes)), dtype=bool)
    counts = tiles.counts.rows().toarray()
    for name, genes in lacking.items():
        table[sections.index(name), genes] = False
        counts[np.ix_(tiles.section == name, genes)] = 0
    kept = replace(tiles, counts=in_memory(counts), measured=GeneMask(sections, table))
    features[:, 0] = knows.expression[:, 3]
    return kept, replace(knows, shares=replace(knows.shares, depth=kept.depth)), features


@pytest.fixture(scope="module")
def assessed():
    tiles, knows, features = partly()
    return score_all("t", [], tiles, knows, knows.index, features), tiles, knows, features


def test_each_gene_scores_as_in_the_sections_that_measured_it_alone(assessed):
    found, tiles, knows, features = assessed
    for gene, sections in ((0, ["P0s"]), (1, ["P0s", "P2s", "P3s"]), (2, ["P0s", "P1s", "P3s"])):
        own = np.flatnonzero(np.isin(tiles.section, sections))
        some = replace(knows, index=own, expression=knows.expression[own])
        alone = score_all("t", [], tiles, some, knows.index, features)
        for name in ("depth_controlled", "log_cpm_pearson", "log_cpm_spearman", "p_value", "moran_measured"):
            assert found.per_gene[name][gene] == pytest.approx(alone.per_gene[name][gene]), name
    assert found.per_gene["sections"].tolist() == [1, 3, 3, *[4] * 9]
    assert found.rows["model"]["of_the_ceiling"] == pytest.approx(1, abs=0.1)


def test_the_words_say_where_genes_were_measured(assessed, tmp_path: Path):
    found = assessed[0]
    said = "9 genes measured in all 4 sections, 3 in 1 to 3 of 4; each is scored in the sections that measured it"
    assert said in found.notes
    assert "the baselines know nothing of 1 gene, measured in none of the sections that they learn from" in found.notes
    assert not any("not counted" in note for note in found.notes)  # which is another thing
    page, everything, table = write(found, tmp_path / "s", {})
    with table.open() as file:
        rows = {row["gene"]: row for row in csv.DictReader(file)}
    assert (rows["G0"]["sections"], rows["G5"]["sections"]) == ("1", "4")
    assert rows["G0"]["ridge_depth_controlled"] == ""
    assert rows["G0"]["depth_controlled"] != ""
    assert rows["G0"]["half_width_80%"] == ""  # of one patient
    assert rows["G5"]["half_width_80%"] != ""
    sections = {one["section"]: one["genes"] for one in json.loads(everything.read_text())["sections"]}
    assert sections == {"P0s": 12, "P1s": 10, "P2s": 10, "P3s": 11}
    head, *body = html.fromstring(page.read_text()).xpath("//section[@id='sections']//tr")
    place = [cell.text for cell in head].index("genes")
    assert {row[0].text: row[place].text for row in body} == {name: str(n) for name, n in sections.items()}


def test_maps_say_how_many_sections_measured_the_gene():
    tiles, knows, features = partly({"P1s": [3], "P2s": [3]}, patients=3)
    rng = np.random.default_rng(0)
    knows.expression[:] = rng.normal(size=knows.expression.shape)
    knows.expression[:, 3] = np.log1p(1e6 * tiles.panel_counts(["G3"])[:, 0] / tiles.depth)
    knows.expression[np.isnan(knows.expression)] = 0
    (best, *_) = score_all("t", [], tiles, knows, knows.index, features).maps
    assert (best.gene, best.section, best.sections) == ("G3", "P0s", "the 1 of 3 sections that measured it")


def test_where_no_gene_was_measured_in_patients_enough_there_are_no_intervals():
    """Each of four patients lacks a third of the genes, so that none was measured in all four."""
    lacking = {f"P{patient}s": list(range(patient % 3, 12, 3)) for patient in range(4)}
    tiles, knows, features = partly(lacking)
    found = score_all("t", [], tiles, knows, knows.index, features)
    assert found.whole["intervals"] == []
    assert "prediction intervals of 80% need 4 patients; there are 4" not in found.notes
    assert "no gene was measured in the 4 patients that prediction intervals of 80% need" in found.notes


def split_of_last(tiles, knows) -> Split:
    counts = tiles.panel_counts(knows.panel)
    test = tiles.patient == "P3"
    return Split(counts, tiles.depth, tiles.section, tiles.patient, tiles.centres, ~test, test)


def test_baselines_learn_each_gene_where_it_was_measured():
    tiles, knows, features = partly({**LACKING, "P0s": [0, 4], "P3s": []})
    split = split_of_last(tiles, knows)
    objective = make_objective("residuals", split.counts, split.depth, split.section, split.train)
    rows = predict_baselines(split, features, objective)
    assert SAME_PATIENT_MEAN not in rows
    for name, values in rows.items():
        assert np.isnan(values[:, 0]).all() == (name != "depth (true)"), name  # measured in none of theirs
        assert np.isfinite(values[:, 1:]).all(), name
    for gene in (1, 2, 4):
        rows_there = ~np.isnan(split.counts[:, gene])
        alone = Split(*(x[rows_there] for x in (split.counts[:, [gene]], split.depth, split.section, split.patient,
                                                split.centres, split.train, split.test)))  # fmt: skip
        of_gene = make_objective("residuals", alone.counts, alone.depth, alone.section, alone.train)
        expected = predict_baselines(alone, features[rows_there], of_gene)
        for name in ("training mean", RIDGE, NEIGHBOURS):
            np.testing.assert_allclose(rows[name][:, gene], expected[name][:, 0], rtol=1e-6, err_msg=name)


def test_a_held_out_part_says_what_it_did_not_measure():
    tiles, knows, features = partly()
    split = split_of_last(tiles, knows)
    objective = make_objective("residuals", split.counts, split.depth, split.section, split.train)
    found = evaluate_split(knows.expression[split.test], split, features, objective)
    assert (found["genes"], found["genes_not_measured"], found["genes_without_counts"]) == (12, 1, 0)
    assert found["per_gene"]["sections"] == [0, *[1] * 11]
    assert found["per_gene"]["correlation"][0] is None
    assert found["per_gene"]["noise_ceiling"][0] is None
    json.dumps(found, allow_nan=False)
    whole = replace(tiles, measured=None)
    split = split_of_last(whole, knows)
    objective = make_objective("residuals", split.counts, split.depth, split.section, split.train)
    found = evaluate_split(knows.expression[split.test], split, features, objective)
    assert "genes_not_measured" not in found
    assert "sections" not in found["per_gene"]
