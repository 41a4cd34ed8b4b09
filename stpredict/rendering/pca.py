"""The first three principal components of the predicted expression, as red, green and blue."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stpredict.arrays import Float, Float32, UInt8
from stpredict.errors import ResultError
from stpredict.rendering.colour import MIN_RANGE
from stpredict.result.file import Result

#: The covariance grows with the square of the number of genes, the time for its eigenvectors with the cube.
MAX_GENES = 4000
COMPONENTS = 3
#: Percentiles of a component between which its colour goes from dark to full.
PERCENTILES = (1, 99)


@dataclass(frozen=True)
class Components:
    """`scores` are spots x 3, NaN where the slide could not be read; `loadings` 3 x genes.

    `explained` are 3 shares of the variance; `ranges` the scores with the darkest and fullest colour, 2 x 3.
    """

    scores: Float32
    loadings: Float
    explained: Float
    ranges: Float32

    def colours(self, scores: Float32) -> UInt8:
        """RGB of finite scores, ... x 3."""
        low, high = self.ranges
        position = (scores - low) * (255 / (high - low))
        colours: UInt8 = np.clip(position, 0, 255).round().astype(np.uint8)
        return colours


def principal_components(result: Result, genes: list[int]) -> Components:
    """Components of the centred, unscaled expression of some genes, read block by block.

    The sign of a component makes its largest loading positive. Raises ResultError for fewer than three genes or spots,
    and for more than MAX_GENES genes.
    """
    if len(genes) > MAX_GENES:
        raise ResultError(
            f"{result.path.name}: components are made of up to {MAX_GENES:,} genes, and these are {len(genes):,}; name "
            "some with --genes."
        )
    n_spots, total, products = 0, np.zeros(len(genes)), np.zeros((len(genes), len(genes)))
    for block in result.blocks(genes):
        known = block[np.isfinite(block).all(axis=1)].astype(np.float64)
        n_spots += len(known)
        total += known.sum(axis=0)
        products += known.T @ known
    if len(genes) < COMPONENTS or n_spots < COMPONENTS:
        raise ResultError(f"{result.path.name}: three components need at least three genes and three spots.")
    mean = total / n_spots
    variance, vectors = np.linalg.eigh(products / n_spots - np.outer(mean, mean))
    loadings = vectors[:, ::-1][:, :COMPONENTS].T
    largest = np.take_along_axis(loadings, np.abs(loadings).argmax(axis=1)[:, None], axis=1)
    loadings = loadings * np.sign(largest)
    scores = np.concatenate([(block - mean) @ loadings.T for block in result.blocks(genes)]).astype(np.float32)
    explained = np.maximum(variance[::-1][:COMPONENTS], 0) / max(float(variance.sum()), 1e-12)
    low, high = np.nanpercentile(scores, PERCENTILES, axis=0)
    ranges = np.stack([low, np.maximum(high, low + MIN_RANGE)]).astype(np.float32)
    return Components(scores, loadings, explained, ranges)
