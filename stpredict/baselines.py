"""Ridge regression on colour and texture: the predictor that a model must beat."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from stpredict.arrays import Float

ALPHAS = np.logspace(0, 6, 25)


def fit_ridge(features: Float, targets: Float) -> Pipeline:
    """Ridge regression on standardised features; one alpha for all targets by leave-one-out."""
    return make_pipeline(StandardScaler(), RidgeCV(alphas=ALPHAS)).fit(features, targets)
