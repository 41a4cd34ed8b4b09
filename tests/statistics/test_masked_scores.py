"""Genes that only some sections measured: each is scored where it was measured, as if nothing else were there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stpredict.statistics import differences, metrics, spatial
from stpredict.statistics.conformal import empirical_coverage, half_widths, patients_needed
from stpredict.statistics.masks import measured_by_section

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
GENES, SPOTS = 5, 12  # of a section
MASKS = hnp.arrays(bool, st.tuples(st.integers(1, 6), st.just(GENES)))
SEEDS = st.integers(0, 2**32 - 1)
QUICK = settings(deadline=None, max_examples=40)  # machines may be busy


def made(mask, seed: int):
    """A prediction, counts that are NaN where a section did not measure a gene, depths, sections and places."""
    rng = np.random.default_rng(seed)
    section = np.repeat([f"s{i}" for i in range(len(mask))], SPOTS)
    depth = rng.integers(200, 900, len(section)).astype(float)
    counts = rng.poisson(depth[:, None] * 0.01 * np.exp(rng.normal(0, 0.5, (len(section), GENES)))).astype(float)
    counts[np.repeat(~mask, SPOTS, axis=0)] = np.nan
    centres = np.tile([(x, y) for x in range(4) for y in range(SPOTS // 4)], (len(mask), 1)).astype(float)
    return rng.normal(2, 1, counts.shape), counts, depth, section, centres


def scores(predicted, counts, depth, section, centres):
    """All scores that each gene has by itself."""
    variance = spatial.correlation_variance(predicted, counts, depth, section, centres)
    controlled = metrics.depth_controlled_correlation(predicted, counts, depth, section)
    moran = spatial.moran_per_gene(predicted, counts, depth, section, centres)
    return {
        "depth_controlled": controlled,
        "log_cpm": metrics.log_cpm_correlation(predicted, counts, depth, section),
        "spearman": metrics.log_cpm_rank_correlation(predicted, counts, depth, section),
        "variance": variance,
        "p": spatial.modified_t_test(controlled, variance),
        "moran_predicted": moran[0],
        "moran_measured": moran[1],
    }


@QUICK
@given(MASKS, SEEDS)
def test_a_gene_is_scored_as_if_only_the_sections_that_measured_it_were_there(mask, seed):
    data = made(mask, seed)
    together = scores(*data)
    for gene in range(GENES):
        rows = np.repeat(mask[:, gene], SPOTS)
        alone = {name: np.array([np.nan]) for name in together}
        if rows.any():
            predicted, counts, depth, section, centres = (values[rows] for values in data)
            alone = scores(predicted[:, [gene]], counts[:, [gene]], depth, section, centres)
        for name, values in together.items():
            np.testing.assert_allclose(values[gene], alone[name][0], rtol=1e-9, atol=1e-12, err_msg=name)


@QUICK
@given(MASKS, hnp.arrays(bool, GENES), SEEDS)
def test_a_further_section_leaves_the_scores_of_genes_that_it_did_not_measure(mask, more, seed):
    with_it = made(np.vstack([mask, more]), seed)
    without = [values[: -SPOTS or None] for values in with_it]
    drawn = []
    for data in (with_it, without):
        _, counts, depth, section, _ = data
        found = {**scores(*data), "noise_ceiling": metrics.noise_ceiling(counts, depth, section)}
        drawn.append({name: values[~more] for name, values in found.items()})
    for name, values in drawn[0].items():
        np.testing.assert_array_equal(values, drawn[1][name], err_msg=name)


@QUICK
@given(MASKS, SEEDS)
def test_spots_are_scored_on_the_genes_that_were_measured_in_them(mask, seed):
    predicted, counts, depth, *_ = made(mask, seed)
    r, rmse = metrics.spot_correlation(predicted, counts, depth)
    mse, mae = metrics.log_cpm_errors(predicted, counts, depth)
    observed = metrics.log_cpm(counts, depth)
    own = [(p[known], o[known]) for p, o in zip(predicted, observed, strict=True) if (known := np.isfinite(o)).any()]
    if not own:
        assert np.isnan([r, rmse, mse, mae]).all()
        return
    varied = [np.corrcoef(p, o)[0, 1] for p, o in own if np.ptp(o) > 0]
    assert r == pytest.approx(np.mean(varied)) if varied else np.isnan(r)
    assert rmse == pytest.approx(np.mean([np.sqrt(((p - o) ** 2).mean()) for p, o in own]))
    missed = np.concatenate([p - o for p, o in own])
    assert (mse, mae) == (pytest.approx((missed**2).mean()), pytest.approx(abs(missed).mean()))


@QUICK
@given(MASKS, SEEDS)
def test_nothing_is_drawn_for_what_was_not_measured(mask, seed):
    _, counts, depth, section, _ = made(mask, seed)
    unmeasured = np.isnan(counts)
    np.testing.assert_array_equal(np.isnan(metrics.counts_without_biology(counts, depth, section)), unmeasured)
    half = metrics.halved(counts, np.random.default_rng(0))
    np.testing.assert_array_equal(np.isnan(half), unmeasured)
    assert (half[~unmeasured] <= counts[~unmeasured]).all()
    np.testing.assert_array_equal(measured_by_section(counts, section), mask)
    ceiling = metrics.noise_ceiling(counts, depth, section)
    assert np.isnan(ceiling[~mask.any(axis=0)]).all()


def test_groups_are_compared_on_the_genes_that_three_of_them_measured():
    mask = np.array([[1, 1, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 1, 0, 1], [1, 1, 0, 0, 0]], dtype=bool)
    predicted, counts, depth, section, _ = made(mask, 0)
    r, slope = differences.between_groups(predicted, counts, depth, section)
    observed = metrics.log_cpm(counts, depth)
    pairs = []
    for gene in (0, 1, 4):
        rows = np.repeat(mask[:, gene], SPOTS)
        p, m = (
            differences.pseudobulk(x[rows][:, [gene]], depth[rows], section[rows]).ravel()
            for x in (predicted, observed)
        )
        pairs.append((p - p.mean(), m - m.mean()))
    assert r == pytest.approx(np.mean([np.corrcoef(p, m)[0, 1] for p, m in pairs]))
    assert slope == pytest.approx(sum((p * m).sum() for p, m in pairs) / sum((p**2).sum() for p, _ in pairs))
    assert np.isnan(differences.between_groups(predicted[:, 2:4], counts[:, 2:4], depth, section)).all()


def test_a_group_is_the_spots_of_its_sections_that_measured_a_gene():
    _, counts, depth, section, _ = made(np.array([[1, 1, 0, 1, 1], [1, 0, 0, 1, 1]], dtype=bool), 1)
    (found,) = differences.pseudobulk(metrics.log_cpm(counts, depth), depth, np.full(len(depth), "a patient"))
    first = section == "s0"
    assert found[0] == pytest.approx(np.log1p(1e6 * counts[:, 0].sum() / depth.sum()))
    assert found[1] == pytest.approx(np.log1p(1e6 * counts[first, 1].sum() / depth[first].sum()))
    assert np.isnan(found[2])


def test_a_gene_that_one_section_measured_can_be_among_the_best():
    mask = np.ones((3, 60), dtype=bool)
    mask[1:, 0] = mask[2, 1:40] = False
    r = np.where(mask, np.linspace(0.9, 0.1, 60), np.nan)
    r[0, 7] = np.nan  # constant there
    pcc_m, pcc_h = metrics.pcc_over_sections(r, np.array([10, 20, 30]), mask)
    assert pcc_m == pytest.approx(np.average([np.nanmean(row) for row in r], weights=[10, 20, 30]))
    rank = [[np.sum(row[known] > x) / known.sum() for x in row] for row, known in zip(r, np.isfinite(r), strict=True)]
    best = set(np.argsort(np.nanmean(np.where(np.isfinite(r), rank, np.nan), axis=0))[:50].tolist())
    assert 0 in best
    unmeasured_last = metrics.pcc_over_sections(r, np.array([10, 20, 30]))[1]
    assert pcc_h > unmeasured_last


def test_calibration_and_what_is_constant_look_at_measured_genes_alone():
    mask = np.array([[1, 1, 0, 1, 1], [1, 0, 0, 1, 1]], dtype=bool)
    predicted, counts, depth, section, _ = made(mask, 2)
    counts[:, 0], predicted[:, 1] = 0, 3
    found = metrics.count_constant(predicted, counts, section)
    assert (found.genes_never_counted, found.genes_not_counted_in_a_section) == (1, 2)
    assert found.predictions_constant_in_a_section == 1  # of the section that measured the gene
    both = differences.calibration(predicted, counts, depth, section)
    of_two = differences.calibration(predicted[:, 3:], counts[:, 3:], depth, section)
    first = section == "s0"
    of_one = differences.calibration(predicted[first, 1:2], counts[first, 1:2], depth[first], section[first])
    for together, two, one in zip(both, of_two, of_one, strict=True):
        np.testing.assert_allclose(together, (4 * two + one) / 5)
    empty = np.full_like(counts, np.nan)
    assert np.isnan(differences.calibration(predicted, empty, depth, section)).all()


@QUICK
@given(hnp.arrays(bool, (7, GENES)), SEEDS)
def test_intervals_are_of_the_patients_that_measured_a_gene(mask, seed):
    rng = np.random.default_rng(seed)
    spots = rng.integers(1, 6, len(mask))
    patient = np.repeat([f"P{i}" for i in range(len(mask))], spots)
    error = np.where(np.repeat(mask, spots, axis=0), rng.exponential(size=(len(patient), GENES)), np.nan)
    width = half_widths(error, patient, 0.8)
    for gene in range(GENES):
        known = np.isfinite(error[:, gene])
        if mask[:, gene].sum() < patients_needed(0.8):
            assert np.isnan(width[gene])
        else:
            assert width[gene] == half_widths(error[known][:, [gene]], patient[known], 0.8)[0]
    coverage = empirical_coverage(error, patient, 0.8)
    assert (coverage is None) == (mask.sum(axis=0).max() <= patients_needed(0.8))
    assert coverage is None or 0 <= coverage <= 1
