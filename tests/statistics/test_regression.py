from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

from stpredict.statistics import moments, regression
from stpredict.statistics.moments import join_scatters, moments_of, scatter_of
from stpredict.statistics.regression import find_directions, fit_ridge

ALPHAS = np.logspace(0, 6, 25)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(8, 60), st.sampled_from([0.1, 3.0]))
def test_ridge_is_that_of_scikit_learn(seed, n, noise):
    rng = np.random.default_rng(seed)
    x = np.c_[rng.normal(3, 2, (n, 9)) * rng.uniform(0.01, 100, 9), np.full(n, 7.0)]
    y = x[:, :3] / x[:, :3].std(axis=0) @ rng.normal(size=(3, 5)) + rng.normal(0, noise, (n, 5)) + 4
    scaler = StandardScaler().fit(x)
    expected = RidgeCV(ALPHAS).fit(scaler.transform(x), y)
    asked = x + rng.normal(size=x.shape) * scaler.scale_ * (scaler.var_ > 0)
    np.testing.assert_allclose(
        fit_ridge(x, y, ALPHAS).predict(asked), expected.predict(scaler.transform(asked)), atol=1e-6
    )


def test_directions_are_those_of_a_decomposition_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 6)) + 9  # two of six directions do not vary
    monkeypatch.setattr(regression, "BLOCK", 16)
    monkeypatch.setattr(moments, "BLOCK", 16)
    found = find_directions(x)
    scaled = (x - x.mean(axis=0)) / x.std(axis=0)
    np.testing.assert_allclose(found.s, np.linalg.svd(scaled)[1][:4])
    np.testing.assert_allclose(found.u * found.s @ found.vt, scaled, atol=1e-9)
    np.testing.assert_allclose(found.project(x[:, :2]), found.u.T @ x[:, :2], atol=1e-9)


def test_what_is_left_out_is_subtracted():
    values = np.random.default_rng(0).normal(5, 2, (30, 3))
    rest = moments_of(values, 5.0) - moments_of(values[:10], 5.0)
    np.testing.assert_allclose(rest.mean + 5, values[10:].mean(axis=0))
    np.testing.assert_allclose(rest.deviations / 19, np.cov(values[10:], rowvar=False))


def test_scatters_of_parts_far_apart_are_joined_without_loss():
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(n, 4)) * (1, 1e-3, 0, 1) + at for n, at in ((5, 1e4), (1, 0.0), (30, -1e4))]
    parts = [np.c_[part[:, :3], np.full(len(part), 0.1)] for part in parts]
    found, every = join_scatters([scatter_of(part) for part in parts]), np.concatenate(parts)
    np.testing.assert_allclose(found.mean, every.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.products[:3, :3], np.cov(every[:, :3], rowvar=False) * 35, rtol=1e-12)
    np.testing.assert_allclose(found.spread, every.std(axis=0), rtol=1e-9, atol=1e-12)


def test_ridge_needs_little_memory_beside_its_input(monkeypatch):
    monkeypatch.setattr(regression, "BLOCK", 200)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4000, 6)), rng.normal(size=(4000, 60))
    tracemalloc.start()
    fit_ridge(x, y, ALPHAS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < y.nbytes / 2


@pytest.mark.parametrize("n", [1, 3])
def test_a_spot_or_three_are_enough(n):
    x = np.arange(n * 5.0).reshape(n, 5) ** 2
    assert np.isfinite(fit_ridge(x, x[:, :2], ALPHAS).predict(x)).all()
