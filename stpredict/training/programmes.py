"""Gene programmes: how genes vary together, learnt from counts alone, and ridge regression along them.

Counts are thinned into halves. Both halves have the same signal, and independent noise, so the covariance between them
is that of the signal. That needs counts alone, so sections without an image help, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from stpredict.arrays import Bool, Float, Int
from stpredict.data.tiles import Counted, Tiles, columns
from stpredict.data.twins import with_twins
from stpredict.machine import one_blas_thread
from stpredict.statistics.masks import Alike
from stpredict.statistics.metrics import pearson_residuals
from stpredict.statistics.normalisation import NORMALISATIONS, Normalisation
from stpredict.statistics.regression import NEGLIGIBLE, LinearMap, find_directions, fit_each

N_PROGRAMMES = 40
#: Shallower spots show too little of how genes vary together. They are used only if there are no others.
MIN_DEPTH = 500
HALVINGS = 4
STRENGTHS = np.logspace(1, 7, 25)


def signal_covariance(counts: Float, depth: Float) -> Float:
    """Covariance of the genes' Pearson residuals in one section (spots x genes), without the counts' noise.

    As an estimate of a difference, it may have negative eigenvalues.
    """
    rng = np.random.default_rng(0)
    total = np.zeros((counts.shape[1], counts.shape[1]))
    for _ in range(HALVINGS):
        half = rng.binomial(counts.astype(np.int64), 0.5).astype(float)
        a, b = (pearson_residuals(part, depth / 2) for part in (half, counts - half))
        cross = (a - a.mean(axis=0)).T @ (b - b.mean(axis=0))
        total += (cross + cross.T) / len(counts)  # twice the halves' covariance is the covariance of all counts
    return total / HALVINGS


def gene_covariance(
    tiles: Tiles, panel: Sequence[str], sections: Sequence[str], normalisation: Normalisation = NORMALISATIONS["total"]
) -> tuple[Float, list[str]]:
    """Genes x genes: mean over patients of their sections' signal covariance; and the sections that it comes from.

    For two genes, it comes from sections that measured both; it is 0 if none did. The sections are the training
    `sections` and sections without images. To keep the test unseen, the latter are left out if their patient has images
    and is not in training, or if they are twins of a section with an image that is not in training.
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
    used = deep_spots([
        OfSection(str(name), one, np.flatnonzero(one.section == name), tiles.measured_by([name], panel)[0])
        for one in counted
        for name in sorted(kept & set(one.section))
    ])  # fmt: skip
    if not used:
        return np.eye(len(panel)), []
    total, weigh = np.zeros((len(panel), len(panel))), pair_weights(used)
    for one in used:
        counts = columns(one.of.counts[one.rows], tiles.genes, panel)
        depth = normalisation.depth(counts, one.of.depth[one.rows])
        if one.measured.all():
            total += signal_covariance(counts, depth) / weigh(one)
        else:
            own = signal_covariance(counts[:, one.measured], depth)
            there = np.ix_(one.measured, one.measured)
            total[there] += own / np.asarray(weigh(one))[there]
    unknown = ~np.any([one.measured for one in used], axis=0)
    if unknown.any():  # give them the others' mean variance, and no covariance
        total[unknown, unknown] = 1.0 if unknown.all() else total.diagonal()[~unknown].mean()
    return total, [one.name for one in used]


@dataclass(frozen=True)
class OfSection:
    """Spots of one section among others, and which genes of the panel it measured."""

    name: str
    of: Counted
    rows: Int
    measured: Bool

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
    enough = {one.measured.tobytes() for one in deep if len(one.rows) > 1}
    chosen = (
        one if one.measured.tobytes() in enough else every.of_depth(1)
        for every, one in zip(sections, deep, strict=True)
    )
    return [one for one in chosen if len(one.rows) > 1]


def pair_weights(used: Sequence[OfSection]) -> Callable[[OfSection], Float | int]:
    """Divisors of each section's covariance, so that the sum is the mean over patients of their sections' mean.

    For a pair of genes, only sections that measured both count. So a divisor is genes x genes, or one number if all
    sections measured all genes.
    """
    n_sections = Counter(one.patient for one in used)
    if all(one.measured.all() for one in used):
        return lambda one: n_sections[one.patient] * len(n_sections)

    @lru_cache(maxsize=1)
    def together(patient: str) -> Float:
        """How many of a patient's sections measured both genes of each pair."""
        masks: Float = np.array([one.measured for one in used if one.patient == patient], dtype=float)
        return masks.T @ masks

    n_patients = np.zeros_like(together(used[0].patient))
    for patient in n_sections:
        n_patients += together(patient) > 0
    return lambda one: together(one.patient) * n_patients


def fit_programmes(features: Float, residuals: Float, covariance: Float, n: int = N_PROGRAMMES) -> LinearMap:
    """Ridge regression of residuals (spots x genes) along the first `n` eigenvectors of their signal's covariance.

    The penalty of each is the inverse square of its variance, as programmes that vary little carry over to other
    patients least. Predicting each spot from the others chooses the one strength of the penalty.
    """
    with one_blas_thread():
        variance, vectors = np.linalg.eigh(covariance)
    first = np.argsort(-variance)[:n]
    first = first[variance[first] > NEGLIGIBLE * variance.max()]
    prior, vectors = variance[first] ** 2 / variance.max(), vectors[:, first]
    known = find_directions(features)
    centre = residuals.mean(axis=0) @ vectors
    programmes = residuals @ vectors - centre
    projected = known.project(programmes)
    # directions x programmes, for each strength
    kept = [known.s[:, None] ** 2 / (known.s[:, None] ** 2 + strength / prior) for strength in STRENGTHS]
    errors = np.zeros(len(kept))
    for rows, u in known.blocks():
        squares = np.square(u)
        for i, own in enumerate(kept):
            left = np.maximum(1 - 1 / len(features) - squares @ own, NEGLIGIBLE)
            errors[i] += float((((programmes[rows] - u @ (own * projected)) / left) ** 2).sum())
    best = kept[int(np.argmin(errors))]
    weight = known.vt.T @ (best / known.s[:, None] * projected) @ vectors.T
    return LinearMap(known.mean, known.scale, weight, centre @ vectors.T)


def fit_programmes_where_measured(features: Float, residuals: Float, covariance: Float, n: int) -> LinearMap:
    """As `fit_programmes`, with residuals that are NaN if a gene was not measured; 0 for genes that no spot measured.

    Each gene is fitted on the spots that measured it, along programmes of all genes that these spots measured. Genes of
    some sections are fitted as if there were no other sections.
    """

    def fit(group: Alike) -> LinearMap:
        if isinstance(group.columns, slice):
            return fit_programmes(features, residuals, covariance, n)
        own = residuals[group.rows]
        known = np.flatnonzero(~np.isnan(own).any(axis=0))
        found = fit_programmes(features[group.rows], own[:, known], covariance[np.ix_(known, known)], n)
        wanted = np.searchsorted(known, group.columns)
        return replace(found, weight=found.weight[:, wanted], bias=found.bias[wanted])

    joined = fit_each(features, residuals, fit)
    return replace(joined, bias=np.nan_to_num(joined.bias))
