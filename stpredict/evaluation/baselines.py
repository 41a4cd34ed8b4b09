"""Ridge regression and nearest neighbours on colour and texture: the predictors that a model must beat."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array
from sklearn.linear_model import RidgeCV
from sklearn.neighbors import KNeighborsRegressor, NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from stpredict.arrays import Float, Labels

ALPHAS = np.logspace(0, 6, 25)
NEIGHBOURS = (5, 10, 20, 50, 100, 200)


def fit_ridge(features: Float, targets: Float) -> Pipeline:
    """Ridge regression on standardised features; one alpha for all targets by leave-one-out."""
    return make_pipeline(StandardScaler(), RidgeCV(alphas=ALPHAS)).fit(features, targets)


def fit_nearest_neighbours(features: Float, targets: Float, group: Labels) -> Pipeline:
    """Mean of the k nearest training spots in standardised features.

    One k for all targets, the one of least squared error when each `group` (a label per spot: patient or section) is
    predicted from the others; spots of one section would find one another. With one group, when each spot is.
    """
    scaled = StandardScaler().fit_transform(features)
    groups = [group == name for name in np.unique(group)]
    choices = [k for k in NEIGHBOURS if k < len(features)]
    errors = dict.fromkeys(choices, 0.0)
    for held_out in groups if choices else []:
        known = ~held_out if len(groups) > 1 else held_out
        search = NearestNeighbors(n_neighbors=min(choices[-1], max(int(known.sum()) - 1, 1))).fit(scaled[known])
        # Without a query a spot is not its own neighbour.
        query = scaled[held_out] if len(groups) > 1 else None
        nearest = search.kneighbors(query, return_distance=False)
        for k in choices:
            first = nearest[:, :k]
            average = csr_array(
                (np.full(first.size, 1 / first.shape[1]), first.ravel(), np.arange(len(first) + 1) * first.shape[1]),
                (len(first), int(known.sum())),
            )
            errors[k] += float(((average @ targets[known] - targets[held_out]) ** 2).sum())
    best = min(errors, key=errors.__getitem__) if errors else 1
    return make_pipeline(StandardScaler(), KNeighborsRegressor(best)).fit(features, targets)
