"""Scores that are computed a few spots and genes at a time, of counts in float32."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from stpredict.statistics import blocks, differences, metrics, spatial

MASK = np.array([[1, 1, 0, 1, 1], [1, 0, 1, 1, 0], [1, 1, 1, 0, 1], [1, 1, 1, 1, 1]], dtype=bool)


def made(seed: int):
    """A prediction, counts that are NaN where a section did not measure a gene, depths, sections and places."""
    rng = np.random.default_rng(seed)
    section = np.repeat(["s0", "s1", "s2", "s3"], 12)
    depth = rng.integers(200, 900, len(section)).astype(float)
    counts = rng.poisson(depth[:, None] * 0.01 * np.exp(rng.normal(0, 0.5, (len(section), 5)))).astype(float)
    counts[np.repeat(~MASK, 12, axis=0)] = np.nan
    centres = np.tile([(x, y) for x in range(4) for y in range(3)], (4, 1)).astype(float)
    return rng.normal(2, 1, counts.shape).astype(np.float32).astype(float), counts, depth, section, centres


def every_score(predicted, counts, depth, section, centres):
    """All scores that read spots x genes."""
    noise = metrics.counts_without_biology(counts, depth, section)
    return {
        "depth_controlled": metrics.depth_controlled_correlation(predicted, counts, depth, section),
        "log_cpm": metrics.log_cpm_correlation(predicted, counts, depth, section),
        "spearman": metrics.log_cpm_rank_correlation(predicted, counts, depth, section),
        "variance": spatial.correlation_variance(predicted, counts, depth, section, centres),
        "moran": spatial.moran_per_gene(predicted, counts, depth, section, centres),
        "noise": noise,
        "noise_ceiling": metrics.noise_ceiling(counts, depth, section),
        "spots": metrics.spot_correlation(predicted, counts, depth),
        "errors": metrics.log_cpm_errors(predicted, counts, depth),
        "pcc": metrics.triplex_correlation(predicted, counts, depth, section),
        "between": differences.between_groups(predicted, counts, depth, section),
        "calibration": differences.calibration(predicted, counts, depth, section),
    }


@pytest.mark.parametrize("at_a_time", [1, 13, 40])
def test_blocks_of_any_size_give_the_same_scores(monkeypatch, at_a_time):
    data = made(3)
    whole = every_score(*data)
    monkeypatch.setattr(blocks, "VALUES_AT_A_TIME", at_a_time)
    for name, values in every_score(*data).items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-10, atol=1e-12, err_msg=name)


def test_counts_in_float32_score_as_in_float64():
    predicted, counts, *rest = made(4)
    whole = every_score(predicted, counts, *rest)
    for name, values in every_score(predicted.astype(np.float32), counts.astype(np.float32), *rest).items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-10, atol=1e-12, err_msg=name)


def test_sums_of_many_large_counts_in_float32_lose_no_digits():
    rng = np.random.default_rng(0)
    depth = np.full(40_000, 50_000.0)
    counts = rng.poisson(5000 + rng.normal(0, 50, (40_000, 1))).astype(float)
    residuals = metrics.pearson_residuals(counts, depth)
    np.testing.assert_allclose(metrics.pearson_residuals(counts.astype(np.float32), depth), residuals, atol=1e-10)
    section = np.full(len(depth), "A")
    drawn = [metrics.counts_without_biology(x, depth, section) for x in (counts, counts.astype(np.float32))]
    np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize("score", [metrics.depth_controlled_correlation, metrics.triplex_correlation,
                                   metrics.log_cpm_rank_correlation, differences.calibration,
                                   differences.between_groups])  # fmt: skip
def test_a_score_of_many_spots_takes_less_memory_than_one_copy_of_them(monkeypatch, score):
    rng = np.random.default_rng(0)
    counts = rng.poisson(3, (20_000, 60)).astype(np.float32)
    predicted, depth, section = counts + np.float32(0.5), np.full(20_000, 200.0), np.repeat(["A", "B"], 10_000)
    monkeypatch.setattr(blocks, "VALUES_AT_A_TIME", 2**15)
    tracemalloc.start()
    score(predicted, counts, depth, section)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < counts.size * 8
