"""Scores of predicted expression, per gene and within sections.

The first score is the depth-controlled correlation: Pearson correlation of the prediction with analytic Pearson
residuals (Lause, Berens and Kobak 2021, Genome Biology 22:258), in which sequencing depth, unlike in ln(1 + CPM),
scores next to nothing.

A count is NaN if the spot's section did not measure the gene. A gene is scored in the sections that measured it, and a
spot on the genes that its section measured. A score is NaN if there are none, or if predictions are NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from stpredict.arrays import Bool, Float, Int, Labels, Real
from stpredict.statistics.blocks import blocks, per_section, rows_of_sections
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


def log_cpm(counts: Real, depth: Float, per: float = PER_MILLION) -> Float:
    """ln(1 + counts per million, or per another number `per`), spots x genes; shares are counts over `depth`."""
    scaled = np.array(counts, dtype=np.float64)
    scaled *= per
    scaled /= np.maximum(depth, 1)[:, None]
    expression: Float = np.log1p(scaled, out=scaled)
    return expression


def pearson_residuals(counts: Real, depth: Float) -> Float:
    """Analytic Pearson residuals of one section, spots x genes, clipped at the square root of the number of spots.

    Residuals are zero for a gene that was never counted, and NaN for one that was not measured.
    """
    counts = np.asarray(counts, dtype=np.float64)
    return residuals_of(counts, depth, counts.sum(axis=0) / depth.sum(), len(counts))


def residuals_of(counts: Real, depth: Float, share: Float, n: int) -> Float:
    """As `pearson_residuals`, for some of a section's `n` spots; `share` is each gene's in all of them."""
    expected = depth[:, None] * share
    spread = np.sqrt(expected + expected**2 / THETA)
    residuals = np.divide(counts - expected, spread, out=np.zeros_like(expected), where=spread > 0)
    residuals[:, np.isnan(share)] = np.nan
    clipped: Float = np.clip(residuals, -np.sqrt(n), np.sqrt(n))
    return clipped


def correlation_per_gene(predicted: Real, observed: Real) -> Float:
    """Pearson correlation per column. A constant prediction scores 0.

    NaN if the observed column is constant, or if either column holds NaN.
    """
    predicted, observed = (np.asarray(x, dtype=np.float64) for x in (predicted, observed))
    p, o = predicted - predicted.mean(axis=0), observed - observed.mean(axis=0)
    scale = np.linalg.norm(p, axis=0) * np.linalg.norm(o, axis=0)
    r = np.divide((p * o).sum(axis=0), scale, out=np.zeros(p.shape[1]), where=(scale > 0) & ~_flat(predicted))
    return np.where((np.ptp(observed, axis=0) > 0) & ~np.isnan(p[0]), np.clip(r, -1, 1), np.nan)


def _flat(values: Real) -> Bool:
    """Which columns are constant, apart from rounding."""
    flat: Bool = np.ptp(values, axis=0) <= 1e-12 * np.maximum(1.0, np.abs(values).max(axis=0))
    return flat


def depth_controlled_correlation(predicted: Real, counts: Real, depth: Float, section: Labels) -> Float:
    """Per gene: correlation within each section between prediction and Pearson residuals, mean over sections.

    `counts` are spots x genes of the panel, over `depth` they are shares, `section` is a label per spot.
    """
    return mean_of_known(per_section(
        lambda depth, p, x: correlation_per_gene(p, pearson_residuals(x, depth)), section, depth, predicted, counts
    ))  # fmt: skip


def log_cpm_correlation(
    predicted: Real, counts: Real, depth: Float, section: Labels, per: float = PER_MILLION
) -> Float:
    """Per gene: correlation within each section between prediction and ln(1 + CPM), mean over sections.

    Mostly a measure of depth: in a shallow spot every gene is zero.
    """
    return mean_of_known(correlations_of_sections(predicted, counts, depth, section, per)[0])


def log_cpm_rank_correlation(
    predicted: Real, counts: Real, depth: Float, section: Labels, per: float = PER_MILLION
) -> Float:
    """As `log_cpm_correlation`, but Spearman's: over ranks, and ties share theirs."""
    from scipy.stats import rankdata  # slow to import, and most users of this module do not rank

    return mean_of_known(per_section(
        lambda depth, p, x: correlation_per_gene(rankdata(p, axis=0), rankdata(log_cpm(x, depth, per), axis=0)),
        section, depth, predicted, counts,
    ))  # fmt: skip


@dataclass(frozen=True)
class SpotScores:
    """Of ln(1 + CPM) in each spot, over the genes measured in it: correlation, sums of errors, and number of genes."""

    correlation: Float
    squares: Float
    absolute: Float
    genes: Int

    def means(self) -> tuple[float, float, float, float]:
        """The mean correlation and the mean RMSE over spots; MSE and MAE over all spots and their genes."""
        known = self.genes > 0
        rmse = np.sqrt(self.squares[known] / self.genes[known])
        total = self.genes.sum() if known.any() else np.nan
        mse, mae = (float(sums.sum() / total) for sums in (self.squares, self.absolute))
        return mean_of_all(self.correlation), mean_of_all(rmse), mse, mae


def score_spots(predicted: Float, observed: Float) -> SpotScores:
    """The scores of spots, from expression, spots x genes; `observed` is NaN where a gene was not measured."""
    error = predicted - observed
    r = np.full(len(error), np.nan)
    for group in measured_alike(error.T):
        if not group.empty:
            spots, genes = group.columns, group.rows
            r[spots] = correlation_per_gene(*(values[spots][:, genes].T for values in (predicted, observed)))
    known = np.isfinite(error)
    squares, absolute = (np.where(known, values, 0).sum(axis=1) for values in (error**2, abs(error)))
    return SpotScores(r, squares, absolute, known.sum(axis=1))


def join_spots(parts: Sequence[SpotScores]) -> SpotScores:
    """The scores of the spots of all parts."""
    return SpotScores(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(SpotScores)))


def spot_correlation(predicted: Real, counts: Real, depth: Float, per: float = PER_MILLION) -> tuple[float, float]:
    """The M2ORT papers' scores for ln(1 + CPM): correlation across genes, and RMSE, each a mean over spots.

    The genes' means alone score high. Spots without counts in the panel have no correlation and do not count in it.
    """
    return _spots_of(predicted, counts, depth, per).means()[:2]


def log_cpm_errors(predicted: Real, counts: Real, depth: Float, per: float = PER_MILLION) -> tuple[float, float]:
    """Mean squared and mean absolute error of ln(1 + CPM) over all spots and their genes, as TRIPLEX reports them."""
    return _spots_of(predicted, counts, depth, per).means()[2:]


def _spots_of(predicted: Real, counts: Real, depth: Float, per: float) -> SpotScores:
    return join_spots([
        score_spots(predicted[some].astype(float), log_cpm(counts[some], depth[some], per))
        for some in blocks(*counts.shape)
    ])  # fmt: skip


def triplex_correlation(
    predicted: Real, counts: Real, depth: Float, section: Labels, per: float = PER_MILLION
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
    predicted: Real, counts: Real, depth: Float, section: Labels, per: float = PER_MILLION
) -> tuple[Float, Int]:
    """Correlation of ln(1 + CPM) over spots, sections (sorted) x genes, and the sections' numbers of spots."""
    r = per_section(
        lambda depth, p, x: correlation_per_gene(p, log_cpm(x, depth, per)), section, depth, predicted, counts
    )
    return r, np.unique(section, return_counts=True)[1]


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


@dataclass(frozen=True)
class Constant:
    """Numbers of genes and spots that have no correlation because they do not vary."""

    genes_never_counted: int
    genes_not_counted_in_a_section: int  # pairs of section and gene
    predictions_constant_in_a_section: int  # pairs of section and gene; they score 0
    spots_without_panel_counts: int


def count_constant(predicted: Real, counts: Real, section: Labels) -> Constant:
    """Count the measured genes and spots that these correlations leave out, or score 0."""
    there, positive = measured_by_section(counts, section), counts > 0
    counted = np.array([positive[rows].any(axis=0) for rows in rows_of_sections(section)])
    flat = np.array([_flat(predicted[rows]) for rows in rows_of_sections(section)])
    return Constant(
        genes_never_counted=int((~positive.any(axis=0) & there.any(axis=0)).sum()),
        genes_not_counted_in_a_section=int((~counted & there).sum()),
        predictions_constant_in_a_section=int((flat & there).sum()),
        spots_without_panel_counts=int((~positive.any(axis=1)).sum()),
    )


def noise_ceiling(counts: Real, depth: Float, section: Labels, seed: int = 0) -> Float:
    """Per gene: the highest depth-controlled correlation that noise in the counts allows.

    Counts are thinned binomially into halves. If the halves' residuals correlate with r, Spearman-Brown gives the
    reliability 2r / (1 + r) of all counts. Its square root bounds any predictor's correlation with them.
    """

    def ceiling(depth: Float, whole: Float, half: Float) -> Float:
        halves = (pearson_residuals(part, depth / 2) for part in (half, whole - half))
        r = np.clip(correlation_per_gene(*halves), 0, 1)
        return np.sqrt(2 * r / (1 + r))

    half = halved(counts, np.random.default_rng(seed))
    return mean_of_known(per_section(ceiling, section, depth, counts, half))


def halved(counts: Real, rng: np.random.Generator) -> Real:
    """Half of the counts, thinned binomially; NaN for genes that were not measured."""
    half = np.full_like(counts, np.nan)
    for some in blocks(*counts.shape):  # draws are the same, however many spots are in a block
        measured = ~np.isnan(counts[some])
        half[some][measured] = rng.binomial(counts[some][measured].astype(np.int64), 0.5)
    return half


def counts_without_biology(counts: Real, depth: Float, section: Labels, seed: int = 0) -> Real:
    """Counts drawn from the sections' mean shares at the real depths. No predictor should score on them."""
    rng = np.random.default_rng(seed)
    drawn = np.full_like(counts, np.nan)
    for rows in rows_of_sections(section):
        share = counts[rows].sum(axis=0, dtype=np.float64) / depth[rows].sum()
        measured = np.flatnonzero(~np.isnan(share))
        for some in blocks(len(rows), len(measured)):
            drawn[np.ix_(rows[some], measured)] = rng.poisson(depth[rows[some], None] * share[measured])
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


def mean_of_all(values: Float) -> float:
    """Mean of known values; NaN if all are NaN."""
    known = np.isfinite(values)
    return float(values[known].mean()) if known.any() else float("nan")
