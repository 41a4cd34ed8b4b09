"""Scores of predicted expression, per gene and within sections.

The first score is the depth-controlled correlation: Pearson correlation of the prediction with analytic Pearson
residuals (Lause, Berens and Kobak 2021, Genome Biology 22:258), in which sequencing depth, unlike in ln(1 + CPM),
scores next to nothing.

A count is NaN if the spot's section did not measure the gene. A gene is scored in the sections that measured it, and a
spot on the genes that its section measured. A score is NaN if there are none, or if predictions are NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stpredict.arrays import Bool, Float, Int, Labels
from stpredict.statistics.masks import measured_alike, measured_by_section

#: Overdispersion of the negative binomial whose deviation scales residuals.
THETA = 100.0
PER_MILLION = 1e6
#: Genes that PCC(H) averages.
HIGHLY_PREDICTIVE = 50
#: Scores of each test section. Runs keep them; cards do not.
LOG_CPM_BY_SECTION, SPOTS_BY_SECTION = "log_cpm_by_section", "spots_by_section"
#: With this many patients or more, intervals follow from the spread between patients.
PATIENTS_FOR_INTERVALS = 6
#: The share of the significant genes that may be so by chance.
FALSE_DISCOVERIES = 0.05
#: Bins of predicted expression, for the calibration.
N_BINS = 10


def log_cpm(counts: Float, depth: Float, per: float = PER_MILLION) -> Float:
    """ln(1 + counts per million, or per another number `per`), spots x genes; shares are counts over `depth`."""
    scaled = (per * counts).astype(float, copy=False)
    scaled /= np.maximum(depth, 1)[:, None]
    expression: Float = np.log1p(scaled, out=scaled)
    return expression


def pearson_residuals(counts: Float, depth: Float) -> Float:
    """Analytic Pearson residuals of one section, spots x genes, clipped at the square root of the number of spots.

    Residuals are zero for a gene that was never counted, and NaN for one that was not measured.
    """
    share = counts.sum(axis=0) / depth.sum()
    expected = depth[:, None] * share
    spread = np.sqrt(expected + expected**2 / THETA)
    residuals = np.divide(counts - expected, spread, out=np.zeros_like(expected), where=spread > 0)
    residuals[:, np.isnan(share)] = np.nan
    limit = np.sqrt(len(counts))
    clipped: Float = np.clip(residuals, -limit, limit)
    return clipped


def correlation_per_gene(predicted: Float, observed: Float) -> Float:
    """Pearson correlation per column. A constant prediction scores 0.

    NaN if the observed column is constant, or if either column holds NaN.
    """
    predicted, observed = (np.asarray(x, dtype=np.float64) for x in (predicted, observed))
    p, o = predicted - predicted.mean(axis=0), observed - observed.mean(axis=0)
    scale = np.linalg.norm(p, axis=0) * np.linalg.norm(o, axis=0)
    r = np.divide((p * o).sum(axis=0), scale, out=np.zeros(p.shape[1]), where=(scale > 0) & ~_flat(predicted))
    return np.where((np.ptp(observed, axis=0) > 0) & ~np.isnan(p[0]), np.clip(r, -1, 1), np.nan)


def _flat(values: Float) -> Bool:
    """Which columns are constant, apart from rounding."""
    flat: Bool = np.ptp(values, axis=0) <= 1e-12 * np.maximum(1.0, np.abs(values).max(axis=0))
    return flat


def depth_controlled_correlation(predicted: Float, counts: Float, depth: Float, section: Labels) -> Float:
    """Per gene: correlation within each section between prediction and Pearson residuals, mean over sections.

    `counts` are spots x genes of the panel, over `depth` they are shares, `section` is a label per spot.
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
    """As `log_cpm_correlation`, but Spearman's: over ranks, and ties share theirs."""
    from scipy.stats import rankdata  # slow to import, and most users of this module do not rank

    return _mean_over_sections(
        section,
        lambda rows: correlation_per_gene(
            rankdata(predicted[rows], axis=0), rankdata(log_cpm(counts[rows], depth[rows], per), axis=0)
        ),
    )


def spot_correlation(predicted: Float, counts: Float, depth: Float, per: float = PER_MILLION) -> tuple[float, float]:
    """The M2ORT papers' scores for ln(1 + CPM): correlation across genes, and RMSE, each a mean over spots.

    The genes' means alone score high. Spots without counts in the panel have no correlation and do not count in it.
    """
    observed = log_cpm(counts, depth, per)
    r, rmse = np.full((2, len(observed)), np.nan)
    for group in measured_alike((predicted - observed).T):
        if group.empty:
            continue
        spots, genes = group.columns, group.rows
        p, o = (values[spots][:, genes] for values in (predicted, observed))
        rmse[spots] = np.sqrt(((p - o) ** 2).mean(axis=1))
        r[spots] = correlation_per_gene(p.T, o.T)
    return _mean(r), _mean(rmse)


def log_cpm_errors(predicted: Float, counts: Float, depth: Float, per: float = PER_MILLION) -> tuple[float, float]:
    """Mean squared and mean absolute error of ln(1 + CPM) over all spots and their genes, as TRIPLEX reports them."""
    error = predicted - log_cpm(counts, depth, per)
    return _mean(error**2), _mean(abs(error))


def triplex_correlation(
    predicted: Float, counts: Float, depth: Float, section: Labels, per: float = PER_MILLION
) -> tuple[float, float]:
    """PCC(M) and PCC(H) of TRIPLEX (Chung et al. 2024, CVPR).

    Both average the correlation of ln(1 + CPM) over spots, which each section and gene has. PCC(M) is its mean over
    genes and, weighted by spots, over sections. PCC(H) is the same mean over the 50 genes with the best mean rank over
    sections. The scores that it averages choose these genes, so it is high for any predictor. A constant gene has no
    score and the last rank. A gene has no rank in a section that did not measure it.
    """
    r, spots = correlations_of_sections(predicted, counts, depth, section, per)
    return pcc_over_sections(r, spots, measured_by_section(counts, section))


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


def pcc_over_sections(r: Float, spots: Int, measured: Bool | None = None) -> tuple[float, float]:
    """PCC(M) and PCC(H) from correlations, sections x genes; each section has so many `spots`.

    A gene's rank is its mean over sections that `measured` it (sections x genes; all if not given). In each, ranks are
    divided by the number of genes measured there.
    """
    rank = np.argsort(np.argsort(-np.nan_to_num(r, nan=-2), axis=1, kind="stable"), axis=1).astype(float)
    if measured is not None and not measured.all():
        values = np.where(measured, np.nan_to_num(r, nan=-2), -3)  # genes that were not measured come last
        rank = np.argsort(np.argsort(-values, axis=1, kind="stable"), axis=1)
        rank = np.where(measured, rank * r.shape[1] / np.maximum(measured.sum(axis=1, keepdims=True), 1), np.nan)
    highly_predictive = np.argsort(mean_of_known(rank), kind="stable")[:HIGHLY_PREDICTIVE]

    def mean(some: Float) -> float:
        per_section = mean_of_known(some.T)
        known = np.isfinite(per_section)
        return float(np.average(per_section[known], weights=spots[known])) if known.any() else float("nan")

    return mean(r), mean(r[:, highly_predictive])


def pseudobulk(expression: Float, depth: Float, group: Labels) -> Float:
    """ln(1 + CPM) of each group's spots taken together, groups (sorted) x genes, from ln(1 + CPM) per spot.

    Spots are weighted by their depth, as in a sum of counts. A gene is averaged over spots whose expression is known.
    """
    known = np.isfinite(expression)
    share = np.where(known, np.expm1(expression), 0) * depth[:, None]

    def together(own: Bool) -> Float:
        whole = np.where(known[own].all(axis=0), depth[own].sum(), depth[own] @ known[own])
        mean: Float = np.divide(share[own].sum(axis=0), whole, out=np.full(len(whole), np.nan), where=whole > 0)
        return np.log1p(mean)

    return np.array([together(group == name) for name in np.unique(group)])


def between_groups(
    predicted: Float, counts: Float, depth: Float, group: Labels, per: float = PER_MILLION
) -> tuple[float, float]:
    """Predicted against measured pseudobulk across sections or patients: correlation and slope.

    The correlation is per gene across groups, mean over genes. The slope is that of measured on predicted deviations
    from the gene's mean, over all genes at once: 1 if differences have the right size, less if the prediction
    overstates them. Genes that fewer than three groups measured do not count. NaN if none is left, or if nothing
    differs.
    """
    measured = pseudobulk(log_cpm(counts, depth, per), depth, group)
    expected = pseudobulk(np.where(np.isnan(counts), np.nan, predicted), depth, group)
    r, squares, products, n = np.full(measured.shape[1], np.nan), 0.0, 0.0, 0
    for alike in measured_alike(expected - measured):
        e, m = (alike.of(values) for values in (expected, measured))
        if len(m) < 3:
            continue
        r[alike.columns] = correlation_per_gene(e, m)
        e, m = e - e.mean(axis=0), m - m.mean(axis=0)
        squares, products, n = squares + float((e**2).sum()), products + float((e * m).sum()), n + e.size
    return _mean(r), products / squares if squares > 1e-12 * n else float("nan")


def calibration(predicted: Float, counts: Float, depth: Float, section: Labels) -> tuple[Float, Float]:
    """Predicted and measured expression in ten bins of the predicted, low to high, relative to each gene's own mean.

    Within each section, each gene's spots are sorted by its prediction and cut into ten bins of as many spots. A bin's
    expression is the share of its counts (predicted: the mean share, weighted by depth), divided by the section's
    share. Returns means over sections and counted genes: 1 is the average, 2 is twice as much.
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
    """Numbers of genes and spots that have no correlation because they do not vary."""

    genes_never_counted: int
    genes_not_counted_in_a_section: int  # pairs of section and gene
    predictions_constant_in_a_section: int  # pairs of section and gene; they score 0
    spots_without_panel_counts: int


def count_constant(predicted: Float, counts: Float, section: Labels) -> Constant:
    """Count the measured genes and spots that these correlations leave out, or score 0."""
    rows, there = [section == name for name in np.unique(section)], measured_by_section(counts, section)
    positive = counts > 0
    pairs = list(zip(rows, there, strict=True))
    return Constant(
        genes_never_counted=int((~positive.any(axis=0) & there.any(axis=0)).sum()),
        genes_not_counted_in_a_section=sum(int((~positive[own].any(axis=0) & known).sum()) for own, known in pairs),
        predictions_constant_in_a_section=sum(int((_flat(predicted[own]) & known).sum()) for own, known in pairs),
        spots_without_panel_counts=int((~positive.any(axis=1)).sum()),
    )


def noise_ceiling(counts: Float, depth: Float, section: Labels, seed: int = 0) -> Float:
    """Per gene: the highest depth-controlled correlation that noise in the counts allows.

    Counts are thinned binomially into halves. If the halves' residuals correlate with r, Spearman-Brown gives the
    reliability 2r / (1 + r) of all counts. Its square root bounds any predictor's correlation with them.
    """
    half = halved(counts, np.random.default_rng(seed))

    def ceiling(rows: Bool) -> Float:
        halves = (pearson_residuals(part[rows], depth[rows] / 2) for part in (half, counts - half))
        r = np.clip(correlation_per_gene(*halves), 0, 1)
        return np.sqrt(2 * r / (1 + r))

    return _mean_over_sections(section, ceiling)


def halved(counts: Float, rng: np.random.Generator) -> Float:
    """Half of the counts, thinned binomially; NaN for genes that were not measured."""
    measured = ~np.isnan(counts)
    half = np.full(counts.shape, np.nan)
    half[measured] = rng.binomial(counts[measured].astype(np.int64), 0.5)
    return half


def counts_without_biology(counts: Float, depth: Float, section: Labels, seed: int = 0) -> Float:
    """Counts drawn from the sections' mean shares at the real depths. No predictor should score on them."""
    rng = np.random.default_rng(seed)
    drawn = np.full_like(counts, np.nan)
    for name in np.unique(section):
        rows = section == name
        share = counts[rows].sum(axis=0) / depth[rows].sum()
        measured = ~np.isnan(share)
        drawn[np.ix_(rows, measured)] = rng.poisson(depth[rows, None] * share[measured])
    return drawn


def mean_of_known(values: Float) -> Float:
    """Mean over the first axis, without NaN; NaN if nothing is known."""
    known = np.isfinite(values)
    if len(values) and known.all():
        return np.asarray(values.mean(axis=0))
    total = np.where(known, values, 0).sum(axis=0)
    mean: Float = np.divide(total, known.sum(axis=0), out=np.full(values.shape[1], np.nan), where=known.any(axis=0))
    return mean


def rounded_mean(values: Float) -> float | None:
    """Mean of known values, to four decimals; None if all are NaN."""
    return round(float(np.nanmean(values)), 4) if np.isfinite(values).any() else None


def _mean(values: Float) -> float:
    """Mean of known values; NaN if all are NaN."""
    known = np.isfinite(values)
    return float(values.mean() if known.all() else np.nanmean(values) if known.any() else np.nan)


def _mean_over_sections(section: Labels, score: Callable[[Bool], Float]) -> Float:
    return mean_of_known(np.array([score(section == name) for name in np.unique(section)]))
