"""Scores of predicted expression, per gene and within sections.

The first score is the depth-controlled correlation: Pearson correlation of the prediction with analytic Pearson
residuals (Lause, Berens and Kobak 2021, Genome Biology 22:258), in which sequencing depth, unlike in ln(1 + CPM),
scores next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stpredict.arrays import Bool, Float, Labels

#: Overdispersion of the negative binomial that residuals are scaled by.
THETA = 100.0


def log_cpm(counts: Float, depth: Float) -> Float:
    """ln(1 + counts per million) of spots x genes; `depth` is the spots' total count."""
    return np.log1p(1e6 * counts / np.maximum(depth, 1)[:, None])


def pearson_residuals(counts: Float, depth: Float) -> Float:
    """Analytic Pearson residuals of spots x genes of one section, clipped at the square root of the number of spots.

    A gene that was never counted has residuals of zero.
    """
    share = counts.sum(axis=0) / depth.sum()
    expected = depth[:, None] * share
    spread = np.sqrt(expected + expected**2 / THETA)
    residuals = np.divide(counts - expected, spread, out=np.zeros_like(expected), where=spread > 0)
    limit = np.sqrt(len(counts))
    clipped: Float = np.clip(residuals, -limit, limit)
    return clipped


def correlation_per_gene(predicted: Float, observed: Float) -> Float:
    """Pearson correlation per column. NaN where the observed are constant; a constant prediction scores 0."""
    predicted, observed = (np.asarray(x, dtype=np.float64) for x in (predicted, observed))
    p, o = predicted - predicted.mean(axis=0), observed - observed.mean(axis=0)
    scale = np.linalg.norm(p, axis=0) * np.linalg.norm(o, axis=0)
    # A column that is constant but for rounding is constant.
    flat = np.ptp(predicted, axis=0) <= 1e-12 * np.maximum(1.0, np.abs(predicted).max(axis=0))
    r = np.divide((p * o).sum(axis=0), scale, out=np.zeros(p.shape[1]), where=(scale > 0) & ~flat)
    return np.where(np.ptp(observed, axis=0) > 0, np.clip(r, -1, 1), np.nan)


def depth_controlled_correlation(predicted: Float, counts: Float, depth: Float, section: Labels) -> Float:
    """Per gene: correlation within each section between prediction and Pearson residuals, mean over sections.

    `counts` are spots x genes of the panel, `depth` the total over all genes, `section` a label per spot.
    """
    return _mean_over_sections(
        section, lambda rows: correlation_per_gene(predicted[rows], pearson_residuals(counts[rows], depth[rows]))
    )


def log_cpm_correlation(predicted: Float, counts: Float, depth: Float, section: Labels) -> Float:
    """Per gene: correlation within each section between prediction and ln(1 + CPM), mean over sections.

    Mostly a measure of depth: in a shallow spot every gene is zero.
    """
    return _mean_over_sections(
        section, lambda rows: correlation_per_gene(predicted[rows], log_cpm(counts[rows], depth[rows]))
    )


def log_cpm_rank_correlation(predicted: Float, counts: Float, depth: Float, section: Labels) -> Float:
    """As `log_cpm_correlation`, Spearman's: of ranks, ties sharing theirs."""
    from scipy.stats import rankdata  # slow to import, and most that need this module do not rank

    return _mean_over_sections(
        section,
        lambda rows: correlation_per_gene(
            rankdata(predicted[rows], axis=0), rankdata(log_cpm(counts[rows], depth[rows]), axis=0)
        ),
    )


def spot_correlation(predicted: Float, counts: Float, depth: Float) -> tuple[float, float]:
    """The M2ORT papers' scores: mean over spots of the correlation across genes, and of the RMSE, of ln(1 + CPM).

    Reached by the genes' means alone. Spots without counts in the panel have no correlation and are left out of it.
    """
    observed = log_cpm(counts, depth)
    rmse = float(np.sqrt(((predicted - observed) ** 2).mean(axis=1)).mean())
    r = correlation_per_gene(predicted.T, observed.T)
    return float(np.nanmean(r)), rmse


def noise_ceiling(counts: Float, depth: Float, section: Labels, seed: int = 0) -> Float:
    """Per gene: the highest depth-controlled correlation that noise in the counts allows.

    Counts are thinned binomially into halves, whose residuals correlate with r; Spearman-Brown gives the
    reliability 2r / (1 + r) of all counts, and its square root bounds any predictor's correlation with them.
    """
    half = np.random.default_rng(seed).binomial(counts.astype(np.int64), 0.5).astype(float)

    def ceiling(rows: Bool) -> Float:
        halves = (pearson_residuals(part[rows], depth[rows] / 2) for part in (half, counts - half))
        r = np.clip(correlation_per_gene(*halves), 0, 1)
        return np.sqrt(2 * r / (1 + r))

    return _mean_over_sections(section, ceiling)


def counts_without_biology(counts: Float, depth: Float, section: Labels, seed: int = 0) -> Float:
    """Counts drawn from the sections' mean shares at the real depths: what no predictor should score on."""
    rng = np.random.default_rng(seed)
    drawn = np.empty_like(counts)
    for name in np.unique(section):
        rows = section == name
        share = counts[rows].sum(axis=0) / depth[rows].sum()
        drawn[rows] = rng.poisson(depth[rows, None] * share)
    return drawn


def mean_of_known(values: Float) -> Float:
    """Mean over the first axis of what is not NaN; NaN where nothing is known."""
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(axis=0)
    mean: Float = np.divide(total, known.sum(axis=0), out=np.full(values.shape[1], np.nan), where=known.any(axis=0))
    return mean


def _mean_over_sections(section: Labels, score: Callable[[Bool], Float]) -> Float:
    return mean_of_known(np.array([score(section == name) for name in np.unique(section)]))
