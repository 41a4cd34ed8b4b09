from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from stpredict.evaluation import described, scores
from stpredict.evaluation.described import describe_drawn, is_described
from stpredict.evaluation.measured import Measured
from stpredict.evaluation.scores import score_rows
from stpredict.evaluation.splits import (
    MODEL,
    NEIGHBOURS,
    RIDGE,
    TRAINING_MEAN,
    TRUE_DEPTH,
    Split,
    evaluate_split,
    scores_of,
)
from stpredict.statistics.objectives import make_objective
from stpredict.statistics.sampling import draw_evenly


@pytest.fixture
def split() -> tuple[Split, np.ndarray]:
    """Two patients of two sections, of whom the second is the test, and features that tell of the counts."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(160, 4))
    depth = rng.uniform(200, 900, 160)
    counts = rng.poisson(depth[:, None] * np.exp(0.5 * features) / 9).astype(float)
    section = np.repeat(["A1", "A2", "B1", "B2"], 40).astype(object)
    centres = np.tile(np.c_[np.arange(40) % 7, np.arange(40) // 7] * 10.0, (4, 1))
    train = np.arange(160) < 80
    return Split(counts, counts.sum(axis=1), section, np.repeat(["A", "B"], 80), centres, train, ~train), features


def test_of_many_spots_some_of_each_section_are_described(monkeypatch):
    monkeypatch.setattr(described, "MOST_DESCRIBED", 6)
    patches = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    tiles = SimpleNamespace(section=np.repeat(["A", "B"], [6, 3]), read_patch=patches.__getitem__)
    found = describe_drawn(tiles, np.arange(9), 1)
    rows = is_described(found)
    assert [(tiles.section[rows] == name).sum() for name in "AB"] == [3, 3]
    np.testing.assert_array_equal(found[rows], describe_drawn(tiles, rows, 1))


def test_baselines_are_scored_where_they_are_described_and_the_model_everywhere(split):
    whole, features = split
    some = np.arange(160) % 3 > 0
    predicted = features[whole.test] + 0.1
    objective = make_objective("residuals", whole.counts, whole.depth, whole.section, whole.train)
    drawn = evaluate_split(predicted, whole, np.where(some[:, None], features, np.nan), objective)
    every = evaluate_split(predicted, whole, features, objective)
    fewer = replace(whole, train=whole.train & some, test=whole.test & some)
    alone = evaluate_split(predicted[some[80:]], fewer, features, objective)
    for row in (RIDGE, NEIGHBOURS):
        assert drawn["rows"][row] == alone["rows"][row]
        assert drawn["rows"][row]["depth_controlled"] > 0.2
    assert drawn["per_gene"]["ridge"] == alone["per_gene"]["ridge"]
    assert drawn["rows"]["model"] == every["rows"]["model"]
    assert drawn["rows"][TRAINING_MEAN] == every["rows"][TRAINING_MEAN]


def test_rows_of_an_assessment_hold_for_the_spots_that_they_say_something_of(split):
    whole, features = split
    measured = Measured(
        whole.counts, whole.depth, whole.section, whole.patient, whole.centres, whole.per, whole.section
    )  # fmt: skip
    some = np.arange(160) % 4 > 0
    every = np.ones(160, bool)
    rows, _ = score_rows(measured, every, features, np.where(some[:, None], features, np.nan), False)
    assert sum(piece.spots for piece in rows[RIDGE].pieces) == some.sum()
    assert np.nanmean(rows[RIDGE].controlled) > 0.2
    for row in (TRAINING_MEAN, MODEL):
        assert sum(piece.spots for piece in rows[row].pieces) == 160


def test_baselines_learn_from_no_more_spots_than_teach_them_much(split, monkeypatch):
    whole, features = split
    measured = Measured(
        whole.counts, whole.depth, whole.section, whole.patient, whole.centres, whole.per, whole.section
    )  # fmt: skip
    monkeypatch.setattr(scores, "MOST_TAUGHT", 80)
    taught = np.isin(np.arange(160), draw_evenly(whole.section, 80))
    known = np.where(taught[:, None], features, np.nan)
    rows, _ = score_rows(measured, np.ones(160, bool), features, known, False)
    for own, sections in ((whole.test, ("B1", "B2")), (whole.train, ("A1", "A2"))):
        rest = np.flatnonzero(own | taught)  # as if there were no other spots to learn from
        part = Split(
            whole.counts[rest], whole.depth[rest], whole.section[rest], whole.patient[rest], whole.centres[rest],
            ~own[rest], own[rest],
        )  # fmt: skip
        objective = make_objective("residuals", part.counts, part.depth, part.section, part.train)
        alone = evaluate_split(features[own], part, known[rest], objective)["rows"]
        for name, row in rows.items():
            assert scores_of(row.of(sections), name != TRUE_DEPTH)["log_cpm_rmse"] == alone[name]["log_cpm_rmse"], name
