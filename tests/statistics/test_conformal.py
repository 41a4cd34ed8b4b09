from __future__ import annotations

import numpy as np
import pytest

from stpredict.errors import UsageError
from stpredict.statistics.conformal import empirical_coverage, half_widths, patients_needed


def errors_of(rng: np.random.Generator, patients: int, spots: int = 40, genes: int = 5):
    """Errors whose size differs from patient to patient."""
    size = rng.lognormal(0, 0.5, patients).repeat(spots)
    return abs(rng.normal(size=(patients * spots, genes))) * size[:, None], np.repeat(
        np.arange(patients).astype(str), spots
    )


@pytest.mark.parametrize(("level", "needed"), [(0.8, 4), (0.9, 9), (0.95, 19)])
def test_levels_need_patients(level, needed):
    assert patients_needed(level) == needed
    error, patient = errors_of(np.random.default_rng(0), needed)
    assert np.isfinite(half_widths(error, patient, level)).all()
    few = patient != "0"
    with pytest.raises(UsageError, match=f"need {needed} patients; there are {needed - 1}"):
        half_widths(error[few], patient[few], level)
    assert empirical_coverage(error, patient, level) is None


def test_with_one_spot_each_it_is_the_usual_conformal_quantile():
    error = np.random.default_rng(1).uniform(size=(19, 3))
    found = half_widths(error, np.arange(19).astype(str), 0.8)
    np.testing.assert_allclose(found, np.sort(error, axis=0)[16 - 1])  # ceil(0.8 x 20) = 16


@pytest.mark.parametrize("level", [0.8, 0.9])
def test_new_patients_are_covered_on_average(level):
    rng = np.random.default_rng(2)
    held = []
    for _ in range(150):
        error, patient = errors_of(rng, 13)
        new = patient == "12"
        held.append((error[new] <= half_widths(error[~new], patient[~new], level)).mean())
    assert level - 0.02 < np.mean(held) < level + 0.09
    assert empirical_coverage(error, patient, level) == pytest.approx(level, abs=0.15)


def test_patients_weigh_the_same_whatever_their_spots():
    rng = np.random.default_rng(3)
    error, patient = errors_of(rng, 6)
    first = patient == "0"
    many = np.vstack([error, np.repeat(error[first], 9, axis=0)]), np.r_[patient, np.repeat("0", 9 * first.sum())]
    np.testing.assert_allclose(half_widths(*many, 0.8), half_widths(error, patient, 0.8))
