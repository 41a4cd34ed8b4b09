"""Whether predicted differences are as large as measured ones, between sections or patients and within sections."""

from __future__ import annotations

import numpy as np

from stpredict.arrays import Bool, Float, Labels, Real
from stpredict.statistics.blocks import blocks, gene_by_gene, rows_of_sections
from stpredict.statistics.masks import measured_alike
from stpredict.statistics.metrics import PER_MILLION, correlation_per_gene, log_cpm, mean_of_all

#: Bins of predicted expression, for the calibration.
N_BINS = 10


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
    predicted: Real, counts: Real, depth: Float, group: Labels, per: float = PER_MILLION
) -> tuple[float, float]:
    """Predicted against measured pseudobulk across sections or patients: correlation and slope.

    The correlation is per gene across groups, mean over genes. The slope is that of measured on predicted deviations
    from the gene's mean, over all genes at once: 1 if differences have the right size, less if the prediction
    overstates them. Genes that fewer than three groups measured do not count. NaN if none is left, or if nothing
    differs.
    """
    every = np.arange(len(counts))
    measured = gene_by_gene(lambda x: pseudobulk(log_cpm(x, depth, per), depth, group), every, counts)
    expected = gene_by_gene(
        lambda p, x: pseudobulk(np.where(np.isnan(x), np.nan, p), depth, group), every, predicted, counts
    )
    r, squares, products, n = np.full(measured.shape[1], np.nan), 0.0, 0.0, 0
    for alike in measured_alike(expected - measured):
        e, m = (alike.of(values) for values in (expected, measured))
        if len(m) < 3:
            continue
        r[alike.columns] = correlation_per_gene(e, m)
        e, m = e - e.mean(axis=0), m - m.mean(axis=0)
        squares, products, n = squares + float((e**2).sum()), products + float((e * m).sum()), n + e.size
    return mean_of_all(r), products / squares if squares > 1e-12 * n else float("nan")


def calibration(predicted: Real, counts: Real, depth: Float, section: Labels) -> tuple[Float, Float]:
    """Predicted and measured expression in ten bins of the predicted, low to high, relative to each gene's own mean.

    Within each section, each gene's spots are sorted by its prediction and cut into ten bins of as many spots. A bin's
    expression is the share of its counts (predicted: the mean share, weighted by depth), divided by the section's
    share. Returns means over sections and counted genes: 1 is the average, 2 is twice as much.
    """
    sums: Float = np.zeros((2, N_BINS))
    counted = 0
    for rows in rows_of_sections(section):
        if len(rows) < N_BINS:
            continue
        for genes in blocks(counts.shape[1], len(rows)):
            bins = _bins(predicted[rows, genes].astype(float), counts[rows, genes].astype(float), depth[rows])
            sums += bins.sum(axis=2)
            counted += bins.shape[2]
    low_to_high: Float = sums / counted if counted else np.full_like(sums, np.nan)
    return low_to_high[0], low_to_high[1]


def _bins(predicted: Float, counts: Float, depth: Float) -> Float:
    """The calibration in one section: predicted and measured x bins x counted genes."""
    known = counts.sum(axis=0) > 0
    x, d = counts[:, known], np.repeat(depth[:, None], known.sum(), axis=1)
    share = np.expm1(predicted[:, known])
    order = np.argsort(share, axis=0, kind="stable")
    share, x, d = (np.take_along_axis(values, order, axis=0) for values in (share * d, x, d))
    starts = np.linspace(0, len(order), N_BINS, endpoint=False).astype(int)
    bins = []
    for amount in (share, x):
        per_bin = np.add.reduceat(amount, starts) / np.add.reduceat(d, starts)
        overall = amount.sum(axis=0) / d.sum(axis=0)
        bins.append(np.divide(per_bin, overall, out=np.ones_like(per_bin), where=overall > 0))
    return np.array(bins)
