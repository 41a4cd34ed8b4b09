"""Colour and texture of patches: 52 numbers. Ridge regression reads them, and they reveal unusual slides."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from stpredict.arrays import Float, Int, UInt8

GREY_LEVELS = 16
PERCENTILES = (5, 25, 75, 95)
TEXTURES = ("contrast", "homogeneity", "energy", "correlation")
N_FEATURES = 52
CHUNK = 64  # patches in memory at a time
#: Absorption of red, green and blue by haematoxylin, eosin and DAB (Ruifrok and Johnston 2001), and the inverse. The
#: values are scikit-image's. It is not imported, as it inverts them by scipy's BLAS, which hangs if memory runs out.
RGB_FROM_HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
HED_FROM_RGB = np.linalg.inv(RGB_FROM_HED)
#: The optical density of each of a byte's 256 levels, over the greatest in scikit-image's colour deconvolution.
DENSITY = np.log(np.maximum(np.arange(256) / 255, 1e-6)) / np.log(1e-6)


def patch_features(patch: UInt8) -> Float:
    """52 numbers for one RGB patch: moments and percentiles of R, G, B, H, E and DAB, and grey-level co-occurrence."""
    from skimage.feature import graycomatrix, graycoprops

    rgb = np.ascontiguousarray(patch.reshape(-1, 3).T)
    channels = [_of_bytes(rgb), _of_stains(rgb)]  # each moments and percentiles x three channels
    colour = np.concatenate([np.concatenate(both) for both in zip(*channels, strict=True)])
    # The mean of R, G and B, in sixteenths of its range.
    total = rgb[0].astype(np.uint16) + rgb[1] + rgb[2]
    grey = (total // (3 * 256 // GREY_LEVELS)).astype(np.uint8).reshape(patch.shape[:2])
    matrix = graycomatrix(
        grey, distances=[1, 4], angles=[0, np.pi / 2], levels=GREY_LEVELS, symmetric=True, normed=True
    )
    texture = [graycoprops(matrix, name).ravel() for name in TEXTURES]
    return np.concatenate([colour, *texture])


def _of_bytes(rgb: UInt8) -> list[Float]:
    """Mean, spread and percentiles of channels of bytes, from the number of pixels at each level."""
    n, levels = rgb.shape[1], np.arange(256)
    counts = np.array([np.bincount(channel, minlength=256) for channel in rgb])
    mean = counts @ levels / n
    spread = np.sqrt((counts * (levels - mean[:, None]) ** 2).sum(axis=1) / n)
    below, part = _positions(n)
    up_to = counts.cumsum(axis=1)
    low, high = ((up_to <= rank[:, None, None]).sum(axis=2) for rank in (below, np.minimum(below + 1, n - 1)))
    return [mean, spread, *(low + (high - low) * part[:, None])]


def _of_stains(rgb: UInt8) -> list[Float]:
    """Mean, spread and percentiles of haematoxylin, eosin and DAB, as scikit-image separates them."""
    stains = HED_FROM_RGB.T @ DENSITY[rgb]
    np.maximum(stains, 0, out=stains)
    mean = stains.mean(axis=1)
    spread = np.sqrt(np.square(stains - mean[:, None]).mean(axis=1))
    below, part = _positions(stains.shape[1])
    above = np.minimum(below + 1, stains.shape[1] - 1)
    stains.partition(np.unique([below, above]), axis=1)
    low, high = stains[:, below].T, stains[:, above].T
    return [mean, spread, *(low + (high - low) * part[:, None])]


def _positions(n: int) -> tuple[Int, Float]:
    """Positions of percentiles among `n` sorted values: the index below, and the fraction of the way to the next."""
    position = np.array(PERCENTILES) / 100 * (n - 1)
    below = np.floor(position).astype(np.int64)
    return below, position - below


def colour_texture_features(patches: Iterable[UInt8], threads: int = 2) -> Float:
    """Features of many patches, n x 52."""
    remaining = iter(patches)
    rows: list[Float] = []
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(islice(remaining, CHUNK)):
            rows += pool.map(patch_features, chunk)
    return np.array(rows).reshape(-1, N_FEATURES)
