"""Scores of predicted expression, per gene and within sections.

The first score is the depth-controlled correlation: Pearson correlation of the prediction with analytic Pearson
residuals (Lause, Berens and Kobak 2021, Genome Biology 22:258), in which sequencing depth, unlike in ln(1 + CPM),
scores next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stpredict.arrays import Bool, Float, Int, Labels

#: Overdispersion of the negative binomial that residuals are scaled by.
THETA = 100.0
PER_MILLION = 1e6
#: Genes that PCC(H) averages.
HIGHLY_PREDICTIVE = 50
#: Scores of each test section, which runs keep and cards do not.
LOG_CPM_BY_SECTION, SPOTS_BY_SECTION = "log_cpm_by_section", "spots_by_section"
#: From so many patients on, intervals are of the spread between them.
PATIENTS_FOR_INTERVALS = 6
#: Of the genes called significant, the share that may be so by chance.
FALSE_DISCOVERIES = 0.05
#: Of predicted expression, for the calibration.
N_BINS = 10


def log_cpm(counts: Float, depth: Float, per: float = PER_MILLION) -> Float:
    """ln(1 + counts per million, or `per` another number) of spots x genes; `depth` is what the shares are of."""
    return np.log1p(per * counts / np.maximum(depth, 1)[:, None])


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
    r = np.divide((p * o).sum(axis=0), scale, out=np.zeros(p.shape[1]), where=(scale > 0) & ~_flat(predicted))
    return np.where(np.ptp(observed, axis=0) > 0, np.clip(r, -1, 1), np.nan)


def _flat(values: Float) -> Bool:
    """Which columns are constant, but for rounding."""
    flat: Bool = np.ptp(values, axis=0) <= 1e-12 * np.maximum(1.0, np.abs(values).max(axis=0))
    return flat


def depth_controlled_correlation(predicted: Float, counts: Float, depth: Float, section: Labels) -> Float:
    """Per gene: correlation within each section between prediction and Pearson residuals, mean over sections.

    `counts` are spots x genes of the panel, `depth` what their shares are of, `section` a label per spot.
    """
    return _mean_over_sections(
        section, lambda rows: correlation_per_gene(predicted[rows], pearson_residuals(counts[rows], depth[rows]))
    )


def log_cpm_correlation(
    predicted: Float, counts: Float, depth: Float, section: Labels, per: float = PER_MILLION
) -> Float:
    """Per gene: correlation within each section between prediction and ln(1 + CPM), mean over sections.

    Mostly a measure of depth: in a shallow spot every gene is zero.
    """
    return _mean_over_sections(
        section, lambda rows: correlation_per_gene(predicted[rows], log_cpm(counts[rows], depth[rows], per))
    )


def log_cpm_rank_correlation(
    predicted: Float, counts: Float, depth: Float, section: Labels, per: float = PER_MILLION
) -> Float:
    """As `log_cpm_correlation`, Spearman's: of ranks, ties sharing theirs."""
    from scipy.stats import rankdata  # slow to import, and most that need this module do not rank

    return _mean_over_sections(
        section,
        lambda rows: correlation_per_gene(
            rankdata(predicted[rows], axis=0), rankdata(log_cpm(counts[rows], depth[rows], per), axis=0)
        ),
    )


def spot_correlation(predicted: Float, counts: Float, depth: Float, per: float = PER_MILLION) -> tuple[float, float]:
    """The M2ORT papers' scores: mean over spots of the correlation across genes, and of the RMSE, of ln(1 + CPM).

    Reached by the genes' means alone. Spots without counts in the panel have no correlation and are left out of it.
    """
    observed = log_cpm(counts, depth, per)
    rmse = float(np.sqrt(((predicted - observed) ** 2).mean(axis=1)).mean())
    r = correlation_per_gene(predicted.T, observed.T)
    return float(np.nanmean(r)) if np.isfinite(r).any() else float("nan"), rmse


def log_cpm_errors(predicted: Float, counts: Float, depth: Float, per: float = PER_MILLION) -> tuple[float, float]:
    """Mean squared and mean absolute error of ln(1 + CPM) over all spots and genes, as TRIPLEX reports them."""
    error = predicted - log_cpm(counts, depth, per)
    return float((error**2).mean()), float(abs(error).mean())


def triplex_correlation(
    predicted: Float, counts: Float, depth: Float, section: Labels, per: float = PER_MILLION
) -> tuple[float, float]:
    """PCC(M) and PCC(H) of TRIPLEX (Chung et al. 2024, CVPR).

    Per section and gene the correlation of ln(1 + CPM) over spots; PCC(M) is its mean over genes and, weighted by
    spots, over sections. PCC(H) is that of the 50 genes with the best mean rank over the sections: chosen by the
    very scores that are then averaged, so it is high for any predictor. A constant gene has no score and
    the last rank.
    """
    return pcc_over_sections(*correlations_of_sections(predicted, counts, depth, section, per))


def correlations_of_sections(
    predicted: Float, counts: Float, depth: Float, section: Labels, per: float = PER_MILLION
) -> tuple[Float, Int]:
    """Correlation of ln(1 + CPM) over spots, sections (sorted) x genes, and the sections' numbers of spots."""
    names, spots = np.unique(section, return_counts=True)
    r = np.array([
        correlation_per_gene(predicted[rows], log_cpm(counts[rows], depth[rows], per))
        for rows in (section == name for name in names)
    ])  # fmt: skip
    return r, spots


def pcc_over_sections(r: Float, spots: Int) -> tuple[float, float]:
    """PCC(M) and PCC(H) of correlations, sections x genes, of sections with so many `spots`."""
    rank = np.argsort(np.argsort(-np.nan_to_num(r, nan=-2), axis=1, kind="stable"), axis=1)
    highly_predictive = np.argsort(rank.mean(axis=0), kind="stable")[:HIGHLY_PREDICTIVE]

    def mean(some: Float) -> float:
        per_section = mean_of_known(some.T)
        known = np.isfinite(per_section)
        return float(np.average(per_section[known], weights=spots[known])) if known.any() else float("nan")

    return mean(r), mean(r[:, highly_predictive])


def pseudobulk(expression: Float, depth: Float, group: Labels) -> Float:
    """ln(1 + CPM) of each group's spots taken together, groups (sorted) x genes, from ln(1 + CPM) per spot.

    Spots count by their depth, as they do where counts are summed.
    """
    share = np.expm1(expression) * depth[:, None]
    groups = [group == name for name in np.unique(group)]
    return np.array([np.log1p(share[own].sum(axis=0) / depth[own].sum()) for own in groups])


def between_groups(
    predicted: Float, counts: Float, depth: Float, group: Labels, per: float = PER_MILLION
) -> tuple[float, float]:
    """Predicted against measured pseudobulk across sections or patients: correlation and slope.

    The correlation is per gene across groups, mean over genes. The slope is of the measured on the predicted, both as
    deviations from the gene's mean, over all genes at once: 1 where differences have the right size, less where they
    are overstated. NaN for fewer than three groups, or where nothing differs.
    """
    measured = pseudobulk(log_cpm(counts, depth, per), depth, group)
    expected = pseudobulk(predicted, depth, group)
    if len(measured) < 3:
        return float("nan"), float("nan")
    r = correlation_per_gene(expected, measured)
    p, m = expected - expected.mean(axis=0), measured - measured.mean(axis=0)
    spread = float((p**2).sum())
    slope = float((p * m).sum()) / spread if spread > 1e-12 * p.size else float("nan")
    return float(np.nanmean(r)) if np.isfinite(r).any() else float("nan"), slope


def calibration(predicted: Float, counts: Float, depth: Float, section: Labels) -> tuple[Float, Float]:
    """Predicted and measured expression in ten bins of the predicted, low to high, relative to each gene's own mean.

    Within each section every gene's spots are put in order of its prediction and cut into ten bins of as many spots. A
    bin's expression is the share of its counts (predicted: the mean share, by depth), divided by that of the section.
    Returned are means over sections and counted genes: 1 is the average, 2 is twice as much.
    """
    sums = np.zeros((2, N_BINS))
    counted = 0
    for name in np.unique(section):
        rows = section == name
        if rows.sum() < N_BINS:
            continue
        known = counts[rows].sum(axis=0) > 0
        x, d = counts[rows][:, known], np.repeat(depth[rows, None], known.sum(), axis=1)
        share = np.expm1(predicted[rows][:, known])
        order = np.argsort(share, axis=0, kind="stable")
        share, x, d = (np.take_along_axis(values, order, axis=0) for values in (share * d, x, d))
        starts = np.linspace(0, rows.sum(), N_BINS, endpoint=False).astype(int)
        for row, amount in zip(sums, (share, x), strict=True):
            per_bin = np.add.reduceat(amount, starts) / np.add.reduceat(d, starts)
            overall = amount.sum(axis=0) / d.sum(axis=0)
            row += np.divide(per_bin, overall, out=np.ones_like(per_bin), where=overall > 0).sum(axis=1)
        counted += int(known.sum())
    means = sums / counted if counted else np.full_like(sums, np.nan)
    return means[0], means[1]


@dataclass(frozen=True)
class Constant:
    """What has no correlation because it does not vary."""

    genes_never_counted: int
    genes_not_counted_in_a_section: int  # pairs of section and gene
    predictions_constant_in_a_section: int  # pairs of section and gene; they score 0
    spots_without_panel_counts: int


def count_constant(predicted: Float, counts: Float, section: Labels) -> Constant:
    """Count the genes and spots that the correlations here leave out, or score 0."""
    rows = [section == name for name in np.unique(section)]
    return Constant(
        genes_never_counted=int((~counts.any(axis=0)).sum()),
        genes_not_counted_in_a_section=sum(int((~counts[own].any(axis=0)).sum()) for own in rows),
        predictions_constant_in_a_section=sum(int(_flat(predicted[own]).sum()) for own in rows),
        spots_without_panel_counts=int((~counts.any(axis=1)).sum()),
    )


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


def rounded_mean(values: Float) -> float | None:
    """Mean of what is not NaN, to four decimals; None where nothing is known."""
    return round(float(np.nanmean(values)), 4) if np.isfinite(values).any() else None


def _mean_over_sections(section: Labels, score: Callable[[Bool], Float]) -> Float:
    return mean_of_known(np.array([score(section == name) for name in np.unique(section)]))
