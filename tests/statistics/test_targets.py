"""What is computed when rows are asked for is what is computed of all counts at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stpredict.statistics.blocks import Table
from stpredict.statistics.objectives import OBJECTIVES, SQUARED_ERRORS, make_objective
from stpredict.statistics.spatial import neighbour_mean

SPOTS, GENES = 60, 5
SECTION = np.array(["A", "B", "C"] * (SPOTS // 3))
MASKS = st.lists(st.booleans(), min_size=3 * GENES, max_size=3 * GENES).map(lambda x: np.array(x).reshape(3, GENES))


class Read:
    """Counts that are read when they are asked for, as from a disk; it notes how many rows at most at a time."""

    def __init__(self, counts: np.ndarray) -> None:
        self._counts, self.shape, self.most = counts, counts.shape, 0

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        found = self._counts[rows].copy()
        self.most = max(self.most, len(found))
        return found


def draw(seed: int, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts with gaps (spots x genes), and depths."""
    rng = np.random.default_rng(seed)
    depth = np.round(rng.lognormal(7, 0.5, SPOTS))
    counts = rng.poisson(depth[:, None] * rng.uniform(1e-3, 2e-2, GENES)).astype(float)
    counts[~mask[np.searchsorted(["A", "B", "C"], SECTION)]] = np.nan
    return counts, depth


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=10, deadline=None)
@given(mask=MASKS, seed=st.integers(0, 99))
def test_an_objective_of_counts_that_are_read_is_that_of_an_array(name: str, smooth: bool, mask: np.ndarray, seed: int):
    if smooth and name not in SQUARED_ERRORS:
        return
    counts, depth = draw(seed, mask)
    fit = np.arange(SPOTS) % 5 > 0
    centres = np.random.default_rng(seed).uniform(0, 9, (SPOTS, 2))
    weights = neighbour_mean(SECTION, centres) if smooth else None
    whole = make_objective(name, counts, depth, SECTION, fit, weights)
    assert isinstance(whole.targets, np.ndarray)
    kept: list[Table] = []

    def keep(table: Table) -> Table:
        kept.append(table)
        return table

    source = Read(counts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stpredict.statistics.blocks.VALUES_AT_A_TIME", 7 * GENES)
        read = make_objective(name, source, depth, SECTION, fit, weights, keep=keep)
    assert source.most <= (SPOTS if smooth else 7)
    for field in ("offset", "slope", "residual_scale"):
        if getattr(whole, field) is not None:
            np.testing.assert_allclose(getattr(read, field), getattr(whole, field))
    index = np.array([41, 3, 3, 58])
    for rows in (slice(5, 9), fit, index):
        np.testing.assert_allclose(read.targets[rows], whole.targets[rows], atol=1e-9)
    np.testing.assert_allclose(read.at(index).targets[1:], whole.targets[index[1:]], atol=1e-9)
    assert not kept  # until there is a loss
    z = torch.linspace(-1, 1, 4 * GENES).reshape(4, GENES)
    for genes in (slice(None), np.array([3, 1])):
        losses = [float(one.loss.of(genes)(z[:, genes], torch.from_numpy(index))) for one in (read, whole)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5, abs=1e-7)
    assert len(kept) == 2  # of the two, from the first
