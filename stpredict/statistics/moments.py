"""Sums over spots, from which means, covariances and regressions follow, of all spots or of those that are left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stpredict.arrays import Float, Int

#: Spots whose products are summed at a time.
BLOCK = 4096


@dataclass(frozen=True)
class Moments:
    """For `n` spots, the sum of their features, and the sum of the products of each two features (features x features).

    Features far from 0 lose digits. Subtract about their mean first.
    """

    n: int
    total: Float
    products: Float

    def __add__(self, other: Moments) -> Moments:
        """The moments of these spots and the others."""
        return Moments(self.n + other.n, self.total + other.total, self.products + other.products)

    def __sub__(self, other: Moments) -> Moments:
        """The moments of these spots without the others."""
        return Moments(self.n - other.n, self.total - other.total, self.products - other.products)

    def of(self, features: Int) -> Moments:
        """The moments of some of the features."""
        return Moments(self.n, self.total[features], self.products[np.ix_(features, features)])

    @property
    def mean(self) -> Float:
        return self.total / self.n

    @property
    def deviations(self) -> Float:
        """The sum of the products of the features' deviations from their means, features x features."""
        scatter: Float = self.products - np.outer(self.total, self.total) / self.n
        return scatter


def moments_of(values: Float, middle: Float | float = 0.0) -> Moments:
    """The moments of `values` (spots x features) less `middle`."""
    n_features = values.shape[1]
    total, products = np.zeros(n_features), np.zeros((n_features, n_features))
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK] - middle
        total += block.sum(axis=0)
        products += block.T @ block
    return Moments(len(values), total, products)


@dataclass(frozen=True)
class Scatter:
    """For `n` spots, the mean of their features, and the sum of the products of their deviations from it.

    Scatters of several parts are joined without loss of digits, however far apart the parts lie.
    """

    n: int
    mean: Float
    products: Float  # features x features

    @property
    def spread(self) -> Float:
        """The standard deviation of each feature."""
        spread: Float = np.sqrt(np.diag(self.products) / self.n)
        return spread


def scatter_of(values: Float) -> Scatter:
    """The scatter of `values` (spots x features)."""
    mean = values.mean(axis=0)
    return Scatter(len(values), mean, moments_of(values, mean).deviations)


def join_scatters(parts: Sequence[Scatter]) -> Scatter:
    """The scatter of the spots of all parts."""
    n = sum(part.n for part in parts)
    mean = np.sum([part.n * part.mean for part in parts], axis=0) / n
    products = np.zeros_like(parts[0].products)
    for part in parts:
        products += part.products
    away = np.array([np.sqrt(part.n) * (part.mean - mean) for part in parts])
    return Scatter(n, mean, products + away.T @ away)
