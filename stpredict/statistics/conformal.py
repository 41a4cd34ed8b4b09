"""Prediction intervals per gene whose width is calibrated on patients that the model has not seen.

An interval is meant to hold a measurement, ln(1 + CPM) of one spot with all its counting noise, rather than the
tissue's true expression. Much of its width is that noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from stpredict.arrays import Float, Int, Labels, Real
from stpredict.errors import UsageError
from stpredict.statistics.masks import measured_alike

LEVELS = (0.8, 0.9, 0.95)
#: Genes whose errors are sorted together, which takes memory for each spot.
GENES_AT_A_TIME = 64


def patients_needed(level: float) -> int:
    """How many patients an interval of this level needs to be finite: 4 for 80 %, 9 for 90 %, 19 for 95 %."""
    return math.ceil(level / (1 - level) - 1e-9)


def half_widths(error: Real, patient: Labels, level: float) -> Float:
    """Per gene: the half width, around a prediction, of an interval that holds `level` of the measurements.

    Hierarchical conformal prediction (Lee, Barber and Willett 2023, arXiv:2306.06342): for a new spot of a new patient,
    the interval holds the measurement with at least this probability, on average over patients that are exchangeable
    with these. `error` is |predicted - measured|, spots x genes. Each patient has the same weight, whatever the number
    of spots; one more, with infinite error, stands for the new patient. With the fewest patients that a level allows,
    the width is the largest error of all. An error is NaN, and not read, if its spot did not measure the gene. The
    width is NaN if too few patients measured the gene. Raises UsageError for too few patients in all.
    """
    needed, n_patients = patients_needed(level), len(np.unique(patient))
    if n_patients < needed:
        raise UsageError(f"intervals of {level:.0%} need {needed} patients; there are {n_patients}.")
    width: Float = np.full(error.shape[1], np.nan)
    for alike in measured_alike(error):
        known = alike.of(error)
        names, own, spots = np.unique(patient[alike.rows], return_inverse=True, return_counts=True)
        if len(names) < needed:
            continue
        weight = 1 / ((len(names) + 1) * spots[own])
        parts = (known[:, start : start + GENES_AT_A_TIME] for start in range(0, known.shape[1], GENES_AT_A_TIME))
        orders = ((part, np.argsort(part, axis=0)) for part in parts)
        width[alike.columns] = np.concatenate([_quantile(part, order, weight[order], level) for part, order in orders])
    return width


def _quantile(error: Real, order: Int, weights: Float, level: float) -> Real:
    """Per gene, the least error up to which the `weights` of spots, in the `order` of errors, add up to `level`."""
    first = np.argmax(np.cumsum(weights, axis=0) >= level - 1e-9, axis=0)
    found: Real = np.take_along_axis(error, np.take_along_axis(order, first[None], axis=0), axis=0)[0]
    return found


def empirical_coverage(error: Real, patient: Labels, level: float) -> float | None:
    """Share of a patient's measurements within intervals calibrated on the others, mean over patients and genes.

    None if the others are too few. Genes that were not measured, or have no width, do not count.
    """
    names, own = np.unique(patient, return_inverse=True)
    if len(names) - 1 < patients_needed(level):
        return None
    held, tested = np.zeros((2, len(names)))
    for alike in measured_alike(error):
        known, of = alike.of(error), own[alike.rows]
        others = len(np.unique(of)) - 1
        if others < patients_needed(level):
            continue
        weight = 1 / ((others + 1) * np.bincount(of)[of])
        for start in range(0, known.shape[1], GENES_AT_A_TIME):
            part = known[:, start : start + GENES_AT_A_TIME]
            order = np.argsort(part, axis=0)  # the same, whoever is left out
            weights, owner = weight[order], of[order]
            for name in np.unique(of):
                width = _quantile(part, order, np.where(owner == name, 0, weights), level)
                held[name] += (part[of == name] <= width).sum()
                tested[name] += part[of == name].size
    return float(np.mean(held[tested > 0] / tested[tested > 0])) if tested.any() else None


def describe_intervals(intervals: Sequence[dict[str, Any]], n_patients: int, unit: str) -> Iterator[str]:
    """Lines for people: how wide the intervals of each level are and what they hold, or why there are no intervals."""
    for one in intervals:
        coverage = "not tested, for that takes a patient more" if one["coverage"] is None else f"{one['coverage']:.0%}"
        yield (
            f"intervals to hold {one['level']:.0%} of the noisy measurements, {unit}: "
            f"+- {one['median_half_width']:.2f} for the median gene; coverage of patients left out: {coverage}"
        )
    needed = patients_needed(LEVELS[0])
    if not intervals and n_patients < needed:
        yield f"prediction intervals of {LEVELS[0]:.0%} need {needed} patients; there are {n_patients}"
    elif not intervals:
        yield f"no gene was measured in the {needed} patients that prediction intervals of {LEVELS[0]:.0%} need"
