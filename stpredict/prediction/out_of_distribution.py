"""Does a slide look like what the model was trained on? Colour and texture against the model file's reference."""

from __future__ import annotations

import numpy as np

from stpredict.arrays import UInt8
from stpredict.evaluation.features import colour_texture_features
from stpredict.weights import REFERENCE_FEATURES, Model

#: A patch is unusual if it lies further from the training patches than this fraction of them does.
UNUSUAL_QUANTILE = 0.99
#: From this share of unusual patches on, `predict` and the pictures say so.
UNUSUAL_FROM = 0.5
#: Added to the variances, so that features which hardly vary in training do not decide alone.
SHRINKAGE = 0.1


def unusual_fraction(patches: UInt8, model: Model) -> float:
    """Fraction of patches (n x P x P x 3) outside the training's by Mahalanobis distance; 0 without a reference."""
    reference = model.tensors.get(REFERENCE_FEATURES)
    if reference is None or len(reference) < 2:
        return 0.0
    mean, spread = reference.mean(axis=0), reference.std(axis=0) + 1e-9
    known, new = (reference - mean) / spread, (colour_texture_features(patches) - mean) / spread
    precision = np.linalg.inv(np.cov(known, rowvar=False) + SHRINKAGE * np.eye(known.shape[1]))
    ours, theirs = (np.einsum("ij,jk,ik->i", x, precision, x) for x in (known, new))
    return float((theirs > np.quantile(ours, UNUSUAL_QUANTILE)).mean())
