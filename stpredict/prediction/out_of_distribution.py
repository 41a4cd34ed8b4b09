"""Are patches like those that the model was trained on? Their colours, and what the network makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stpredict.arrays import Float, Float32, Int, Labels, UInt8
from stpredict.evaluation.features import PERCENTILES
from stpredict.weights import REFERENCE_FEATURES, REFERENCE_OUTPUT_MEAN, REFERENCE_OUTPUT_WHITENING, Model

#: A patch is unusual if it lies further from the training patches than this fraction of them does from the others.
UNUSUAL_QUANTILE = 0.99
#: From this share of unusual patches on, `predict` and the pictures say so.
UNUSUAL_FROM = 0.5
#: Added to the variances, so that combinations of features which hardly vary in training do not decide alone.
SHRINKAGE = 0.1
#: No feature counts as more constant than this, a few grey levels.
LEAST_SPREAD = 1e-3
#: No direction of the output counts as narrower than this part of the widest one.
NARROWEST = 0.01
#: Of the reference's features, those of colour come first; texture costs fifty times as much and is left out.
N_COLOURS = 6 * (2 + len(PERCENTILES))
#: Optical density of the darkest that scikit-image's colour deconvolution knows.
BLACK = 6
#: Below this many patches there is no spread to speak of.
MIN_REFERENCE = 3
#: Directions in which a network's output is compared with that for training patches: the widest, and
N_DIRECTIONS = 20
#: one for so many patches at most. A section alone is left out in so many parts.
PATCHES_PER_DIRECTION, PARTS = 10, 5


@dataclass(frozen=True)
class Reference:
    """Training patches as a distance: the length of (x - mean) @ whitening, 1 at the bound of the usual."""

    mean: Float
    whitening: Float


def reference_of(model: Model) -> Reference | None:
    """The reference of colours that a model file holds, if it does."""
    features = model.tensors.get(REFERENCE_FEATURES)
    if features is None or len(features) < MIN_REFERENCE or not np.isfinite(features).all():
        return None
    return make_reference(features[:, :N_COLOURS].astype(np.float64))


def make_reference(features: Float) -> Reference:
    """The Mahalanobis distance to the colours of training patches (n x 36), in units of the bound.

    The bound is the 99th percentile of their own distances, each from mean and covariance of the others, which follow
    from those of all in closed form (Sherman and Morrison 1950).
    """
    n, n_features = features.shape
    mean, spread = features.mean(axis=0), np.maximum(features.std(axis=0), LEAST_SPREAD)
    known = (features - mean) / spread
    covariance, shrinkage = np.cov(known, rowvar=False), SHRINKAGE * np.eye(n_features)
    others = np.linalg.inv((n - 1) / (n - 2) * covariance + shrinkage)
    squared = np.einsum("ij,jk,ik->i", known, others, known)
    left_out = (n / (n - 1)) ** 2 * squared / (1 - n / ((n - 1) * (n - 2)) * squared)
    bound = max(float(np.quantile(np.sqrt(left_out), UNUSUAL_QUANTILE)), LEAST_SPREAD)
    whitening = np.linalg.cholesky(np.linalg.inv(covariance + shrinkage))
    return Reference(mean, whitening / spread[:, None] / bound)


def output_reference_of(model: Model) -> Reference | None:
    """The reference of the network's output that a model file holds, if it does."""
    mean, whitening = (model.tensors.get(name) for name in (REFERENCE_OUTPUT_MEAN, REFERENCE_OUTPUT_WHITENING))
    if mean is None or whitening is None:
        return None
    return Reference(mean.astype(np.float64), whitening.astype(np.float64))


def make_output_reference(expression: Float, section: Labels) -> Reference | None:
    """The Mahalanobis distance to what a network predicts of training patches (n x genes), in units of the bound.

    It is taken in the directions of the widest spread; a linear head's output holds nothing but what the network's
    last features hold. The bound is the 99th percentile of the distances of each section from the others, or of each
    fifth of one alone. None where patches are too few.
    """
    parts: Labels | Int = section if len(np.unique(section)) > 1 else np.arange(len(section)) * PARTS // len(section)
    largest = int(np.unique(parts, return_counts=True)[1].max())
    n_directions = min(N_DIRECTIONS, (len(expression) - largest) // PATCHES_PER_DIRECTION)
    if n_directions < 1:
        return None
    left_out = [
        unusual(expression[parts == part], _whitened(expression[parts != part], n_directions))
        for part in np.unique(parts)
    ]
    bound = max(float(np.quantile(np.concatenate(left_out), UNUSUAL_QUANTILE)), LEAST_SPREAD)
    reference = _whitened(expression, n_directions)
    return Reference(reference.mean, reference.whitening / bound)


def _whitened(values: Float, n_directions: int) -> Reference:
    mean = values.mean(axis=0)
    _, spread, directions = np.linalg.svd(values - mean, full_matrices=False)
    deviation = spread[:n_directions] / np.sqrt(len(values) - 1)
    return Reference(
        mean, directions[:n_directions].T / np.maximum(deviation, max(LEAST_SPREAD, NARROWEST * deviation[0]))
    )


def optical_density(levels: UInt8) -> Float32:
    """-log10 of transmission, from a table of the 256 grey levels; black is 6, as scikit-image takes it."""
    transmission = np.maximum(np.arange(256) / 255, 10.0**-BLACK)
    return (-np.log10(transmission)).astype(np.float32)[levels]


def colour_planes(rgb: UInt8, density: Float32) -> Float32:
    """R, G, B, haematoxylin, eosin and DAB of pixels, as scikit-image separates them: n x 6 x pixels.

    `rgb` is n x 3 x pixels, `density` its optical density.
    """
    from skimage.color import hed_from_rgb

    planes = np.empty((len(rgb), 6, rgb.shape[2]), np.float32)
    planes[:, :3] = rgb
    # One by one: a matrix product rounds differently for a patch alone and among others.
    for stain, (red, green, blue) in enumerate((hed_from_rgb / BLACK).astype(np.float32).T):
        mixed = density[:, 0] * red + density[:, 1] * green + density[:, 2] * blue
        np.maximum(mixed, 0, out=planes[:, 3 + stain])
    return planes


def colour_features(planes: Float32) -> Float:
    """The 36 colour features of patches, as `patch_features` has them; `planes` are sorted along their pixels."""
    position = np.array(PERCENTILES) / 100 * (planes.shape[2] - 1)
    below = np.floor(position).astype(np.int64)
    low, high = planes[:, :, below], planes[:, :, np.minimum(below + 1, planes.shape[2] - 1)]
    percentiles = low + (high - low) * (position - below)
    mean = planes.mean(axis=2)
    spread = np.sqrt(np.square(planes - mean[:, :, None]).mean(axis=2))
    return np.concatenate([mean, spread, *np.moveaxis(percentiles, 2, 0)], axis=1).astype(np.float64)


def unusual(features: Float | Float32, reference: Reference) -> Float:
    """Distance of each patch's colours (n x 36) or output (n x genes) to the training patches': 99 % lie within 1."""
    # No matrix product of many patches, which rounds differently for a patch alone and among others.
    away = (features - reference.mean)[:, :, None]
    whitened = np.concatenate([(patch * reference.whitening).sum(axis=1) for patch in away[:, None]])
    distance: Float = np.sqrt(np.square(whitened).sum(axis=1))
    return distance
