"""What some sections did not measure is NaN, and is as if it were not there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stpredict.statistics.masks import measured_alike
from stpredict.statistics.metrics import log_cpm
from stpredict.statistics.objectives import OBJECTIVES, make_objective
from stpredict.statistics.regression import fit_ridge
from stpredict.statistics.targets import summary_of

SPOTS, GENES = 60, 5
SECTION = np.repeat(["A", "B", "C"], SPOTS // 3)
#: Sections x genes: one that all measured, one that none did, and in between.
MASKS = st.lists(st.booleans(), min_size=3 * GENES, max_size=3 * GENES).map(lambda x: np.array(x).reshape(3, GENES))


def draw(seed: int, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts with gaps (spots x genes), depths, and features of the spots."""
    rng = np.random.default_rng(seed)
    depth = np.round(rng.lognormal(7, 0.5, SPOTS))
    counts = rng.poisson(depth[:, None] * rng.uniform(1e-3, 2e-2, GENES)).astype(float)
    counts[~mask[np.searchsorted(["A", "B", "C"], SECTION)]] = np.nan
    return counts, depth, rng.normal(size=(SPOTS, 4))


@given(MASKS)
def test_columns_known_in_the_same_rows_are_one_group(mask: np.ndarray):
    counts, _, _ = draw(0, mask)
    groups = measured_alike(counts)
    if mask.all():
        assert groups[0].whole
        assert len(groups) == 1
        return
    assert sorted(np.concatenate([group.columns for group in groups]).tolist()) == list(range(GENES))
    assert len(groups) == len({tuple(column) for column in mask.T})
    for group in groups:
        known = np.zeros_like(counts, dtype=bool)
        known[np.ix_(group.rows, group.columns)] = True
        np.testing.assert_array_equal(known[:, group.columns], ~np.isnan(counts[:, group.columns]))
        assert group.empty == (len(group.rows) == 0)


@given(MASKS, st.integers(1, SPOTS * GENES))
def test_a_summary_of_a_gene_is_of_the_spots_that_measured_it(mask: np.ndarray, at_a_time: int):
    counts, _, _ = draw(1, mask)
    chosen = SECTION != "C"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stpredict.statistics.blocks.VALUES_AT_A_TIME", at_a_time)
        found = summary_of(1e6 + counts, chosen)
    for gene in range(GENES):
        own = counts[chosen, gene][~np.isnan(counts[chosen, gene])]
        wanted = [1e6 + own.mean(), own.std(), np.ptp(own)] if len(own) else [np.nan] * 3
        np.testing.assert_allclose([found.mean[gene], found.spread[gene], found.extent[gene]], wanted)


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=8, deadline=None)
@given(mask=MASKS, seed=st.integers(0, 99))
def test_a_loss_is_the_mean_over_what_was_measured_and_moves_nothing_else(name: str, mask: np.ndarray, seed: int):
    counts, depth, _ = draw(seed, mask)
    loss = make_objective(name, counts, depth, SECTION, np.ones(SPOTS, bool)).loss
    rows = torch.from_numpy(np.random.default_rng(seed).permutation(SPOTS)[:9])
    z = (0.3 * torch.randn(9, GENES, generator=torch.Generator().manual_seed(seed))).requires_grad_()
    known = torch.from_numpy(~np.isnan(counts[rows]))
    said = loss(z, rows)
    said.backward()
    assert torch.isfinite(z.grad).all()
    assert (z.grad[~known] == 0).all()
    assert (z.grad[known] != 0).any() == bool(known.any())
    total = sum(
        float(loss.of(np.array([gene]))(z.detach()[[spot]][:, [gene]], rows[[spot]]))
        for spot, gene in known.nonzero().tolist()
    )
    assert float(said.detach()) == pytest.approx(total / max(int(known.sum()), 1), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=8, deadline=None)
@given(mask=MASKS, seed=st.integers(0, 99))
def test_each_gene_is_as_if_only_those_sections_were_there_that_measured_it(name: str, mask: np.ndarray, seed: int):
    counts, depth, _ = draw(seed, mask)
    fit = np.arange(SPOTS) % 4 > 0
    every = make_objective(name, counts, depth, SECTION, fit)
    for gene in range(GENES):
        own = ~np.isnan(counts[:, gene])
        if not own.any():
            assert np.isnan([every.offset[gene], *every.targets[:, gene]]).all()
            continue
        alone = make_objective(name, counts[own][:, [gene]], depth[own], SECTION[own], fit[own])
        np.testing.assert_allclose(every.targets[own, gene], alone.targets[:, 0])
        np.testing.assert_allclose([every.offset[gene], every.slope[gene]], [alone.offset[0], alone.slope[0]])
        assert np.isnan(every.targets[~own, gene]).all()


def test_sections_that_measured_the_same_genes_have_shares_of_their_own_in_likelihoods():
    """Another technology catches twice as much of a gene: no difference between the tissues that is to be learnt."""
    depth = np.full(SPOTS, 1000.0)
    counts = np.where(SECTION[:, None] == "C", [[40.0, np.nan]], [[20.0, 10.0]])
    loss = make_objective("poisson", counts, depth, SECTION, np.ones(SPOTS, bool)).loss
    for rows in ([0, 1], [59, 58]):
        z = torch.zeros(2, 2, requires_grad=True)
        loss(z, torch.tensor(rows)).backward()
        assert z.grad.abs().max() < 0.01


@settings(max_examples=25, deadline=None)
@given(mask=MASKS, seed=st.integers(0, 99))
def test_ridge_is_that_of_the_spots_that_measured_a_group_of_genes(mask: np.ndarray, seed: int):
    counts, depth, features = draw(seed, mask)
    features[:, 3] = SECTION == "B"  # constant in what some genes were measured in
    targets, new = log_cpm(counts, depth), np.random.default_rng(7).normal(size=(5, 4))
    alphas = np.logspace(0, 6, 25)
    predicted = fit_ridge(features, targets, alphas).predict(new)
    for group in measured_alike(targets):
        if group.empty:
            assert np.isnan(predicted[:, group.columns]).all()
            continue
        alone = fit_ridge(features[group.rows], targets[group.rows][:, group.columns], alphas).predict(new)
        np.testing.assert_allclose(predicted[:, group.columns], alone, rtol=1e-6, atol=1e-8)
