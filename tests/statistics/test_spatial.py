from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.ndimage import gaussian_filter

from stpredict.statistics import spatial
from stpredict.statistics.metrics import depth_controlled_correlation, pearson_residuals

SIDE, MARGIN = 14, 15
LATTICE = np.array([(x, y) for x in range(SIDE) for y in range(SIDE)], dtype=float)


def smooth_maps(rng: np.random.Generator, genes: int, sigma: float):
    fields = rng.normal(size=(genes, SIDE + 2 * MARGIN, SIDE + 2 * MARGIN))
    maps = np.array([gaussian_filter(field, sigma)[MARGIN:-MARGIN, MARGIN:-MARGIN].ravel() for field in fields]).T
    return maps / maps.std(axis=0)


def counts_of(rng: np.random.Generator, maps):
    depth = np.round(rng.lognormal(9, 0.4, len(maps)))
    counts = rng.poisson(depth[:, None] * 0.003 * np.exp(0.5 * maps)).astype(float)
    return counts, depth + counts.sum(axis=1)


def test_neighbours_are_four_on_a_square_lattice_and_six_on_a_hexagonal_one():
    inner = (LATTICE > 0).all(axis=1) & (LATTICE < SIDE - 1).all(axis=1)
    assert (spatial.spot_graph(LATTICE).sum(axis=1)[inner] == 4).all()
    hexagonal = LATTICE * (1, np.sqrt(3) / 2) + np.outer(LATTICE[:, 1] % 2, (0.5, 0))
    assert (spatial.spot_graph(hexagonal).sum(axis=1)[inner] == 6).all()
    assert spatial.spot_graph(LATTICE[:1]).nnz == 0


def test_moran_i_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    graph, values = spatial.spot_graph(LATTICE), rng.normal(size=(len(LATTICE), 3))
    z = values - values.mean(axis=0)
    weights = graph.toarray()
    expected = [len(z) / weights.sum() * (z[:, g] @ weights @ z[:, g]) / (z[:, g] @ z[:, g]) for g in range(3)]
    np.testing.assert_allclose(spatial.moran_i(values, graph), expected)
    checkerboard = (LATTICE.sum(axis=1) % 2)[:, None]
    assert spatial.moran_i(checkerboard, graph)[0] == pytest.approx(-1)
    assert spatial.moran_i(LATTICE[:, :1], graph)[0] > 0.9
    assert np.isnan(spatial.moran_i(np.ones((len(LATTICE), 1)), graph)).all()
    assert np.isnan(spatial.moran_i(values[:1], spatial.spot_graph(LATTICE[:1]))).all()


@pytest.mark.parametrize("sigma", [0.0, 1.0, 3.0, SIDE / 3])
def test_unrelated_maps_are_significant_as_often_as_they_should_be(sigma):
    rng = np.random.default_rng(1)
    predicted = smooth_maps(rng, 800, sigma)
    counts, depth = counts_of(rng, smooth_maps(rng, 800, sigma))
    section = np.full(len(depth), "A")
    p, r = p_values(predicted, counts, depth, section, LATTICE)
    assert 0.03 < (p < 0.05).mean() < 0.08
    assert (spatial.false_discovery_rate(p) < 0.05).mean() < 0.005
    error = spatial.correlation_error(predicted, counts, depth, section, LATTICE)
    assert (r > 1.96 * error).mean() < 0.04  # reliable by chance: nominal 2.5 %
    if sigma == 3.0:  # which the usual test takes for agreement
        residuals = pearson_residuals(counts, depth)
        usual = stats.pearsonr(predicted, residuals, axis=0, alternative="greater").pvalue
        assert (usual < 0.05).mean() > 0.2


def p_values(predicted, counts, depth, section, centres):
    r = depth_controlled_correlation(predicted, counts, depth, section)
    return spatial.modified_t_test(r, spatial.correlation_variance(predicted, counts, depth, section, centres)), r


def test_related_maps_are_found_over_two_sections():
    rng = np.random.default_rng(2)
    maps = np.vstack([smooth_maps(rng, 20, 1.5), smooth_maps(rng, 20, 1.5)])
    counts, depth = counts_of(rng, maps)
    section, centres = np.repeat(["A", "B"], SIDE**2), np.vstack([LATTICE, LATTICE])
    counts[:, 7] = 0
    p, _ = p_values(maps, counts, depth, section, centres)
    assert np.isnan(p[7])
    assert (np.delete(p, 7) < 1e-4).all()  # small enough to survive a correction for thousands of genes
    mirrored, _ = p_values(-maps, counts, depth, section, centres)
    assert (np.delete(mirrored, 7) > 0.5).all()  # agreement, not disagreement, is tested
    constant, _ = p_values(np.zeros_like(maps), counts, depth, section, centres)
    assert (np.delete(constant, 7) == 0.5).all()


@pytest.mark.parametrize("turn", [0.0, 0.4])
def test_the_variance_is_that_of_the_definition(turn):
    rng = np.random.default_rng(4)
    hexagonal = LATTICE * (1, np.sqrt(3) / 2) + np.outer(LATTICE[:, 1] % 2, (0.5, 0))
    centres = 70 * hexagonal @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    maps = smooth_maps(rng, 6, 1.5)
    counts, depth = counts_of(rng, smooth_maps(rng, 6, 1.5))
    found = spatial.correlation_variance(maps, counts, depth, np.full(len(depth), "A"), centres)
    p, o = (stats.zscore(values) for values in (maps, pearson_residuals(counts, depth)))
    distance = np.floor(np.linalg.norm(centres[:, None] - centres[None], axis=2) / 70 + 0.5)
    expected = np.zeros(6)
    for k in np.unique(distance):
        pairs = (distance == k).astype(float)
        expected += (p * (pairs @ p)).sum(axis=0) * (o * (pairs @ o)).sum(axis=0) / pairs.sum() / len(p) ** 2
    np.testing.assert_allclose(found, expected, rtol=0.15)  # it rounds places to half the spots' distance


def test_a_few_spots_and_two_far_fragments_have_a_variance_too():
    rng = np.random.default_rng(7)
    counts, depth = counts_of(rng, rng.normal(size=(SIDE**2, 2)))
    far = LATTICE + np.where(np.arange(SIDE**2) < 50, 0, 1e5)[:, None]
    for n, centres in ((1, LATTICE), (3, LATTICE), (SIDE**2, far)):
        section = np.full(n, "A")
        found = spatial.correlation_variance(counts[:n], counts[:n], depth[:n], section, centres[:n])
        assert (np.isfinite(found) & (found > 0)).all() == (n > 1)


def test_the_adjusted_values_are_scipys():
    p = np.array([0.001, np.nan, 0.04, 0.2])
    adjusted = spatial.false_discovery_rate(p)
    assert np.isnan(adjusted[1])
    np.testing.assert_allclose(adjusted[[0, 2, 3]], stats.false_discovery_control(p[[0, 2, 3]]))


def test_maps_agree_in_smoothness_where_they_are_equally_smooth():
    rng = np.random.default_rng(5)
    maps = np.hstack([smooth_maps(rng, 5, sigma) for sigma in (0.0, 0.7, 2.0)])
    counts, depth = counts_of(rng, maps)
    predicted, measured = spatial.moran_per_gene(maps, counts, depth, np.full(len(depth), "A"), LATTICE)
    assert stats.spearmanr(predicted, measured)[0] > 0.7
    assert (predicted[10:] > measured[10:]).all()  # counts are noisy


def test_the_error_of_a_correlation_is_that_seen_over_repetitions():
    rng = np.random.default_rng(6)
    section = np.full(len(LATTICE), "A")
    seen, said = {}, {}
    for sigma in (0.0, 1.5):
        predicted = smooth_maps(rng, 200, sigma)
        counts, depth = counts_of(rng, 0.5 * predicted + smooth_maps(rng, 200, sigma))
        errors = spatial.correlation_error(predicted, counts, depth, section, LATTICE)
        r = depth_controlled_correlation(predicted, counts, depth, section)
        seen[sigma], said[sigma] = r.std(), errors.mean()
        assert said[sigma] * (1 - r.mean() ** 2) == pytest.approx(seen[sigma], rel=0.3)
    assert said[1.5] > 1.5 * said[0.0]
    counts[:, 0] = 0
    errors = spatial.correlation_error(predicted, counts, depth, section, LATTICE)
    assert np.isnan(errors[0])
    few = slice(0, 9)  # as good as one block
    errors = spatial.correlation_error(predicted[few], counts[few], depth[few], section[few], LATTICE[few])
    assert np.isnan(errors).all()
