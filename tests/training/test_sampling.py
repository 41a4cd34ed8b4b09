"""What an epoch sees: batches that the seed and the epoch determine, in which groups may count alike."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stpredict.data.tiles import Tiles
from stpredict.training.sampling import Stage, draw_epoch, groups_to_balance
from stpredict.training.settings import Settings

SETTINGS = Settings(batch_size=8, seed=4)


def drawn(stage: Stage, epoch: int = 1) -> list[int]:
    return np.concatenate([items for items, _ in draw_epoch(stage, SETTINGS, epoch)]).tolist()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 3))
def test_groups_count_alike_and_the_members_of_each(groups: list[int], epoch: int):
    items = np.arange(10, 10 + len(groups))
    group = np.array([9] * 10 + groups)
    stage = Stage("train", items, 1, 1e-3, groups=group)
    batches = draw_epoch(stage, SETTINGS, epoch)
    sizes = [len(some) for some, _ in batches]
    assert sizes == [8] * (len(groups) // 8) + [len(groups) % 8] * bool(len(groups) % 8)
    assert len(batches) == stage.n_steps(SETTINGS.batch_size)
    times = Counter(drawn(stage, epoch))
    assert set(times) <= set(items.tolist())
    of_groups = [sum(times[item] for item in items[np.array(groups) == one].tolist()) for one in set(groups)]
    assert max(of_groups) - min(of_groups) <= 1
    for one in set(groups):
        members = [times[item] for item in items[np.array(groups) == one].tolist()]
        assert max(members) - min(members) <= 1


def test_an_epoch_hangs_on_the_seed_and_its_number_alone():
    stage = Stage("train", np.arange(40), 1, 1e-3, groups=np.repeat([0, 1], [35, 5]))
    assert drawn(stage) == drawn(stage)
    assert drawn(stage) != drawn(stage, 2)
    turns = {}
    for items, how in draw_epoch(stage, SETTINGS, 1):
        for item, turn in zip(items.tolist(), how.tolist(), strict=True):
            turns.setdefault(item, set()).add(turn)
    assert max(map(len, turns.values())) > 1  # what comes repeatedly is turned anew


def test_without_groups_each_item_comes_once():
    stage = Stage("train", np.arange(3, 40), 1, 1e-3)
    assert sorted(drawn(stage)) == list(range(3, 40))


def test_whole_sections_are_drawn_so_that_patients_count_alike():
    """Patient 0 has one section of ten spots, patient 1 has three of two."""
    section = np.array([0] * 10 + [1, 1, 2, 2, 3, 3])
    stage = Stage("train", np.arange(16), 1, 1e-3, together=section, groups=(section > 0).astype(int))
    seen: Counter[int] = Counter()
    for epoch in range(1, 9):
        batches = draw_epoch(stage, SETTINGS, epoch)
        assert len(batches) == stage.n_steps(SETTINGS.batch_size) == 4
        for items, turns in batches:
            assert sorted(items.tolist()) == np.flatnonzero(section == section[items[0]]).tolist()
            assert len(turns) == len(items)
            seen[int(section[items[0]])] += 1
    assert seen[0] == seen[1] + seen[2] + seen[3] == 16


@pytest.mark.parametrize(("balance", "wanted"), [("sections", [0, 1, 2]), ("patients", [0, 0, 1]), (None, None)])
def test_patients_who_share_a_section_are_one_group(balance, wanted):
    section = np.array(["A1", "A2", "B1"], dtype=object)
    patient, kin = (np.array(labels, dtype=object) for labels in (["A", "C", "B"], ["A", "A", "B"]))
    tiles = cast(Tiles, SimpleNamespace(section=section, patient=patient, kin=kin, tissue={}))
    found = groups_to_balance(tiles, balance, np.array(["A1", "A2", "B1"], dtype=object))
    assert (found is None) if wanted is None else (found.tolist() == wanted)
