from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from stpredict import metrics


def simulated(seed: int = 0, spots: int = 400, genes: int = 60):
    """Counts without biology: shares that are the same everywhere, depths that are not."""
    rng = np.random.default_rng(seed)
    depth = np.round(rng.lognormal(7, 1.0, spots))
    share = rng.dirichlet(np.full(genes, 5.0)) * 0.2
    return rng.poisson(depth[:, None] * share).astype(float), depth, np.where(np.arange(spots) < 150, "A", "B")


@given(
    hnp.arrays(float, (9, 4), elements=st.floats(-100, 100, width=32)),
    hnp.arrays(float, (9, 4), elements=st.floats(-100, 100, width=32)),
)
def test_correlation_agrees_with_scipy_where_scipy_has_one(x, y):
    ours = metrics.correlation_per_gene(x, y)
    for gene in range(4):
        if np.ptp(y[:, gene]) == 0:
            assert np.isnan(ours[gene])
        elif np.ptp(x[:, gene]) == 0:
            assert ours[gene] == 0
        elif min(x[:, gene].std(), y[:, gene].std()) > 1e-3:
            assert ours[gene] == pytest.approx(stats.pearsonr(x[:, gene], y[:, gene]).statistic, abs=1e-6)


def test_a_constant_prediction_scores_zero_and_a_constant_gene_is_unknown():
    observed = np.column_stack([np.arange(5.0), np.ones(5)])
    np.testing.assert_array_equal(metrics.correlation_per_gene(np.full((5, 2), 0.3), observed), [0, np.nan])


def test_residuals_are_those_of_the_definition():
    counts, depth, _ = simulated()
    expected = depth[:, None] * counts.sum(axis=0) / depth.sum()
    residuals = (counts - expected) / np.sqrt(expected + expected**2 / 100)
    np.testing.assert_allclose(metrics.pearson_residuals(counts, depth), np.clip(residuals, -20, 20), atol=1e-12)
    assert (metrics.pearson_residuals(np.zeros((5, 2)), np.ones(5)) == 0).all()


def test_depth_scores_high_on_log_cpm_and_next_to_nothing_when_controlled():
    counts, depth, section = simulated(genes=40)
    by_depth = np.tile(np.log(depth)[:, None], counts.shape[1])
    assert np.nanmean(metrics.log_cpm_correlation(by_depth, counts, depth, section)) > 0.2
    assert abs(np.nanmean(metrics.depth_controlled_correlation(by_depth, counts, depth, section))) < 0.08


@pytest.mark.parametrize("seed", range(3))
def test_counts_without_biology_score_nothing(seed):
    counts, depth, section = simulated(seed)
    drawn = metrics.counts_without_biology(counts, depth, section, seed)
    predicted = np.random.default_rng(seed).normal(size=counts.shape)
    for prediction in (predicted, metrics.log_cpm(counts, depth)):
        score = np.nanmean(metrics.depth_controlled_correlation(prediction, drawn, depth, section))
        assert abs(score) < 0.03
    assert np.nanmean(metrics.noise_ceiling(drawn, depth, section)) < 0.25  # of chance alone


def test_the_noise_ceiling_bounds_the_truth_itself():
    rng = np.random.default_rng(0)
    depth = np.full(2000, 3000.0)
    share = 0.003 * np.exp(rng.normal(0, 0.3, (2000, 5)))
    counts = rng.poisson(depth[:, None] * share).astype(float)
    section = np.full(2000, "A")
    truth = metrics.depth_controlled_correlation(share, counts, depth, section)
    ceiling = metrics.noise_ceiling(counts, depth, section)
    np.testing.assert_allclose(ceiling, truth, atol=0.05)


def test_the_mean_of_the_genes_reaches_the_papers_score_without_an_image():
    counts, depth, _ = simulated()
    observed = metrics.log_cpm(counts, depth)
    r, rmse = metrics.spot_correlation(np.tile(observed.mean(axis=0), (len(depth), 1)), counts, depth)
    assert r > 0.5
    assert rmse == pytest.approx(np.sqrt(((observed - observed.mean(axis=0)) ** 2).mean(axis=1)).mean())
