from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from stpredict.statistics import differences, metrics


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


def test_triplex_scores_are_per_section_and_gene_weighted_by_spots():
    rng = np.random.default_rng(0)
    counts, depth, section = simulated(1)
    predicted = rng.normal(size=counts.shape)
    observed = metrics.log_cpm(counts, depth)
    r = np.array(
        [[stats.pearsonr(predicted[section == s, g], observed[section == s, g])[0] for g in range(60)] for s in "AB"]
    )
    pcc_m, pcc_h = metrics.triplex_correlation(predicted, counts, depth, section)
    assert pcc_m == pytest.approx(np.average(r.mean(axis=1), weights=[150, 250]))
    best = np.argsort(stats.rankdata(-r, axis=1).mean(axis=0), kind="stable")[:50]
    assert pcc_h == pytest.approx(np.average(r[:, best].mean(axis=1), weights=[150, 250]))
    assert pcc_h > pcc_m
    counts[:, 3] = 0  # never counted
    assert np.isfinite(metrics.triplex_correlation(predicted, counts, depth, section)).all()
    assert np.isnan(metrics.triplex_correlation(predicted, np.zeros_like(counts), depth, section)).all()


def test_errors_are_those_of_the_definition():
    counts, depth, _ = simulated()
    mse, mae = metrics.log_cpm_errors(np.zeros_like(counts), counts, depth)
    observed = np.log1p(1e6 * counts / depth[:, None])
    assert mse == pytest.approx((observed**2).mean())
    assert mae == pytest.approx(observed.mean())


def test_between_sections_knows_direction_and_size():
    rng = np.random.default_rng(0)
    share = 0.004 * np.exp(rng.normal(0, 0.5, (6, 20)))  # six sections that differ
    section = np.repeat(list("ABCDEF"), 80)
    depth = np.round(rng.lognormal(9, 0.5, 480))
    per_spot = np.repeat(share, 80, axis=0)
    counts = rng.poisson(depth[:, None] * per_spot).astype(float)
    truth = np.log1p(1e6 * per_spot)
    r, slope = differences.between_groups(truth, counts, depth, section)
    assert r > 0.98
    assert slope == pytest.approx(1, abs=0.03)
    mean = truth.mean(axis=0)
    overstated = differences.between_groups(mean + 2 * (truth - mean), counts, depth, section)
    assert overstated[0] > 0.98
    assert overstated[1] == pytest.approx(0.5, abs=0.05)
    assert np.isnan(differences.between_groups(truth, counts, depth, np.where(section < "C", "A", "B"))).all()
    r, slope = differences.between_groups(np.tile(mean, (480, 1)), counts, depth, section)
    assert r == 0
    assert np.isnan(slope)


def test_pseudobulk_of_the_measured_is_that_of_the_summed_counts():
    counts, depth, section = simulated()
    found = differences.pseudobulk(metrics.log_cpm(counts, depth), depth, section)
    for row, name in zip(found, "AB", strict=True):
        own = section == name
        np.testing.assert_allclose(row, np.log1p(1e6 * counts[own].sum(axis=0) / depth[own].sum()))


def test_calibration_tells_right_from_overstated_and_from_noise():
    rng = np.random.default_rng(0)
    section, depth = np.repeat(["A", "B"], 500), np.full(1000, 5000.0)
    effect = rng.normal(0, 0.4, (1000, 15))
    counts = rng.poisson(depth[:, None] * 0.003 * np.exp(effect)).astype(float)
    predicted, measured = differences.calibration(np.log1p(3000 * np.exp(effect)), counts, depth, section)
    np.testing.assert_allclose(measured, predicted, rtol=0.05)
    assert (np.diff(measured) > 0).all()
    predicted, measured = differences.calibration(np.log1p(3000 * np.exp(2 * effect)), counts, depth, section)
    assert measured[-1] < 0.8 * predicted[-1]
    noise = np.log1p(3000 * np.exp(rng.normal(0, 0.4, effect.shape)))
    np.testing.assert_allclose(differences.calibration(noise, counts, depth, section)[1], 1, atol=0.05)
    assert np.isnan(differences.calibration(noise[:5], counts[:5], depth[:5], section[:5])).all()


def test_the_genes_of_pcc_h_are_chosen_over_all_sections_of_all_parts():
    rng = np.random.default_rng(0)
    r, spots = rng.normal(0, 0.1, (8, 300)), np.full(8, 100)
    each = np.mean([metrics.pcc_over_sections(r[i : i + 1], spots[:1])[1] for i in range(8)])
    assert each > 0.13  # chosen anew in each part, a predictor that knows nothing seems to know something
    assert metrics.pcc_over_sections(r, spots)[1] < 0.07


def test_what_does_not_vary_is_counted():
    counts = np.ones((6, 4))
    counts[:, 0] = 0
    counts[3:, 2] = (1, 2, 3)
    counts[0] = 0
    predicted = np.arange(24.0).reshape(6, 4)
    predicted[:, 1] = 7
    found = metrics.count_constant(predicted, counts, np.repeat(["A", "B"], 3))
    assert found.genes_never_counted == 1
    assert found.genes_not_counted_in_a_section == 2  # gene 0 in both; one that is 1 everywhere varies with depth
    assert found.predictions_constant_in_a_section == 2
    assert found.spots_without_panel_counts == 1
