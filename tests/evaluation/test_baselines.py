from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from stpredict.evaluation import baselines
from stpredict.evaluation.baselines import NEIGHBOURS, fit_nearest_neighbours


def test_few_neighbours_where_signal_is_clear_and_many_where_it_is_not():
    rng = np.random.default_rng(0)
    features = rng.uniform(-1, 1, (400, 2)) * (1, 100)
    group = np.repeat(["A", "B", "C", "D"], 100)
    clear = np.sin(3 * features[:, :1])
    few = fit_nearest_neighbours(features, clear, group).n_neighbors
    many = fit_nearest_neighbours(features, rng.normal(size=(400, 3)), group).n_neighbors
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
    assert apart.n_neighbors >= 50


@pytest.mark.parametrize("spots", [3, 7])
def test_a_handful_of_spots_is_enough(spots):
    features = np.arange(spots * 2.0).reshape(spots, 2)
    fitted = fit_nearest_neighbours(features, features, np.full(spots, "A"))
    assert fitted.predict(features).shape == (spots, 2)


def test_neighbours_are_averaged_without_all_their_targets_in_memory(monkeypatch):
    rng = np.random.default_rng(2)
    features, targets = rng.normal(size=(300, 4)), rng.normal(size=(300, 50))
    fitted = fit_nearest_neighbours(features, targets, np.repeat(["A", "B"], 150))
    asked = rng.normal(size=(1000, 4))
    monkeypatch.setattr(baselines, "BLOCK", 128)
    tracemalloc.start()
    found = fitted.predict(asked)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    nearest = fitted.search.kneighbors(fitted.scaler.transform(asked), return_distance=False)
    np.testing.assert_allclose(found, targets[nearest].mean(axis=1))
    assert peak < 5e6 < asked.shape[0] * fitted.n_neighbors * targets.shape[1] * 8


def test_of_very_many_spots_each_section_gives_as_many(monkeypatch):
    monkeypatch.setattr(baselines, "MOST_KNOWN", 60)
    monkeypatch.setattr(baselines, "MOST_TRIED", 20)
    section = np.repeat(["A", "B", "C"], [300, 80, 10])
    features = np.arange(390.0)[:, None]
    fitted = fit_nearest_neighbours(features, features, np.repeat(["P", "Q"], [300, 90]), section)
    known = section[fitted.targets.ravel().astype(int)]
    assert {name: int((known == name).sum()) for name in "ABC"} == {"A": 25, "B": 25, "C": 10}
