"""Gene programmes: how genes vary together, learnt from counts alone, and ridge regression along them.

If counts are thinned into halves, both have the same signal, and independent noise, so that the covariance between them
is that of the signal. Its mean over all ways to thin the counts has a closed form. That needs counts alone, so sections
without an image help, too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stpredict.arrays import Bool, Float, Int
from stpredict.data.tiles import Counted, Tiles, columns
from stpredict.data.twins import with_twins
from stpredict.machine import one_blas_thread
from stpredict.statistics.eigenvectors import widest
from stpredict.statistics.masks import Alike, kinds_of
from stpredict.statistics.metrics import THETA
from stpredict.statistics.moments import BLOCK
from stpredict.statistics.normalisation import NORMALISATIONS, Normalisation
from stpredict.statistics.regression import NEGLIGIBLE, Directions, LinearMap, find_directions, fit_each

N_PROGRAMMES = 40
#: Shallower spots show too little of how genes vary together. They are used only if there are no others.
MIN_DEPTH = 500
STRENGTHS = np.logspace(1, 7, 25)


def signal_covariance(counts: Float, depth: Float) -> Float:
    """Covariance of the genes' Pearson residuals in one section (spots x genes), without the counts' noise.

    It is the expected covariance between two halves of the counts over all ways to thin them binomially. As an estimate
    of a difference, it may have negative eigenvalues.
    """
    return _summed_covariance([(counts, depth)], [1.0])


def _halves(counts: Float, depth: Float) -> tuple[Float, Float]:
    """What residuals of both halves of a section's counts have in common, spots x genes; and each gene's noise.

    Given its count x, the halves of a gene are h and x - h, each x / 2 on average, and the mean of h (x - h) is
    x (x - 1) / 4. So the product of their expected residuals exceeds the expected product by x over four variances.
    Means over spots are 0. Residuals are clipped as in `pearson_residuals`, and then have no noise.
    """
    n, share = len(counts), counts.sum(axis=0, dtype=float) / depth.sum()
    expected = depth[:, None] * (share / 2)
    variance = expected + expected**2 / THETA
    common = counts / 2 - expected
    common = np.divide(common, np.sqrt(variance), out=np.zeros_like(expected), where=variance > 0)
    noisy = (variance > 0) & (np.abs(common) <= np.sqrt(n))
    noise = np.divide(counts / 4, variance, out=np.zeros_like(expected), where=noisy).sum(axis=0)
    np.clip(common, -np.sqrt(n), np.sqrt(n), out=common)
    return common - common.mean(axis=0), noise * (1 - 1 / n)


def gene_covariance(
    tiles: Tiles, panel: Sequence[str], sections: Sequence[str], normalisation: Normalisation = NORMALISATIONS["total"]
) -> tuple[Float, list[str]]:
    """Genes x genes: mean over patients of their sections' signal covariance; and the sections that it comes from.

    For two genes, it comes from sections that measured both; it is 0 if none did. The sections are the training
    `sections` and sections without images. To keep the test unseen, the latter are left out if their patient has images
    and is not in training, or if they are twins of a section with an image that is not in training.
    """
    pictured = Counted(tiles.section, tiles.kin, tiles.counts)
    counted = [pictured]
    known = set(tiles.patient[np.isin(tiles.section, sections)])
    kept = set(sections)
    if tiles.counts_only is not None:
        more = tiles.counts_only
        counted.append(more)
        allowed = np.isin(more.patient, list(known)) | ~np.isin(more.patient, tiles.patient)
        held_out = set(tiles.section.tolist()) - set(sections)
        kept |= set(more.section[allowed]) - set(with_twins(held_out, tiles.twins))
    used = deep_spots([
        OfSection(str(name), one, np.flatnonzero(one.section == name), tiles.measured_by([name], panel)[0])
        for one in counted
        for name in sorted(kept & set(one.section))
    ])  # fmt: skip
    if not used:
        return np.eye(len(panel)), []

    def counts_and_depth(one: OfSection) -> tuple[Float, Float]:
        if one.of is pictured:
            counts = tiles.panel_counts(panel)[one.rows]
        else:
            counts = columns(one.of.counts, tiles.genes, panel, one.rows)
        depth = normalisation.depth(counts, one.of.depth[one.rows])
        return counts if one.measured.all() else counts[:, one.measured], depth

    if all(one.measured.all() for one in used):
        total = np.zeros((len(panel), len(panel)))
        n_sections = Counter(one.patient for one in used)
        for one in used:
            total += signal_covariance(*counts_and_depth(one)) / (n_sections[one.patient] * len(n_sections))
    else:
        total = covariance_where_measured(used, counts_and_depth)
    return total, [one.name for one in used]


@dataclass(frozen=True)
class OfSection:
    """Spots of one section among others, and which genes of the panel it measured."""

    name: str
    of: Counted
    rows: Int
    measured: Bool

    @property
    def kind(self) -> bytes:
        """Sections of one kind measured the same genes."""
        return self.measured.tobytes()

    @property
    def patient(self) -> str:
        return str(self.of.patient[self.rows[0]])

    def of_depth(self, least: int) -> OfSection:
        """The spots with at least this many counts."""
        return replace(self, rows=self.rows[self.of.depth[self.rows] >= least])


def deep_spots(sections: Sequence[OfSection]) -> list[OfSection]:
    """The sections with their deep spots alone, if two or more are left.

    If this leaves none of the sections that measured the same genes, these keep their shallow spots.
    """
    deep = [one.of_depth(MIN_DEPTH) for one in sections]
    enough = {one.kind for one in deep if len(one.rows) > 1}
    chosen = (one if one.kind in enough else every.of_depth(1) for every, one in zip(sections, deep, strict=True))
    return [one for one in chosen if len(one.rows) > 1]


def covariance_where_measured(
    used: Sequence[OfSection], counts_and_depth: Callable[[OfSection], tuple[Float, Float]]
) -> Float:
    """The mean over patients of their sections' mean signal covariance, genes x genes.

    For two genes, only sections that measured both count. `counts_and_depth` gives those of a section's spots, and of
    the genes that it measured. Genes that no section measured have the others' mean variance, and no covariance.
    """
    by_patient: dict[str, list[OfSection]] = defaultdict(list)
    for one in used:
        by_patient[one.patient].append(one)
    # Pairs of genes are many more than spots of a section: sections of the same weight are summed in one product.
    alike: dict[tuple[bytes, str], list[OfSection]] = defaultdict(list)
    for patient, sections in by_patient.items():
        differ = len({one.kind for one in sections}) > 1
        for one in sections:
            alike[one.kind, patient if differ else ""].append(one)
    n_genes = len(used[0].measured)
    total, n_patients = np.zeros((n_genes, n_genes)), np.zeros((n_genes, n_genes))
    for (_, patient), sections in alike.items():
        there = np.ix_(sections[0].measured, sections[0].measured)
        weights = [1 if patient else len(by_patient[one.patient]) for one in sections]
        own = _summed_covariance(map(counts_and_depth, sections), weights)
        total[there] += own / _together([one.measured for one in by_patient[patient]])[there] if patient else own
    measured_by = Counter(frozenset(one.kind for one in sections) for sections in by_patient.values())
    mask_of = {one.kind: one.measured for one in used}
    for kinds, n in measured_by.items():
        n_patients += n * (_together([mask_of[kind] for kind in kinds]) > 0)
    total /= np.maximum(n_patients, 1)
    unknown = ~np.any(list(mask_of.values()), axis=0)
    if unknown.any():
        total[unknown, unknown] = 1.0 if unknown.all() else total.diagonal()[~unknown].mean()
    return total


def _together(masks: Sequence[Bool]) -> Float:
    """How many of some sections' `masks` hold both genes of each pair."""
    each: Float = np.array(masks, dtype=float)
    return each.T @ each


def _summed_covariance(sections: Iterable[tuple[Float, Float]], weights: Sequence[float]) -> Float:
    """The sum of the signal covariances of sections (counts and depths of the same genes), each over its weight.

    Small sections share a product, as pairs of genes are many more than their spots.
    """
    total: Float | None = None
    parts: list[Float] = []
    noise: Float | float = 0.0
    last = len(weights) - 1
    for i, ((counts, depth), weight) in enumerate(zip(sections, weights, strict=True)):
        common, own_noise = _halves(counts, depth)
        scale = 2 / (len(counts) * weight)  # the halves' covariance is half of that of all counts
        parts.append(common * np.sqrt(scale))
        noise = noise + scale * own_noise
        if i == last or sum(map(len, parts)) > BLOCK:
            stacked, parts = np.concatenate(parts), []
            total = stacked.T @ stacked if total is None else total + stacked.T @ stacked
    assert total is not None, "there are sections"
    total[np.diag_indices_from(total)] -= noise
    return total


def fit_programmes(features: Float, residuals: Float, covariance: Float, n: int = N_PROGRAMMES) -> LinearMap:
    """Ridge regression of residuals (spots x genes) along the first `n` eigenvectors of their signal's covariance.

    The penalty of each is the inverse square of its variance, as programmes that vary little carry over to other
    patients least. Predicting each spot from the others chooses the one strength of the penalty.
    """
    return _fit_whole(find_directions(features), residuals, covariance, n)


def _fit_whole(known: Directions, residuals: Float, covariance: Float, n: int) -> LinearMap:
    """`fit_programmes`, by the directions of the features."""
    with one_blas_thread():
        variance, vectors = np.linalg.eigh(covariance)
    first = np.argsort(-variance)[:n]
    first = first[variance[first] > NEGLIGIBLE * variance.max()]
    prior, vectors = variance[first] ** 2 / variance.max(), vectors[:, first]
    centre = residuals.mean(axis=0) @ vectors
    programmes = residuals @ vectors - centre
    return _fit_along(known, programmes, known.project(programmes), centre, prior, vectors)


def _fit_along(
    known: Directions, programmes: Float, projected: Float, centre: Float, prior: Float, vectors: Float
) -> LinearMap:
    """Ridge regression of `programmes` (spots x programmes, less their `centre`), turned to genes by `vectors`.

    `projected` are the programmes along the directions.
    """
    # directions x programmes, for each strength
    kept = [known.s[:, None] ** 2 / (known.s[:, None] ** 2 + strength / prior) for strength in STRENGTHS]
    errors = np.zeros(len(kept))
    for rows, u in known.blocks():
        squares = np.square(u)
        for i, own in enumerate(kept):
            left = np.maximum(1 - 1 / len(programmes) - squares @ own, NEGLIGIBLE)
            errors[i] += float((((programmes[rows] - u @ (own * projected)) / left) ** 2).sum())
    best = kept[int(np.argmin(errors))]
    weight = known.vt.T @ (best / known.s[:, None] * projected) @ vectors.T
    return LinearMap(known.mean, known.scale, weight, centre @ vectors.T)


def fit_programmes_where_measured(features: Float, residuals: Float, covariance: Float, n: int) -> LinearMap:
    """As `fit_programmes`, with residuals that are NaN if a gene was not measured; 0 for genes that no spot measured.

    Each gene is fitted on the spots that measured it, along programmes of all genes that these spots measured. Genes of
    some sections are fitted as if there were no other sections.
    """
    kinds = kinds_of(residuals)

    def fit(group: Alike, known: Directions) -> LinearMap:
        if isinstance(group.columns, slice) or isinstance(group.rows, slice):
            return _fit_whole(known, residuals, covariance, n)
        genes, starts = kinds.columns_known(group), range(0, len(group.rows), BLOCK)
        variance, vectors = widest(covariance[np.ix_(genes, genes)], n)
        variance = variance[variance > NEGLIGIBLE * variance[0]]
        vectors = vectors[:, : len(variance)]
        rows = (group.rows[start : start + BLOCK] for start in starts)
        programmes = np.concatenate([residuals[np.ix_(own, genes)] @ vectors for own in rows])
        centre = programmes.mean(axis=0)
        programmes -= centre
        wanted, prior = vectors[np.searchsorted(genes, group.columns)], variance**2 / variance[:1]
        return _fit_along(known, programmes, known.project_few(programmes), centre, prior, wanted)

    joined = fit_each(features, residuals, fit)
    return replace(joined, bias=np.nan_to_num(joined.bias))
