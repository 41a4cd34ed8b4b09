from __future__ import annotations

import numpy as np
import pytest

from stpredict.evaluation.baselines import NEIGHBOURS, fit_nearest_neighbours


def test_few_neighbours_where_signal_is_clear_and_many_where_it_is_not():
    rng = np.random.default_rng(0)
    features = rng.uniform(-1, 1, (400, 2)) * (1, 100)
    group = np.repeat(["A", "B", "C", "D"], 100)
    clear = np.sin(3 * features[:, :1])
    few = fit_nearest_neighbours(features, clear, group)[-1].n_neighbors
    many = fit_nearest_neighbours(features, rng.normal(size=(400, 3)), group)[-1].n_neighbors
    assert few <= 10 < 100 <= many
    assert {few, many} <= set(NEIGHBOURS)


def test_k_is_chosen_without_the_spots_own_section():
    """Two near copies of each spot in one section tell nothing of other sections."""
    rng = np.random.default_rng(1)
    base = rng.normal(size=(60, 5))
    features = np.vstack([base, base + 1e-6, rng.normal(size=(120, 5))])
    targets = rng.normal(size=(60, 2))
    targets = np.vstack([targets, targets, rng.normal(size=(120, 2))])
    apart = fit_nearest_neighbours(features, targets, np.repeat(["A", "B"], 120))
    assert apart[-1].n_neighbors >= 50


@pytest.mark.parametrize("spots", [3, 7])
def test_a_handful_of_spots_is_enough(spots):
    features = np.arange(spots * 2.0).reshape(spots, 2)
    fitted = fit_nearest_neighbours(features, features, np.full(spots, "A"))
    assert fitted.predict(features).shape == (spots, 2)
