"""Gene programmes: how genes vary together, learnt from counts alone, and ridge regression along them.

If counts are thinned into halves, both have the same signal, and independent noise, so that the covariance between them
is that of the signal. Its mean over all ways to thin the counts has a closed form. That needs counts alone, so sections
without an image help, too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

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


def _halves(counts: Float, depth: Float, share: Float, n: int) -> tuple[Float, Float]:
    """What residuals of both halves of counts have in common, spots x genes; and the sum of each gene's noise.

    These are some of a section's `n` spots, and `share` is that of each gene in the section. Given its count x, the
    halves of a gene are h and x - h, each x / 2 on average, and the mean of h (x - h) is x (x - 1) / 4. So the product
    of their expected residuals exceeds the expected product by x over four variances. Residuals are clipped as in
    `pearson_residuals`, and then have no noise.
    """
    expected = depth[:, None] * (share / 2)
    variance = expected + expected**2 / THETA
    common = counts / 2 - expected
    common = np.divide(common, np.sqrt(variance), out=np.zeros_like(expected), where=variance > 0)
    noisy = (variance > 0) & (np.abs(common) <= np.sqrt(n))
    noise = np.divide(counts / 4, variance, out=np.zeros_like(expected), where=noisy).sum(axis=0)
    return np.clip(common, -np.sqrt(n), np.sqrt(n)), noise


@dataclass(frozen=True)
class KeptCovariances:
    """The mean signal covariance of a patient's sections, by their names, over `genes`: parts of a run share them."""

    genes: Sequence[str]
    _kept: dict[tuple[str, ...], Float] = field(default_factory=dict, repr=False)

    def of(self, sections: tuple[str, ...], make: Callable[[], Float]) -> Float:
        if sections not in self._kept:
            self._kept[sections] = make()
        return self._kept[sections]


def gene_covariance(
    tiles: Tiles, panel: Sequence[str], sections: Sequence[str], normalisation: Normalisation = NORMALISATIONS["total"],
    kept: KeptCovariances | None = None,
) -> tuple[Float, list[str]]:  # fmt: skip
    """Genes x genes: mean over patients of their sections' signal covariance; and the sections that it comes from.

    For two genes, it comes from sections that measured both; it is 0 if none did. The sections are the training
    `sections` and sections without images, as `sections_used` says. If all measured the panel and all genes of `kept`,
    patients' covariances are taken from there and put there; counts must then be shares of all of a spot's.
    """
    used = sections_used(tiles, panel, sections)
    if not used:
        return np.eye(len(panel)), []

    def read(genes: Sequence[str], one: OfSection) -> tuple[Float, Float]:
        counts = columns(one.of.counts, tiles.genes, genes, one.rows)
        return counts, normalisation.depth(counts, one.of.depth[one.rows])

    def read_measured(one: OfSection) -> tuple[Float, Float]:
        counts, depth = read(panel, one)
        return counts if one.measured.all() else counts[:, one.measured], depth

    names = [one.name for one in used]
    if not all(one.measured.all() for one in used):
        return covariance_where_measured(used, read_measured), names
    if kept and not tiles.measured_by(names, kept.genes).all():
        kept = None
    by_patient: dict[str, list[OfSection]] = defaultdict(list)
    for one in used:
        by_patient[one.patient].append(one)
    genes = kept.genes if kept else panel
    total = np.zeros((len(genes), len(genes)))
    for own in by_patient.values():
        make = partial(_summed_covariance, (read(genes, one) for one in own), [len(own)] * len(own))
        total += kept.of(tuple(one.name for one in own), make) if kept else make()
    total /= len(by_patient)
    place = {gene: i for i, gene in enumerate(genes)}
    chosen = [place[gene] for gene in panel]
    return total[np.ix_(chosen, chosen)] if kept else total, names


def sections_used(tiles: Tiles, panel: Sequence[str], sections: Sequence[str]) -> list[OfSection]:
    """The spots that show how genes vary together: of the training `sections`, and of sections without images.

    To keep the test unseen, the latter are left out if their patient has images and is not in training, or if they are
    twins of a section with an image that is not in training.
    """
    counted = [Counted(tiles.section, tiles.kin, tiles.counts)]
    known = set(tiles.patient[np.isin(tiles.section, sections)])
    kept = set(sections)
    if tiles.counts_only is not None:
        more = tiles.counts_only
        counted.append(more)
        allowed = np.isin(more.patient, list(known)) | ~np.isin(more.patient, tiles.patient)
        held_out = set(tiles.section.tolist()) - set(sections)
        kept |= set(more.section[allowed]) - set(with_twins(held_out, tiles.twins))
    return deep_spots([
        OfSection(str(name), one, np.flatnonzero(one.section == name), tiles.measured_by([name], panel)[0])
        for one in counted
        for name in sorted(kept & set(one.section))
    ])  # fmt: skip


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
    total: Float | float = 0.0
    noise: Float | float = 0.0
    parts: list[Float] = []
    means: list[Float] = []
    for (counts, depth), weight in zip(sections, weights, strict=True):
        n, share = len(counts), counts.sum(axis=0) / depth.sum()
        scale, sums = (
            2 / (n * weight),
            np.zeros(counts.shape[1]),
        )  # the halves' covariance is half of that of all counts
        for start in range(0, n, BLOCK):
            rows = slice(start, start + BLOCK)
            common, of_block = _halves(counts[rows], depth[rows], share, n)
            sums += common.sum(axis=0)
            noise = noise + scale * (1 - 1 / n) * of_block
            parts.append(common * np.sqrt(scale))
            if sum(map(len, parts)) > BLOCK:
                total, parts = total + _squared(parts), []
        means.append(sums * np.sqrt(scale / n))
    found: Float = total - _squared(means) + (_squared(parts) if parts else 0.0)
    found[np.diag_indices_from(found)] -= noise
    return found


def _squared(rows: Sequence[Float]) -> Float:
    """The products of the columns of some rows."""
    stacked = np.vstack(rows)
    product: Float = stacked.T @ stacked
    return product


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
    kept = shrinkages(known, prior)
    errors = np.zeros(len(kept))
    for rows, u in known.blocks():
        squares = np.square(u)
        for i, own in enumerate(kept):
            left = np.maximum(1 - 1 / len(programmes) - squares @ own, NEGLIGIBLE)
            errors[i] += float((((programmes[rows] - u @ (own * projected)) / left) ** 2).sum())
    return to_genes(known, kept[int(np.argmin(errors))] * projected, centre, vectors)


def shrinkages(known: Directions, prior: Float) -> list[Float]:
    """What each of STRENGTHS leaves of programmes along the directions, directions x programmes."""
    variance = known.s[:, None] ** 2
    return [variance / (variance + strength / prior) for strength in STRENGTHS]


def to_genes(known: Directions, along: Float, centre: Float, vectors: Float) -> LinearMap:
    """The map to genes, from programmes (directions x programmes) with a `centre`; `vectors` are genes x programmes."""
    weight = (known.vt.T / known.s) @ along @ vectors.T
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
