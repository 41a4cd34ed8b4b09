"""Ridge regression and nearest neighbours on colour and texture: the predictors that a model must beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from stpredict.arrays import Float, Int, Labels
from stpredict.statistics import regression
from stpredict.statistics.masks import measured_alike
from stpredict.statistics.regression import LinearMap
from stpredict.statistics.sampling import draw_evenly

ALPHAS = np.logspace(0, 6, 25)
NEIGHBOURS = (5, 10, 20, 50, 100, 200)
#: Most spots among which neighbours are sought, and most spots for which the number of neighbours is chosen. More of
#: them change little, and time grows with their product.
MOST_KNOWN, MOST_TRIED = 20_000, 4096
#: Spots whose neighbours are in memory at a time.
BLOCK = 2000


@dataclass(frozen=True)
class NearestNeighbours:
    """The mean of the targets of the `n_neighbors` nearest known spots, in standardised features."""

    scaler: StandardScaler
    search: NearestNeighbors
    targets: Float  # of the known spots, spots x outputs
    n_neighbors: int

    def predict(self, features: Float) -> Float:
        """Predictions for spots x features, spots x outputs."""
        scaled = self.scaler.transform(features)
        parts = [np.empty((0, self.targets.shape[1]))]
        for start in range(0, len(scaled), BLOCK):
            nearest = self.search.kneighbors(scaled[start : start + BLOCK], self.n_neighbors, return_distance=False)
            parts.append(_averaging(nearest, len(self.targets)) @ self.targets)
        return np.concatenate(parts)


def fit_ridge(features: Float, targets: Float) -> LinearMap:
    """Ridge regression on standardised features; one alpha for all targets (spots x outputs) by leave-one-out.

    Targets that are NaN in some spots are fitted on the others.
    """
    return regression.fit_ridge(features, targets, ALPHAS)


def fit_neighbours(
    features: Float, targets: Float, patient: Labels, section: Labels
) -> list[tuple[Int | slice, NearestNeighbours]]:  # fmt: skip
    """Columns of `targets` (spots x genes), with what predicts them from the spots whose features are nearest.

    Each gene is looked up in the spots that measured it, where it is not NaN. One that none measured is in no group.
    """
    fitted = []
    for alike in measured_alike(targets):
        if alike.empty:
            continue
        rows = alike.rows
        group = patient[rows] if len(set(patient[rows])) > 1 else section[rows]
        fitted.append((alike.columns, fit_nearest_neighbours(features[rows], alike.of(targets), group, section[rows])))
    return fitted


def fit_nearest_neighbours(
    features: Float, targets: Float, group: Labels, section: Labels | None = None
) -> NearestNeighbours:
    """Mean of the k nearest training spots in standardised features.

    One k serves all targets: the k of least squared error when each `group` (a label per spot: patient or section) is
    predicted from the others, because spots of one section would find one another. With one group, each spot is
    predicted from the others. If there are very many spots, equally many of each `section` are known, and fewer tried.
    """
    drawn = draw_evenly(group if section is None else section, MOST_KNOWN)
    if len(drawn) < len(features):
        features, targets, group = features[drawn], targets[drawn], group[drawn]
    scaler = StandardScaler()
    scaled = scaler.fit_transform(features)
    best = _choose_k(scaled, targets, group)
    return NearestNeighbours(scaler, NearestNeighbors(n_neighbors=best).fit(scaled), targets, best)


def _choose_k(scaled: Float, targets: Float, group: Labels) -> int:
    """The number of neighbours of least squared error, from features (standardised) and targets, spots x outputs."""
    choices = [k for k in NEIGHBOURS if k < len(scaled)]
    if not choices:
        return 1
    groups = [group == name for name in np.unique(group)]
    tried = np.isin(np.arange(len(scaled)), draw_evenly(group, MOST_TRIED))
    errors = np.zeros(len(choices))
    for held_out in groups:
        known = ~held_out if len(groups) > 1 else held_out
        search = NearestNeighbors(n_neighbors=min(choices[-1], max(int(known.sum()) - 1, 1))).fit(scaled[known])
        if len(groups) == 1:
            nearest = search.kneighbors(return_distance=False)[tried]  # without a query, no spot is its own neighbour
            errors += _errors(nearest, targets, targets[tried], choices)
            continue
        place = np.flatnonzero(known)
        asked = np.flatnonzero(held_out & tried)
        for start in range(0, len(asked), BLOCK):
            rows = asked[start : start + BLOCK]
            nearest = place[search.kneighbors(scaled[rows], return_distance=False)]
            errors += _errors(nearest, targets, targets[rows], choices)
    return choices[int(np.argmin(errors))]


def _errors(nearest: Int, known: Float, wanted: Float, choices: list[int]) -> Float:
    """The sum of squared errors for each number of neighbours. `nearest` (n x most) has the nearest one first."""
    errors = np.zeros(len(choices))
    for start in range(0, len(nearest), BLOCK):
        own, mean, before = nearest[start : start + BLOCK], np.zeros((1, 1)), 0
        for i, k in enumerate(choices):  # of which each has the neighbours of the one before
            further = own[:, before:k]
            if further.size:
                n = before + further.shape[1]
                mean = before / n * mean + (1 - before / n) * (_averaging(further, len(known)) @ known)
                before = n
            errors[i] += float(((mean - wanted[start : start + BLOCK]) ** 2).sum())
    return errors


def _averaging(nearest: Int, n_known: int) -> csr_array:
    """The matrix, spots x known, whose product with targets is their mean over each spot's neighbours (spots x k)."""
    n, k = nearest.shape
    return csr_array((np.full(n * k, 1 / k), nearest.ravel(), np.arange(n + 1) * k), (n, n_known))
