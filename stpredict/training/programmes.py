"""Gene programmes: ridge regression along the eigenvectors of how genes vary together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stpredict.arrays import Float
from stpredict.machine import one_blas_thread
from stpredict.statistics.eigenvectors import widest
from stpredict.statistics.masks import Alike, kinds_of
from stpredict.statistics.moments import BLOCK
from stpredict.statistics.regression import NEGLIGIBLE, Directions, LinearMap, find_directions, fit_each

N_PROGRAMMES = 40
STRENGTHS = np.logspace(1, 7, 25)


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
