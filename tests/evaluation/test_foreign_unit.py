"""Predictions in a unit that no measurement has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import GENES, make_quick_model
from test_assessment import assess_quietly, made_up

from stpredict.evaluation.report import write
from stpredict.evaluation.scores import score_all
from stpredict.model.file import load_model


def test_a_prediction_in_a_unit_that_no_measurement_has_is_scored_by_what_needs_none(tmp_path: Path):
    tiles, knows, features = made_up(3, truth=True)
    same = score_all("same", [], tiles, knows, np.arange(len(tiles.spot)), features)
    shares = replace(knows.shares, foreign_unit="twice what they say")
    other = replace(knows, expression=2 * knows.expression + 7, shares=shares)
    found = score_all("other", [], tiles, other, np.arange(len(tiles.spot)), features)
    for key in ("depth_controlled", "log_cpm_pearson", "log_cpm_spearman"):
        assert found.rows["model"][key] == pytest.approx(same.rows["model"][key], abs=1e-3)
    for key in ("log_cpm_per_spot", "log_cpm_rmse", "mse", "mae"):
        assert found.rows["model"][key] is None
        assert same.rows["model"][key] is not None
    assert found.rows["ridge on colour and texture"]["log_cpm_rmse"] is not None
    (said,) = (note for note in found.notes if "twice what they say" in note)
    assert "correlations of each gene" in said
    assert not any("slope" in note for note in found.notes if note != said)
    assert {path.suffix for path in write(found, tmp_path / "other", {})} == {".html", ".json", ".csv"}


def test_a_models_unit_of_its_own_does_not_keep_it_from_being_scored(dataset: Path, tmp_path: Path):
    unit, measured = "log2 of their counts", [gene != GENES[0] for gene in GENES]
    genes = {"training_mean": None, "training_spread": None, "display_range": None, "measured_in_training": measured}
    foreign = make_quick_model(tmp_path / "foreign.safetensors", expression_unit=unit, genes=genes)
    found = assess_quietly(load_model(foreign), dataset)
    assert unit in "".join(found.notes)
    assert found.genes == GENES[1:]
    assert np.isfinite(found.by_row["model"]).any()
