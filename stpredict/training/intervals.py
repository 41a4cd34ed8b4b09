"""Prediction intervals for a model's card, calibrated on the errors of its folds' models on held-out patients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stpredict.arrays import Bool, Float32, Labels
from stpredict.statistics.conformal import LEVELS, empirical_coverage, half_widths, patients_needed
from stpredict.statistics.sampling import draw_evenly
from stpredict.storage.files import atomic_path

#: The file of errors in the folder of a fold.
ERRORS = "errors.npz"
#: Spots whose errors are sorted.
MOST_SPOTS = 50_000


def save_errors(path: Path, error: Float32, patient: Labels, panel: Sequence[str]) -> None:
    """Store |predicted - measured| of a fold's held-out spots, spots x genes, until all folds are done.

    It is NaN if the spot's section did not measure the gene.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, error=error, patient=patient.astype(str), panel=np.array(panel))


def calibrate(files: Sequence[Path], panel: Sequence[str]) -> list[dict[str, Any]]:
    """For a card: for each level that has enough patients, half the interval's width per gene, and its coverage.

    A patient does not count for a gene that the fold's panel lacks or that was not measured in the patient. A width is
    None if the other patients are too few. The coverage is that of genes in all folds' panels. Of very many spots, some
    of each patient stand for all.
    """
    folds = [np.load(file) for file in files]
    patients = [fold["patient"] for fold in folds]
    patient = np.concatenate([np.empty(0, str), *patients])
    drawn = draw_evenly(patient, MOST_SPOTS)
    patient, error, start, at = patient[drawn], np.empty((len(drawn), len(panel)), np.float32), 0, 0
    for fold, own in zip(folds, patients, strict=True):
        rows = drawn[(drawn >= start) & (drawn < start + len(own))] - start
        error[at : at + len(rows)] = _in_order(fold["error"][rows], fold["panel"], panel)
        start, at = start + len(own), at + len(rows)
    everywhere = np.isin(panel, list(set(panel).intersection(*(fold["panel"].tolist() for fold in folds))))
    found = [_at_level(error, patient, everywhere, level) for level in LEVELS]
    return [one for one in found if one["median_half_width"] is not None]


def _in_order(error: Float32, genes: Labels, panel: Sequence[str]) -> Float32:
    """A fold's errors in the order of another panel; NaN for genes that it did not predict."""
    column = {gene: i for i, gene in enumerate(genes.tolist())}
    ordered = np.full((len(error), len(panel)), np.nan, error.dtype)
    shared = [i for i, gene in enumerate(panel) if gene in column]
    ordered[:, shared] = error[:, [column[panel[i]] for i in shared]]
    return ordered


def _at_level(error: Float32, patient: Labels, everywhere: Bool, level: float) -> dict[str, Any]:
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
