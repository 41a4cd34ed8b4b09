from __future__ import annotations

import numpy as np
import pytest
from skimage.color import rgb2hed
from skimage.feature import graycomatrix, graycoprops

from stpredict.statistics.colour_texture import GREY_LEVELS, PERCENTILES, TEXTURES, patch_features


def by_scikit_image(patch: np.ndarray) -> np.ndarray:
    channels = np.concatenate([patch.astype(np.float64), rgb2hed(patch)], axis=-1).reshape(-1, 6)
    colour = [channels.mean(axis=0), channels.std(axis=0), *np.percentile(channels, PERCENTILES, axis=0)]
    grey = (patch.mean(axis=-1) * GREY_LEVELS / 256).astype(np.uint8)
    matrix = graycomatrix(grey, [1, 4], [0, np.pi / 2], levels=GREY_LEVELS, symmetric=True, normed=True)
    return np.concatenate([*colour, *(graycoprops(matrix, name).ravel() for name in TEXTURES)])


@pytest.mark.parametrize("side", [5, 33, 224])
def test_features_are_those_of_scikit_image(region, side):
    noise = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    for patch in (region[500 : 500 + side, 900 : 900 + side], noise, np.zeros_like(noise), np.full_like(noise, 255)):
        np.testing.assert_allclose(patch_features(patch), by_scikit_image(patch), rtol=1e-9, atol=1e-9)
