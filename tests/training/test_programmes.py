from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.preprocessing import StandardScaler

from stpredict.training.programmes import STRENGTHS, fit_programmes, fit_programmes_where_measured


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(5, 40))
def test_with_an_even_prior_it_is_ridge_regression(seed: int, n: int):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 7)) * rng.uniform(0.1, 10, 7), rng.normal(size=(n, 4))
    found = fit_programmes(x, y, np.eye(4), n=4)
    scaler = StandardScaler().fit(x)
    ridge = RidgeCV(alphas=STRENGTHS).fit(scaler.transform(x), y)
    new = rng.normal(size=(9, 7))
    np.testing.assert_allclose(found.predict(new), ridge.predict(scaler.transform(new)), atol=1e-6)


def test_a_programme_is_penalised_by_the_inverse_square_of_its_variance(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    x, y, new = rng.normal(size=(30, 7)), rng.normal(size=(30, 2)), rng.normal(size=(9, 7))
    monkeypatch.setattr("stpredict.training.programmes.STRENGTHS", np.array([10.0]))
    found = fit_programmes(x, y, np.diag([3.0, 0.6])).predict(new)
    scaler = StandardScaler().fit(x)
    for gene, alpha in enumerate((10 / 3, 10 / 3 * 25)):
        ridge = Ridge(alpha).fit(scaler.transform(x), y[:, gene])
        np.testing.assert_allclose(found[:, gene], ridge.predict(scaler.transform(new)), atol=1e-9)


def test_what_varies_together_is_predicted_together():
    """A gene too noisy to learn alone is learnt with those it varies with."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 30))
    signal = np.outer(x[:, 0], np.ones(20))
    observed = signal + rng.normal(0, 3, signal.shape)
    new = rng.normal(size=(500, 30))
    errors = [
        ((fit_programmes(x, observed, covariance, n=20).predict(new) - new[:, :1]) ** 2).mean()
        for covariance in (np.ones((20, 20)) + 1e-6 * np.eye(20), np.eye(20))
    ]
    assert errors[0] < 0.5 * errors[1]


def test_constant_features_and_negative_eigenvalues_do_no_harm():
    rng = np.random.default_rng(0)
    x = np.hstack([rng.normal(size=(20, 3)), np.ones((20, 2))])
    found = fit_programmes(x, rng.normal(size=(20, 3)), np.diag([1.0, -1.0, 0.0]))
    assert np.isfinite(found.predict(x)).all()
    assert np.ptp(found.predict(x)[:, 1:]) < 1e-9


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000))
def test_genes_of_some_sections_are_fitted_as_if_there_were_no_others(seed: int):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(40, 7)), rng.normal(size=(40, 6))
    mixing = rng.normal(size=(6, 6))
    covariance, own = mixing @ mixing.T, np.arange(40) < 25
    y[~own, 3:5], y[own, 5] = np.nan, np.nan
    found, new = fit_programmes_where_measured(x, y, covariance, 3), rng.normal(size=(9, 7))
    for rows, genes, wanted in (
        (own, [0, 1, 2, 3, 4], [3, 4]),
        (~own, [0, 1, 2, 5], [5]),
        (own | ~own, [0, 1, 2], [0, 1, 2]),
    ):
        alone = fit_programmes(x[rows], y[rows][:, genes], covariance[np.ix_(genes, genes)], 3).predict(new)
        places = [genes.index(gene) for gene in wanted]
        np.testing.assert_allclose(found.predict(new)[:, wanted], alone[:, places], atol=1e-8)
    y[:, 5] = np.nan
    assert (fit_programmes_where_measured(x, y, covariance, 3).predict(new)[:, 5] == 0).all()


def test_of_many_genes_it_is_the_fit_of_each_pattern_alone():
    """Many spots and genes, few programmes: sums are joined, and the widest directions alone are found."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 5)) + np.repeat([[0.0], [5.0]], 200, axis=0)
    y, mixing = rng.normal(size=(400, 60)) + x[:, :1], rng.normal(size=(60, 60))
    covariance = mixing @ mixing.T
    y[:150, 40:] = np.nan
    y[250:, :10] = np.nan
    found, new = fit_programmes_where_measured(x, y, covariance, 3), rng.normal(size=(9, 5))
    for rows, genes, wanted in (
        (slice(150, None), range(10, 60), range(40, 60)),
        (slice(None, 250), range(40), range(10)),
        (slice(None), range(10, 40), range(10, 40)),
    ):
        own = list(genes)
        alone = fit_programmes(x[rows], y[rows][:, own], covariance[np.ix_(own, own)], 3).predict(new)
        np.testing.assert_allclose(
            found.predict(new)[:, list(wanted)], alone[:, [own.index(gene) for gene in wanted]], atol=1e-8
        )
