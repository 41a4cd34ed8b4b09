"""Are patches like those that the model was trained on? Their colours, and what the network's head reads of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stpredict.arrays import Float, Float32, Int, Labels, UInt8
from stpredict.model.file import REFERENCE_FEATURES, REFERENCE_PART, Model
from stpredict.statistics.colour_texture import PERCENTILES

#: A patch is unusual if it lies further from the training patches than this fraction of them does from the others,
UNUSUAL_QUANTILE = 0.99
#: those of other patients where there are so many, else of other sections, or of the other parts of one alone. What is
#: left out must leave a reference: no more than this share of the patches.
MIN_PATIENTS, PARTS, MOST_LEFT_OUT = 3, 5, 2 / 3
#: From this share of unusual patches on, `predict` and the pictures say so.
UNUSUAL_FROM = 0.5
#: Added to the variances, so that combinations of features which hardly vary in training do not decide alone.
SHRINKAGE = 0.1
#: No feature counts as more constant than this, a few grey levels.
LEAST_SPREAD = 1e-3
#: No direction of what the head reads counts as narrower than this part of the widest one.
NARROWEST = 0.01
#: Of the reference's features, those of colour come first; texture costs fifty times as much and is left out.
N_COLOURS = 6 * (2 + len(PERCENTILES))
#: Optical density of the darkest that scikit-image's colour deconvolution knows.
BLACK = 6
#: What haematoxylin, eosin and DAB absorb of red, green and blue (Ruifrok and Johnston 2001), and its inverse. They are
#: scikit-image's, which is not imported: that inverts them by scipy's BLAS, which without memory never ends.
RGB_FROM_HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
HED_FROM_RGB = np.linalg.inv(RGB_FROM_HED)
#: Below this many patches there is no spread to speak of.
MIN_REFERENCE = 10
#: Directions in which what the head reads is compared with that of training patches: the widest, and
N_DIRECTIONS = 80
#: one for so many patches at most.
PATCHES_PER_DIRECTION = 5


@dataclass(frozen=True)
class Reference:
    """Training patches as a distance: the length of (x - mean) @ whitening, 1 at the bound of the usual."""

    mean: Float
    whitening: Float


def parts_left_out(patient: Labels, section: Labels) -> Int:
    """Which patches are left out together when the bound is found: the number of each one's part."""
    for labels, least in ((patient, MIN_PATIENTS), (section, 2)):
        _, part, n_patches = np.unique(labels, return_inverse=True, return_counts=True)
        if len(n_patches) >= least and n_patches.max() <= MOST_LEFT_OUT * len(labels):
            return part.astype(np.int64)
    return np.arange(len(section)) * PARTS // max(len(section), 1)


def reference_of(model: Model) -> Reference | None:
    """The reference of colours that a model file holds, if it does; older files do not say what to leave out."""
    features, part = model.tensors.get(REFERENCE_FEATURES), model.tensors.get(REFERENCE_PART)
    if features is None or len(features) < MIN_REFERENCE or not np.isfinite(features).all():
        return None
    if part is None or len(part) - np.unique(part, return_counts=True)[1].max() < MIN_REFERENCE:
        part = np.arange(len(features)) * PARTS // len(features)
    return make_reference(features[:, :N_COLOURS].astype(np.float64), part)


def make_reference(features: Float, part: Int) -> Reference:
    """The Mahalanobis distance to the colours of training patches (n x 36), in units of the bound.

    The bound is the 99th percentile of the distances of each part's patches from all others.
    """
    return _in_units_of_the_bound(features, part, _whitened_colours)


def make_feature_reference(read: Float, part: Int) -> Reference | None:
    """The Mahalanobis distance to what a network's head reads of training patches (n x features), likewise.

    It is taken in the directions of their widest spread. None where patches are too few.
    """
    n_left = len(read) - int(np.bincount(part).max(initial=0))
    n_directions = min(N_DIRECTIONS, read.shape[1], n_left // PATCHES_PER_DIRECTION)
    if n_directions < 1:
        return None
    return _in_units_of_the_bound(read, part, lambda some: _whitened_directions(some, n_directions))


def _in_units_of_the_bound(values: Float, part: Int, whiten: Callable[[Float], Reference]) -> Reference:
    left_out = [unusual(values[part == one], whiten(values[part != one])) for one in np.unique(part)]
    bound = max(float(np.quantile(np.concatenate(left_out), UNUSUAL_QUANTILE)), LEAST_SPREAD)
    reference = whiten(values)
    return Reference(reference.mean, reference.whitening / bound)


def _whitened_colours(features: Float) -> Reference:
    mean, spread = features.mean(axis=0), np.maximum(features.std(axis=0), LEAST_SPREAD)
    covariance = np.cov((features - mean) / spread, rowvar=False)
    whitening = np.linalg.cholesky(np.linalg.inv(covariance + SHRINKAGE * np.eye(len(mean))))
    return Reference(mean, whitening / spread[:, None])


def _whitened_directions(values: Float, n_directions: int) -> Reference:
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
    planes = np.empty((len(rgb), 6, rgb.shape[2]), np.float32)
    planes[:, :3] = rgb
    # One by one: a matrix product rounds differently for a patch alone and among others.
    for stain, (red, green, blue) in enumerate((HED_FROM_RGB / BLACK).astype(np.float32).T):
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
    """Distance of each patch's features (n x features) to the training patches': 99 % lie within 1."""
    # No matrix product of many patches, which rounds differently for a patch alone and among others.
    away = (features - reference.mean)[:, :, None]
    return length(np.concatenate([(patch * reference.whitening).sum(axis=1) for patch in away[:, None]]))


def length(whitened: Float | Float32) -> Float:
    """How long each row is, of n x directions."""
    distance: Float = np.sqrt(np.square(whitened).sum(axis=1))
    return distance
