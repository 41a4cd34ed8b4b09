"""Prediction intervals per gene whose width is calibrated on patients that the model has not seen.

They are to hold a measurement, ln(1 + CPM) of one spot with all its counting noise, not the tissue's true expression;
much of their width is that noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from stpredict.arrays import Float, Labels
from stpredict.errors import UsageError

LEVELS = (0.8, 0.9, 0.95)


def patients_needed(level: float) -> int:
    """How many patients an interval of this level needs to be finite: 4 for 80 %, 9 for 90 %, 19 for 95 %."""
    return math.ceil(level / (1 - level) - 1e-9)


def half_widths(error: Float, patient: Labels, level: float) -> Float:
    """Per gene: what to add to and take from a prediction, for an interval that holds `level` of the measurements.

    Hierarchical conformal prediction (Lee, Barber and Willett 2023, arXiv:2306.06342): of a new spot of a new patient
    the interval holds the measurement with at least this probability, on average over patients that are exchangeable
    with these. `error` is |predicted - measured|, spots x genes; each patient has the same weight, whatever the number
    of spots, and one more of infinite error stands for the new one. With as few patients as a level allows, the width
    is the largest error of all. Raises UsageError for too few patients.
    """
    names, own, spots = np.unique(patient, return_inverse=True, return_counts=True)
    if len(names) < patients_needed(level):
        raise UsageError(f"intervals of {level:.0%} need {patients_needed(level)} patients; there are {len(names)}.")
    weight = 1 / ((len(names) + 1) * spots[own])
    order = np.argsort(error, axis=0)
    reached = np.cumsum(weight[order], axis=0) >= level - 1e-9
    first = np.argmax(reached, axis=0)
    width: Float = np.take_along_axis(error, np.take_along_axis(order, first[None], axis=0), axis=0)[0]
    return width


def empirical_coverage(error: Float, patient: Labels, level: float) -> float | None:
    """Share of a patient's measurements that intervals calibrated on the others hold, mean over patients and genes.

    None where the others are too few.
    """
    names = np.unique(patient)
    if len(names) - 1 < patients_needed(level):
        return None
    held = [
        (error[patient == name] <= half_widths(error[patient != name], patient[patient != name], level)).mean()
        for name in names
    ]
    return float(np.mean(held))


def describe_intervals(intervals: Sequence[dict[str, Any]], n_patients: int, unit: str) -> Iterator[str]:
    """Lines that tell a person how wide the intervals of each level are and what they hold, or why there are none."""
    for one in intervals:
        coverage = "not tested, for that takes a patient more" if one["coverage"] is None else f"{one['coverage']:.0%}"
        yield (
            f"intervals to hold {one['level']:.0%} of the noisy measurements, {unit}: "
            f"+- {one['median_half_width']:.2f} for the median gene; coverage of patients left out: {coverage}"
        )
    if not intervals:
        needed = patients_needed(LEVELS[0])
        yield f"prediction intervals of {LEVELS[0]:.0%} need {needed} patients; there are {n_patients}"
