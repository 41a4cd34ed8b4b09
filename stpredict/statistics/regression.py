"""Ridge regression of many outputs on features of many spots, with few copies of either in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stpredict.arrays import Float
from stpredict.machine import one_blas_thread
from stpredict.statistics.blocks import Table
from stpredict.statistics.masks import Alike, kinds_of, measured_alike
from stpredict.statistics.moments import BLOCK, Scatter, join_scatters, moments_of, scatter_of

#: Singular values and variances below this part of the largest are rounding.
NEGLIGIBLE = 1e-7
#: The same for singular values from sums of products, which lose half of their digits.
NEGLIGIBLE_OF_SUMS = 1e-6


@dataclass(frozen=True)
class LinearMap:
    """(features - mean) * scale @ weight + bias."""

    mean: Float
    scale: Float
    weight: Float  # features x outputs
    bias: Float

    def predict(self, features: Float) -> Float:
        """Outputs of spots x features."""
        parts = [np.empty((0, len(self.bias)))]
        for start in range(0, len(features), BLOCK):
            block = features[start : start + BLOCK]
            parts.append(((block - self.mean) * self.scale) @ self.weight + self.bias)
        return np.concatenate(parts)


@dataclass(frozen=True)
class Directions:
    """Standardised features as u * s @ vt, without the directions in which they do not vary."""

    features: Float  # not standardised
    mean: Float
    scale: Float
    s: Float
    vt: Float  # directions x features

    @property
    def turning(self) -> Float:
        """Features x directions: u is the features, less their mean, times this."""
        turned: Float = self.scale[:, None] * self.vt.T / self.s
        return turned

    def blocks(self) -> Iterator[tuple[slice, Float]]:
        """Rows of u, spots x directions, a few thousand at a time."""
        turned = self.turning
        for start in range(0, len(self.features), BLOCK):
            rows = slice(start, min(start + BLOCK, len(self.features)))
            yield rows, (self.features[rows] - self.mean) @ turned

    @property
    def u(self) -> Float:
        """Spots x directions, all at once."""
        return np.concatenate([block for _, block in self.blocks()])

    def project(self, values: Float) -> Float:
        """u.T @ values; `values` are spots x outputs."""
        projected = np.zeros((len(self.s), values.shape[1]))
        for rows, u in self.blocks():
            projected += u.T @ values[rows]
        return projected

    def project_few(self, values: Float) -> Float:
        """As `project`, but faster if outputs are fewer than directions."""
        products = np.zeros((len(self.mean), values.shape[1]))
        for start in range(0, len(values), BLOCK):
            rows = slice(start, start + BLOCK)
            products += (self.features[rows] - self.mean).T @ values[rows]
        return self.turning.T @ products


def find_directions(features: Float, scatter: Scatter | None = None) -> Directions:
    """The directions in which features (spots x features) vary, the widest first; `scatter` is theirs, if known."""
    mean = features.mean(axis=0) if scatter is None else scatter.mean
    if len(features) < features.shape[1]:
        scale = _scale(mean, features.std(axis=0) if scatter is None else scatter.spread)
        with one_blas_thread():
            _, s, vt = np.linalg.svd((features - mean) * scale, full_matrices=False)
        real = s > NEGLIGIBLE * max(s.max(), 1.0)
        return Directions(features, mean, scale, s[real], vt[real])
    scatter = scatter or Scatter(len(features), mean, moments_of(features, mean).deviations)
    return directions_of(scatter, features)


def directions_of(scatter: Scatter, features: Float | None = None) -> Directions:
    """The directions of many features, the widest first, from their scatter; without the `features`, none has rows."""
    mean, scale = scatter.mean, _scale(scatter.mean, scatter.spread)
    with one_blas_thread():
        variance, vectors = np.linalg.eigh(scale[:, None] * scatter.products * scale)
    s, vt = np.sqrt(np.maximum(variance[::-1], 0)), vectors.T[::-1]
    real = s > NEGLIGIBLE_OF_SUMS * max(s.max(), 1.0)
    return Directions(np.empty((0, len(mean))) if features is None else features, mean, scale, s[real], vt[real])


def _scale(mean: Float, spread: Float) -> Float:
    """What features are multiplied by to have spread 1; 0 if they do not vary."""
    varies = spread > NEGLIGIBLE * np.maximum(np.abs(mean), 1)
    return np.divide(1, spread, out=np.zeros_like(spread), where=varies)


def fit_ridge(features: Float, targets: Float, alphas: Float) -> LinearMap:
    """Ridge regression on standardised features; one of the `alphas` for all targets (spots x outputs).

    The chosen alpha has the least squared error when each spot is predicted from all others, as in scikit-learn's
    RidgeCV. Targets that are NaN in some spots are fitted on the others; those known in the same spots have their own
    alpha. A target that no spot knows is predicted as NaN.
    """
    return fit_each(features, targets, lambda group, known: _fit_ridge(known, group.of(targets), alphas))


def fit_each(features: Float, targets: Float, fit: Callable[[Alike, Directions], LinearMap]) -> LinearMap:
    """Group the targets (spots x outputs) by the spots that know them, `fit` each group, and join the maps to one.

    `fit` is given the directions of the features of these spots. Predictions are NaN for targets that no spot knows.
    """
    parts = [(group, fit(group, known)) for group, known in directions_where_known(features, targets)]
    if parts and parts[0][0].whole:
        return parts[0][1]
    nowhere = np.zeros(features.shape[1])
    nothing = LinearMap(nowhere, nowhere, np.zeros((len(nowhere), 0)), np.empty(0))
    return join_maps(parts or [(Alike(np.empty(0, np.int64), np.empty(0, np.int64)), nothing)], targets.shape[1])


def directions_where_known(features: Float, targets: Table) -> Iterator[tuple[Alike, Directions]]:
    """Groups of targets that the same spots know, if any does, with the directions of the features of these spots."""
    groups = measured_alike(targets)
    if groups[0].whole:
        yield groups[0], find_directions(features)
        return
    scatter_in = scatters_where_known(features, targets)
    for group in groups:
        if not group.empty:
            yield group, find_directions(features[group.rows], scatter_in(group))


def scatters_where_known(features: Float, targets: Table) -> Callable[[Alike], Scatter | None]:
    """The scatter of the features of the spots that know a group of targets, joined from one pass over all spots.

    None if the parts would take more memory than the features.
    """
    kinds = kinds_of(targets)
    if len(kinds.known) * features.shape[1] > len(features):
        return lambda _: None
    parts = [scatter_of(features[kinds.kind == kind]) for kind in range(len(kinds.known))]
    return lambda group: join_scatters([parts[kind] for kind in kinds.of(group)])


def join_maps(parts: Sequence[tuple[Alike, LinearMap]], n_outputs: int) -> LinearMap:
    """Join maps from the same features to groups of outputs; predictions are NaN for outputs in no group.

    Each map standardises features by its own spots. The joined one does so as the map with the most spots, and its
    weights make up for the difference.
    """
    most = max(parts, key=lambda part: 0 if isinstance(part[0].rows, slice) else len(part[0].rows))[1]
    every = np.array([part.scale for _, part in parts])
    mean, scale = most.mean, np.where(most.scale > 0, most.scale, every.max(axis=0))
    weight, bias = np.zeros((len(mean), n_outputs)), np.full(n_outputs, np.nan)
    for group, part in parts:
        raw = part.scale[:, None] * part.weight
        weight[:, group.columns] = np.divide(raw, scale[:, None], out=np.zeros_like(raw), where=scale[:, None] > 0)
        bias[group.columns] = part.bias + (mean - part.mean) @ raw
    return LinearMap(mean, scale, weight, bias)


def _fit_ridge(known: Directions, targets: Float, alphas: Float) -> LinearMap:
    """Ridge regression along the directions of the features, if all targets are known.

    A spot's errors over all outputs are summed from products of pairs of directions, as directions are few.
    """
    n, mean = len(targets), targets.mean(axis=0)
    projected = known.project(targets)  # the same for targets - mean, since each direction sums to 0
    kept = known.s[:, None] ** 2 / (known.s[:, None] ** 2 + alphas)  # directions x alphas
    products, errors = projected @ projected.T, np.zeros(len(alphas))
    for rows, u in known.blocks():
        away = targets[rows] - mean
        squares, along = np.square(away).sum(axis=1), u * (away @ projected.T)
        for i, own in enumerate(kept.T):
            shrunk = u * own
            missed = squares - 2 * along @ own + ((shrunk @ products) * shrunk).sum(axis=1)
            left = np.maximum(1 - 1 / n - np.square(u) @ own, NEGLIGIBLE)
            errors[i] += float((np.maximum(missed, 0) / left**2).sum())
    best = kept[:, int(np.argmin(errors))]
    return LinearMap(known.mean, known.scale, known.vt.T @ ((best / known.s)[:, None] * projected), mean)
