"""Gene programmes: how genes vary together, learnt from counts alone, and ridge regression along them.

Thinning counts into halves leaves each half the whole signal and half the noise, independent of the other's: the
covariance of the halves is that of the signal. Counts need no image for that, so sections without one count too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stpredict.arrays import Float
from stpredict.data.tiles import Tiles, columns
from stpredict.data.twins import with_twins
from stpredict.statistics.metrics import pearson_residuals
from stpredict.statistics.normalisation import NORMALISATIONS, Normalisation

N_PROGRAMMES = 40
#: Shallower spots say too little of how genes vary together, and are used only where there are no others.
MIN_DEPTH = 500
HALVINGS = 4
STRENGTHS = np.logspace(1, 7, 25)
#: Smaller singular values and variances than this part of the largest are rounding.
NEGLIGIBLE = 1e-7


@dataclass(frozen=True)
class LinearMap:
    """(features - mean) * scale @ weight + bias."""

    mean: Float
    scale: Float
    weight: Float  # features x outputs
    bias: Float

    def predict(self, features: Float) -> Float:
        predicted: Float = ((features - self.mean) * self.scale) @ self.weight + self.bias
        return predicted


@dataclass(frozen=True)
class Decomposition:
    """Features, standardised, as u * s @ vt; directions in which they do not vary are left out."""

    mean: Float
    scale: Float
    u: Float  # spots x directions
    s: Float
    vt: Float  # directions x features


def decompose(features: Float) -> Decomposition:
    """The singular value decomposition of spots x features."""
    mean, spread = features.mean(axis=0), features.std(axis=0)
    varies = spread > NEGLIGIBLE * np.maximum(np.abs(mean), 1)
    scale = np.divide(1, spread, out=np.zeros_like(spread), where=varies)
    u, s, vt = np.linalg.svd((features - mean) * scale, full_matrices=False)
    real = s > NEGLIGIBLE * max(s.max(), 1.0)
    return Decomposition(mean, scale, u[:, real], s[real], vt[real])


def signal_covariance(counts: Float, depth: Float) -> Float:
    """Covariance of the genes' Pearson residuals in one section (spots x genes), without the counts' noise.

    It may have negative eigenvalues, as every estimate of a difference.
    """
    rng = np.random.default_rng(0)
    total = np.zeros((counts.shape[1], counts.shape[1]))
    for _ in range(HALVINGS):
        half = rng.binomial(counts.astype(np.int64), 0.5).astype(float)
        a, b = (pearson_residuals(part, depth / 2) for part in (half, counts - half))
        cross = (a - a.mean(axis=0)).T @ (b - b.mean(axis=0))
        total += (cross + cross.T) / len(counts)  # twice the halves' covariance is that of all counts
    return total / HALVINGS


def gene_covariance(
    tiles: Tiles, panel: Sequence[str], sections: Sequence[str], normalisation: Normalisation = NORMALISATIONS["total"]
) -> tuple[Float, list[str]]:
    """Genes x genes: mean over patients of their sections' signal covariance; and the sections it is made of.

    Those are `sections`, which are trained on, and sections without images, but of no patient who has images and is
    not trained on, and not one with a section that is not: those may be the test.
    """
    counted = [(tiles.section, tiles.kin, tiles.panel_counts(panel), tiles.depth)]
    known = set(tiles.patient[np.isin(tiles.section, sections)])
    kept = set(sections)
    if tiles.counts_only is not None:
        more = tiles.counts_only
        counted.append((more.section, more.patient, columns(more.counts, tiles.genes, panel), more.depth))
        allowed = np.isin(more.patient, list(known)) | ~np.isin(more.patient, tiles.patient)
        held_out = set(tiles.section.tolist()) - set(sections)
        kept |= set(more.section[allowed]) - set(with_twins(held_out, tiles.twins))
    deep = any((depth[np.isin(section, list(kept))] >= MIN_DEPTH).sum() > 1 for section, _, _, depth in counted)
    per_patient: dict[str, list[Float]] = {}
    used = []
    for section, patient, counts, depth in counted:
        for name in sorted(kept & set(section)):
            rows = (section == name) & (depth >= (MIN_DEPTH if deep else 1))
            if rows.sum() > 1:
                used.append(str(name))
                found = signal_covariance(counts[rows], normalisation.depth(counts[rows], depth[rows]))
                per_patient.setdefault(patient[rows][0], []).append(found)
    if not used:
        return np.eye(len(panel)), []
    mean: Float = np.mean([np.mean(covariances, axis=0) for covariances in per_patient.values()], axis=0)
    return mean, used


def fit_programmes(features: Float, residuals: Float, covariance: Float, n: int = N_PROGRAMMES) -> LinearMap:
    """Ridge regression of residuals (spots x genes) along the first `n` eigenvectors of their signal's covariance.

    Each is penalised by the inverse square of its variance: what is learnt of programmes that vary little carries over
    to other patients least. The one strength of the penalty is chosen by leaving out each spot.
    """
    variance, vectors = np.linalg.eigh(covariance)
    first = np.argsort(-variance)[:n]
    first = first[variance[first] > NEGLIGIBLE * variance.max()]
    prior, vectors = variance[first] ** 2 / variance.max(), vectors[:, first]
    known = decompose(features)
    u, s = known.u, known.s
    centre = residuals.mean(axis=0) @ vectors
    programmes = residuals @ vectors - centre
    projected = u.T @ programmes

    def shrink(strength: float) -> Float:
        kept: Float = s[:, None] ** 2 / (s[:, None] ** 2 + strength / prior)
        return kept

    def left_out_error(strength: float) -> float:
        kept = shrink(strength)
        leverage = u**2 @ kept + 1 / len(features)
        return float((((programmes - u @ (kept * projected)) / np.maximum(1 - leverage, NEGLIGIBLE)) ** 2).sum())

    best = shrink(min(STRENGTHS, key=left_out_error))
    weight = known.vt.T @ (best / s[:, None] * projected) @ vectors.T
    return LinearMap(known.mean, known.scale, weight, centre @ vectors.T)
