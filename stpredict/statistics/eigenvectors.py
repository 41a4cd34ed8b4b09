"""The widest directions of a covariance, without the thousands that nobody asks for."""

from __future__ import annotations

import numpy as np

from stpredict.arrays import Float
from stpredict.machine import one_blas_thread

#: Fewer of all directions than this part are found by Lanczos' method, ten times as fast as all of them.
FEW = 0.1


def widest(covariance: Float, n: int) -> tuple[Float, Float]:
    """The `n` largest eigenvalues of a symmetric matrix, the largest first, and their vectors, one a column."""
    if n > FEW * len(covariance):
        return _all(covariance, n)
    # Lanczos' method misses values that are there many times, as those of columns that vary with no other may be.
    off_diagonal = np.count_nonzero(covariance, axis=0) - (covariance.diagonal() != 0)
    alone = off_diagonal == 0
    if not alone.any():
        return _few(covariance, n)
    tied = np.flatnonzero(~alone)
    values, own = widest(covariance[np.ix_(tied, tied)], min(n, len(tied)))
    vectors = np.zeros((len(covariance), len(values) + int(alone.sum())))
    vectors[tied, : len(values)] = own
    vectors[np.flatnonzero(alone), np.arange(len(values), vectors.shape[1])] = 1
    every = np.concatenate([values, covariance.diagonal()[alone]])
    first = np.argsort(-every, kind="stable")[:n]
    return every[first], vectors[:, first]


def _all(covariance: Float, n: int) -> tuple[Float, Float]:
    with one_blas_thread():
        values, vectors = np.linalg.eigh(covariance)
    first = np.argsort(-values)[:n]
    return values[first], vectors[:, first]


def _few(covariance: Float, n: int) -> tuple[Float, Float]:
    from scipy.sparse.linalg import ArpackError, eigsh  # slow to import

    start = np.random.default_rng(0).normal(size=len(covariance))
    try:
        with one_blas_thread():
            values, vectors = eigsh(covariance, n, which="LA", v0=start)
    except ArpackError:
        return _all(covariance, n)
    return values[::-1], vectors[:, ::-1]
