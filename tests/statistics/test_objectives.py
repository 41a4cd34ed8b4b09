from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from stpredict.errors import UsageError
from stpredict.statistics.metrics import log_cpm
from stpredict.statistics.normalisation import NORMALISATIONS
from stpredict.statistics.objectives import OBJECTIVES, make_objective


@pytest.fixture
def measured():
    rng = np.random.default_rng(0)
    depth = np.round(rng.lognormal(7, 0.5, 80))
    counts = rng.poisson(depth[:, None] * rng.uniform(1e-4, 2e-2, 6)).astype(float)
    section = np.repeat(["A", "B"], 40)
    return counts, depth, section, np.arange(80) < 70


@pytest.mark.parametrize("name", OBJECTIVES)
def test_folding_into_the_head_is_what_expression_computes(measured, name):
    objective = make_objective(name, *measured)
    head = nn.Linear(4, 6)
    x = torch.randn(9, 4)
    z = head(x).detach().double().numpy()
    objective.fold_into(head)
    eta = head(x).detach()
    folded = F.softplus(eta) if objective.link == "softplus" else eta
    np.testing.assert_allclose(folded, objective.expression(z), atol=1e-4)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_expression_keeps_every_rank(measured, name):
    objective = make_objective(name, *measured)
    z = np.random.default_rng(1).normal(size=(50, 6)) * 3
    for gene in range(6):
        assert stats.spearmanr(z[:, gene], objective.expression(z)[:, gene]).statistic == pytest.approx(1)


@pytest.mark.parametrize("name", ["residuals", "nb", "poisson"])
def test_z_of_zero_is_the_mean_share(measured, name):
    counts, depth, _, fit = measured
    share = (counts[fit].sum(axis=0) + 0.5) / depth[fit].sum()
    expression = make_objective(name, *measured).expression(np.zeros((1, 6)))[0]
    np.testing.assert_allclose(expression, np.log1p(1e6 * share))


@pytest.mark.parametrize("name", ["mse", "standardised-mse", "smooth-l1"])
def test_squared_errors_targets_are_log_cpm_and_the_best_z_is_their_own(measured, name):
    counts, depth, _, _ = measured
    objective = make_objective(name, *measured)
    np.testing.assert_allclose(objective.expression(objective.targets), log_cpm(counts, depth))
    assert objective.loss(torch.tensor(objective.targets).float(), torch.arange(80)) < 1e-10


def test_plain_squared_error_is_that_of_expression_and_the_standardised_one_divides_by_spread(measured):
    counts, depth, _, fit = measured
    measured_there, rows = log_cpm(counts, depth), torch.tensor([3, 0, 77])
    z = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    for name, scale in (("mse", 1.0), ("standardised-mse", measured_there[fit].std(axis=0))):
        objective = make_objective(name, *measured)
        missed = (objective.expression(z.double().numpy()) - measured_there[rows]) / scale
        assert float(objective.loss(z, rows)) == pytest.approx((missed**2).mean(), rel=1e-5)
    np.testing.assert_array_equal(make_objective("mse", *measured).slope, 1)


def test_smooth_l1_is_half_the_square_of_what_is_missed_of_each_genes_range_and_linear_beyond(measured):
    counts, depth, _, fit = measured
    observed, objective = log_cpm(counts, depth), make_objective("smooth-l1", *measured)
    np.testing.assert_allclose(objective.slope, np.ptp(observed[fit], axis=0))
    wanted = torch.tensor(objective.targets[:1]).float()
    for missed, loss in ((0.5, 0.125), (3.0, 2.5)):
        assert float(objective.loss(wanted + missed, torch.tensor([0]))) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("kind", NORMALISATIONS)
def test_expression_is_in_the_unit_of_the_normalisation(measured, name, kind):
    counts, total, section, fit = measured
    normalisation = NORMALISATIONS[kind]
    depth = normalisation.depth(counts, total)
    objective = make_objective(name, counts, depth, section, fit, per=normalisation.per)
    share = (np.expm1(objective.expression(np.zeros((1, 6)))) / normalisation.per).sum()
    of_all = (counts[fit].sum(axis=0) / depth[fit].sum()).sum()
    assert of_all == pytest.approx(1) if kind in ("panel", "panel-1e4") else of_all < 0.2
    if name not in ("mse", "standardised-mse", "smooth-l1"):  # the mean of logarithms is no mean share
        assert share == pytest.approx(of_all, rel=0.01)
    else:
        expected = np.log1p(normalisation.per * counts / depth[:, None])
        np.testing.assert_allclose(objective.expression(objective.targets), expected, atol=1e-12)


@pytest.mark.parametrize("name", ["poisson", "nb"])
def test_count_likelihoods_are_those_of_scipy_up_to_a_constant(measured, name):
    counts, depth, _, fit = measured
    share = (counts[fit].sum(axis=0) + 0.5) / depth[fit].sum()
    objective = make_objective(name, *measured)
    zs = np.random.default_rng(2).normal(size=(2, 80, 6)) * 0.3
    losses = [float(objective.loss(torch.tensor(z).float(), torch.arange(80))) for z in zs]
    expected = []
    for z in zs:
        mean = depth[:, None] * share * np.exp(z)
        logs = (
            stats.poisson.logpmf(counts, mean)
            if name == "poisson"
            else stats.nbinom.logpmf(counts, 100, 100 / (100 + mean))
        )
        expected.append(-(logs / np.sqrt(share * depth.mean())).mean())
    assert losses[0] - losses[1] == pytest.approx(expected[0] - expected[1], abs=2e-4)


def test_nothing_is_fitted_on_the_rows_left_out(measured):
    counts, depth, section, fit = measured
    counts, section = counts.copy(), np.where(fit, section, "C")
    before = make_objective("residuals", counts, depth, section, fit)
    counts[~fit] *= 5
    after = make_objective("residuals", counts, depth, section, fit)
    np.testing.assert_array_equal(before.offset, after.offset)
    np.testing.assert_array_equal(before.slope, after.slope)
    np.testing.assert_array_equal(before.targets[:40], after.targets[:40])


def test_unknown_objective():
    with pytest.raises(UsageError, match="residuals, nb, poisson, mse, standardised-mse, smooth-l1"):
        make_objective("hinge", np.ones((2, 2)), np.ones(2), np.array(["A", "A"]), np.ones(2, bool))
