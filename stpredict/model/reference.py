"""Are patches like those of training? Compare their colours, and the features that the network's head reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stpredict.arrays import Float, Float32, Int, Labels, UInt8
from stpredict.machine import one_blas_thread
from stpredict.model.file import REFERENCE_FEATURES, REFERENCE_PART, Model
from stpredict.statistics.colour_texture import HED_FROM_RGB, PERCENTILES
from stpredict.statistics.moments import BLOCK, Moments, moments_of

#: A patch is unusual if it lies further from the training patches than this fraction of them lies from the others.
UNUSUAL_QUANTILE = 0.99
#: The others are those of other patients if there are so many patients, else of other sections, else of the other
#: parts of one section. A part that is left out has at most this share of the patches, so that a reference remains.
MIN_PATIENTS, PARTS, MOST_LEFT_OUT = 3, 5, 2 / 3
#: From this share of unusual patches on, `predict` and the pictures say so.
UNUSUAL_FROM = 0.5
#: Added to the variances, so that features which hardly vary in training, alone or combined, do not dominate.
SHRINKAGE = 0.1
#: Smallest spread of a feature, a few grey levels.
LEAST_SPREAD = 1e-3
#: Smallest spread along a direction of the head's input, as a share of the widest.
NARROWEST = 0.01
#: Number of colour features, the first of the reference. Texture costs fifty times as much and is left out.
N_COLOURS = 6 * (2 + len(PERCENTILES))
#: Largest optical density in scikit-image's colour deconvolution.
BLACK = 6
#: Fewer patches do not define a spread.
MIN_REFERENCE = 10
#: Directions in which the head's input is compared with that of training patches: at most so many, the widest, and
N_DIRECTIONS = 80
#: at most one for so many patches.
PATCHES_PER_DIRECTION = 5


@dataclass(frozen=True)
class Reference:
    """A distance to the training patches: the length of (x - mean) @ whitening, 1 at the bound of the usual."""

    mean: Float
    whitening: Float


def parts_left_out(patient: Labels, section: Labels) -> Int:
    """The part of each patch, n. Patches of one part are left out together to find the bound."""
    for labels, least in ((patient, MIN_PATIENTS), (section, 2)):
        _, part, n_patches = np.unique(labels, return_inverse=True, return_counts=True)
        if len(n_patches) >= least and n_patches.max() <= MOST_LEFT_OUT * len(labels):
            return part.astype(np.int64)
    return np.arange(len(section)) * PARTS // max(len(section), 1)


def reference_of(model: Model) -> Reference | None:
    """The reference of colours in a model file, or None. Older files do not store the parts to leave out."""
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
    """The same for the features that a network's head reads of training patches (n x features).

    It uses the directions of their widest spread. None if the patches are too few. If a feature is not finite, neither
    is the reference, and no model file is written with it.
    """
    n_left = len(read) - int(np.bincount(part).max(initial=0))
    n_directions = min(N_DIRECTIONS, read.shape[1], n_left // PATCHES_PER_DIRECTION)
    if n_directions < 1:
        return None
    if not np.isfinite(read).all():
        return Reference(np.full(read.shape[1], np.nan), np.full((read.shape[1], n_directions), np.nan))
    import scipy.linalg  # noqa: F401 (slow to import, and its threads are limited, too)

    with one_blas_thread():
        return _in_units_of_the_bound(read, part, lambda read: _whitened_directions(read, n_directions))


def _in_units_of_the_bound(values: Float, part: Int, whiten: Callable[[Moments], Reference]) -> Reference:
    """The whitening of all patches. To find the bound, each part's moments are subtracted from all in turn."""
    middle = values.mean(axis=0)
    away = values - middle
    everything = moments_of(away)
    left_out = [
        _distances(own, whiten(everything - moments_of(own))) for own in (away[part == one] for one in np.unique(part))
    ]
    bound = max(float(np.quantile(np.concatenate(left_out), UNUSUAL_QUANTILE)), LEAST_SPREAD)
    reference = whiten(everything)
    return Reference(reference.mean + middle, reference.whitening / bound)


def _whitened_colours(colours: Moments) -> Reference:
    mean, deviations = colours.mean, colours.deviations
    spread = np.maximum(np.sqrt(np.maximum(np.diag(deviations), 0) / colours.n), LEAST_SPREAD)
    covariance = deviations / (colours.n - 1) / np.outer(spread, spread)
    whitening = np.linalg.cholesky(np.linalg.inv(covariance + SHRINKAGE * np.eye(len(mean))))
    return Reference(mean, whitening / spread[:, None])


def _whitened_directions(read: Moments, n_directions: int) -> Reference:
    from scipy.linalg import eigh

    covariance, last = read.deviations / max(read.n - 1, 1), len(read.total) - 1
    # No further directions are worked out: each part that is left out needs its own.
    variance, widest = eigh(covariance, subset_by_index=(last - n_directions + 1, last), overwrite_a=True)
    variance, widest = variance[::-1], widest[:, ::-1]
    deviation = np.sqrt(np.maximum(variance, 0))
    return Reference(read.mean, widest / np.maximum(deviation, max(LEAST_SPREAD, NARROWEST * deviation[0])))


def _distances(values: Float, reference: Reference) -> Float:
    """As `unusual`, but for many patches at once: rounding of a single one does not matter here."""
    parts = (values[start : start + BLOCK] for start in range(0, len(values), BLOCK))
    return np.concatenate([length((block - reference.mean) @ reference.whitening) for block in parts])


def optical_density(levels: UInt8) -> Float32:
    """-log10 of transmission, from a table of the 256 grey levels; black is 6, as in scikit-image."""
    transmission = np.maximum(np.arange(256) / 255, 10.0**-BLACK)
    return (-np.log10(transmission)).astype(np.float32)[levels]


def colour_planes(rgb: UInt8, density: Float32) -> Float32:
    """R, G, B, haematoxylin, eosin and DAB of pixels, as scikit-image separates them: n x 6 x pixels.

    `rgb` is n x 3 x pixels, `density` its optical density.
    """
    planes = np.empty((len(rgb), 6, rgb.shape[2]), np.float32)
    planes[:, :3] = rgb
    # No matrix product, which rounds differently for a patch alone and among others.
    for stain, (red, green, blue) in enumerate((HED_FROM_RGB / BLACK).astype(np.float32).T):
        mixed = density[:, 0] * red + density[:, 1] * green + density[:, 2] * blue
        np.maximum(mixed, 0, out=planes[:, 3 + stain])
    return planes


def colour_features(planes: Float32) -> Float:
    """The 36 colour features of patches, as in `patch_features`; `planes` are sorted along their pixels."""
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
    """The length of each row of n x directions."""
    distance: Float = np.sqrt(np.square(whitened).sum(axis=1))
    return distance
