from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from stpredict import DEFAULT_MODEL
from stpredict.errors import ModelFileError
from stpredict.model.card import objective_of
from stpredict.model.file import find_model, load_model
from stpredict.model.reliability import describe_reliability, read_reliability, reliable_genes
from stpredict.model.show import show_card

PANEL = ["A", "B", "C", "D"]


def fold(correlation, ridge=0.1, error=0.05, kind="patient"):
    count = len(correlation)
    return {
        "kind": kind,
        "per_gene": {"correlation": correlation, "ridge": [ridge] * count, "standard_error": [error] * count},
    }


def card_of(folds, **more):
    return {"name": "m", "panel": PANEL, "held_out": folds, "reliability": describe_reliability(folds, PANEL), **more}


def test_a_gene_is_reliable_if_its_interval_is_above_zero_and_it_beats_ridge():
    card = card_of([fold([0.3, 0.05, 0.09, None])])
    assert reliable_genes(card) == ["A"]
    found = read_reliability(card)
    np.testing.assert_allclose(found.low[:3], np.array([0.3, 0.05, 0.09]) - 1.96 * 0.05, atol=1e-4)
    assert np.isnan(found.low[3])
    assert "does not cover how patients differ" in found.how


def test_many_genes_that_are_not_predicted_are_not_reliable_by_chance():
    rng = np.random.default_rng(0)
    panel = [f"G{i}" for i in range(1000)]
    correlation = np.concatenate([np.full(20, 0.4), rng.normal(0, 0.05, 980)])
    folds = [fold(correlation.tolist(), ridge=0.0)]
    card = {"name": "m", "panel": panel, "held_out": folds, "reliability": describe_reliability(folds, panel)}
    assert (read_reliability(card).low > 0).sum() > 35
    assert panel[:20] == reliable_genes(card)[:20]
    assert len(reliable_genes(card)) <= 22


def test_errors_of_parts_combine_and_leaking_parts_do_not_count():
    folds = [fold([0.2] * 4), fold([0.4] * 4), fold([0.9] * 4, kind="section")]
    found = read_reliability(card_of(folds))
    np.testing.assert_allclose(found.correlation, 0.3)
    np.testing.assert_allclose(found.high - found.low, 2 * 1.96 * 0.05 / np.sqrt(2), atol=2e-4)
    assert "knew nothing of" not in found.how
    assert "not of patients that the model knew nothing of" in read_reliability(card_of(folds[2:])).how


def test_parts_without_an_error_have_no_interval():
    old = fold([0.3] * 4)
    del old["per_gene"]["standard_error"]
    assert np.isnan(read_reliability(card_of([old, fold([0.4] * 4)])).low).all()
    assert reliable_genes(card_of([old])) == []


def test_from_six_patients_on_the_interval_is_over_patients():
    rng = np.random.default_rng(0)
    folds = [fold([0.3 + spread * rng.normal() for spread in (0.01, 0.05, 0.1, 0.5)]) for _ in range(8)]
    found = read_reliability(card_of(folds))
    assert "over 8 held-out parts" in found.how
    assert (np.diff(found.high - found.low) > 0).all()
    values = [part["per_gene"]["correlation"][2] for part in folds]
    half = 2.3646 * np.std(values, ddof=1) / np.sqrt(8)
    assert found.high[2] - found.low[2] == pytest.approx(2 * half, abs=1e-3)
    p = [stats.ttest_1samp([part["per_gene"]["correlation"][g] for part in folds], 0).pvalue for g in range(4)]
    np.testing.assert_allclose(found.false_discovery_rate, stats.false_discovery_control(p), rtol=0.02)


@pytest.mark.parametrize("parts", [3, 8])
def test_parts_that_did_not_measure_a_gene_say_nothing_of_it(parts):
    rng = np.random.default_rng(1)
    folds = [fold(rng.normal(0.3, 0.1, 4).tolist()) for _ in range(parts)]
    for part in folds[:2]:
        for values in part["per_gene"].values():
            values[1] = None
    for part in folds:
        part["per_gene"]["correlation"][3] = None
    found, others = (read_reliability(card_of(some)) for some in (folds, folds[2:]))
    for name in ("correlation", "low", "high", "ridge"):
        assert getattr(found, name)[1] == pytest.approx(getattr(others, name)[1], abs=1e-4), name
    assert np.isnan([found.low[3], found.high[3], found.correlation[3]]).all()


def test_cards_that_do_not_say_are_still_read():
    model = load_model(find_model(DEFAULT_MODEL))
    model = replace(model, card={key: value for key, value in model.card.items() if key != "reliability"})
    assert read_reliability(model.card) is None
    assert reliable_genes(model.card) is None
    assert not any("reliable" in line for line in show_card(model))
    assert describe_reliability([], PANEL) is None


@pytest.mark.parametrize(
    "said", [{}, {"low": [1, 2]}, [], {"how": "", "low": [0.0] * 3, "high": [1.0] * 3, "ridge": [0.0] * 3},
             {"how": "", "low": [1.0] * 4, "high": [0.0] * 4, "ridge": [0.0] * 4},
             {"how": "", "low": ["x"] * 4, "high": [0.0] * 4, "ridge": [0.0] * 4}]
)  # fmt: skip
def test_reliability_that_does_not_fit_is_refused(said):
    with pytest.raises(ModelFileError, match="reliability"):
        reliable_genes({"name": "m", "panel": PANEL, "held_out": [fold([0.1] * 4)], "reliability": said})


def test_a_card_that_does_not_say_its_loss_calls_the_standardised_error_mse():
    trained, imported = {"sections": ["A1"]}, {"imported_from": "m2ort.pth"}
    assert objective_of({"objective": "mse", "training": trained}) == "standardised-mse"
    assert objective_of({"objective": "mse", "training": trained, "loss": "squared error on expression"}) == "mse"
    assert objective_of({"objective": "mse", "training": imported}) == "mse"
    assert objective_of({"objective": "nb", "training": trained}) == "nb"
    assert objective_of({}) is None


def test_of_many_training_sections_the_first_are_named():
    model = load_model(find_model(DEFAULT_MODEL))
    many = {**model.card["training"], "sections": [f"S{i:02}" for i in range(20)]}
    told = "\n".join(show_card(replace(model, card={**model.card, "training": many})))
    assert "of 20 sections (S00, S01, " in told
    assert ", S11 and 8 more) of" in told
