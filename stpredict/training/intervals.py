"""Prediction intervals for a model's card, calibrated on what the models of its folds missed on held-out patients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stpredict.arrays import Float, Labels
from stpredict.statistics.conformal import LEVELS, empirical_coverage, half_widths, patients_needed
from stpredict.storage.files import atomic_path

#: In the folder of a fold.
ERRORS = "errors.npz"


def save_errors(path: Path, error: Float, patient: Labels, panel: Sequence[str]) -> None:
    """Keep |predicted - measured| of a fold's held-out spots, spots x genes, for when all folds are done."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, error=error.astype(np.float32), patient=patient.astype(str), panel=np.array(panel))


def calibrate(files: Sequence[Path], panel: Sequence[str]) -> list[dict[str, Any]]:
    """For a card: of each level that patients are enough for, half the interval's width per gene, and its coverage.

    Of a gene that is not in the panel of some folds, their patients do not count; None where the others are too few.
    """
    folds = [np.load(file) for file in files]
    patient = np.concatenate([fold["patient"] for fold in folds]) if folds else np.empty(0, str)
    errors = [_in_order(fold["error"], fold["panel"], panel) for fold in folds]
    error = np.concatenate([np.empty((0, len(panel))), *errors])
    found = [_at_level(error, patient, level) for level in LEVELS]
    return [one for one in found if one["median_half_width"] is not None]


def _in_order(error: Float, genes: Labels, panel: Sequence[str]) -> Float:
    """A fold's errors in the order of another panel; NaN for genes that it did not predict."""
    column = {gene: i for i, gene in enumerate(genes.tolist())}
    ordered = np.full((len(error), len(panel)), np.nan)
    shared = [i for i, gene in enumerate(panel) if gene in column]
    ordered[:, shared] = error[:, [column[panel[i]] for i in shared]]
    return ordered


def _at_level(error: Float, patient: Labels, level: float) -> dict[str, Any]:
    def width(own: Float) -> float | None:
        known = np.isfinite(own)
        if len(np.unique(patient[known])) < patients_needed(level):
            return None
        return round(float(half_widths(own[known, None], patient[known], level)[0]), 4)

    widths = [width(own) for own in error.T]
    known = [one for one in widths if one is not None]
    everywhere = error[:, np.isfinite(error).all(axis=0)]
    coverage = empirical_coverage(everywhere, patient, level) if everywhere.size else None
    return {
        "level": level,
        "half_width": widths,
        "median_half_width": round(float(np.median(known)), 4) if known else None,
        "coverage": None if coverage is None else round(coverage, 4),
    }
