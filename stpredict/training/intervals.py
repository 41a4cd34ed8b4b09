"""Prediction intervals for a model's card, calibrated on the errors of its folds' models on held-out patients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stpredict.arrays import Bool, Float, Labels
from stpredict.statistics.conformal import LEVELS, empirical_coverage, half_widths, patients_needed
from stpredict.storage.files import atomic_path

#: The file of errors in the folder of a fold.
ERRORS = "errors.npz"


def save_errors(path: Path, error: Float, patient: Labels, panel: Sequence[str]) -> None:
    """Store |predicted - measured| of a fold's held-out spots, spots x genes, until all folds are done.

    It is NaN if the spot's section did not measure the gene.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, error=error.astype(np.float32), patient=patient.astype(str), panel=np.array(panel))


def calibrate(files: Sequence[Path], panel: Sequence[str]) -> list[dict[str, Any]]:
    """For a card: for each level that has enough patients, half the interval's width per gene, and its coverage.

    A patient does not count for a gene that the fold's panel lacks or that was not measured in the patient. A width is
    None if the other patients are too few. The coverage is that of genes in all folds' panels.
    """
    folds = [np.load(file) for file in files]
    patient = np.concatenate([fold["patient"] for fold in folds]) if folds else np.empty(0, str)
    errors = [_in_order(fold["error"], fold["panel"], panel) for fold in folds]
    error = np.concatenate([np.empty((0, len(panel)), np.float32), *errors])
    del errors
    everywhere = np.isin(panel, list(set(panel).intersection(*(fold["panel"].tolist() for fold in folds))))
    found = [_at_level(error, patient, everywhere, level) for level in LEVELS]
    return [one for one in found if one["median_half_width"] is not None]


def _in_order(error: Float, genes: Labels, panel: Sequence[str]) -> Float:
    """A fold's errors in the order of another panel; NaN for genes that it did not predict."""
    column = {gene: i for i, gene in enumerate(genes.tolist())}
    ordered = np.full((len(error), len(panel)), np.nan, error.dtype)
    shared = [i for i, gene in enumerate(panel) if gene in column]
    ordered[:, shared] = error[:, [column[panel[i]] for i in shared]]
    return ordered


def _at_level(error: Float, patient: Labels, everywhere: Bool, level: float) -> dict[str, Any]:
    enough = len(np.unique(patient)) >= patients_needed(level)
    found = half_widths(error, patient, level) if enough else np.full(error.shape[1], np.nan)
    widths = [round(float(width), 4) if np.isfinite(width) else None for width in found]
    known = [one for one in widths if one is not None]
    coverage = empirical_coverage(error[:, everywhere], patient, level) if everywhere.any() and len(error) else None
    return {
        "level": level,
        "half_width": widths,
        "median_half_width": round(float(np.median(known)), 4) if known else None,
        "coverage": None if coverage is None else round(coverage, 4),
    }
