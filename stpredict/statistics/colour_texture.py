"""Colour and texture of patches: 52 numbers that ridge regression reads, and that tell unusual slides."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from stpredict.arrays import Float, UInt8

GREY_LEVELS = 16
PERCENTILES = (5, 25, 75, 95)
TEXTURES = ("contrast", "homogeneity", "energy", "correlation")
N_FEATURES = 52
CHUNK = 64  # patches in memory at a time


def patch_features(patch: UInt8) -> Float:
    """52 numbers of one RGB patch: moments and percentiles of R, G, B, H, E and DAB, and grey-level co-occurrence."""
    from skimage.color import rgb2hed
    from skimage.feature import graycomatrix, graycoprops

    channels = np.concatenate([patch.astype(np.float64), rgb2hed(patch)], axis=-1).reshape(-1, 6)
    colour = [channels.mean(axis=0), channels.std(axis=0), *np.percentile(channels, PERCENTILES, axis=0)]
    grey = (patch.mean(axis=-1) * GREY_LEVELS / 256).astype(np.uint8)
    matrix = graycomatrix(
        grey, distances=[1, 4], angles=[0, np.pi / 2], levels=GREY_LEVELS, symmetric=True, normed=True
    )
    texture = [graycoprops(matrix, name).ravel() for name in TEXTURES]
    return np.concatenate([*colour, *texture])


def colour_texture_features(patches: Iterable[UInt8], threads: int = 2) -> Float:
    """Features of many patches, n x 52."""
    remaining = iter(patches)
    rows: list[Float] = []
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(islice(remaining, CHUNK)):
            rows += pool.map(patch_features, chunk)
    return np.array(rows).reshape(-1, N_FEATURES)
