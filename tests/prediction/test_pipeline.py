from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from stpredict.prediction.pipeline import Waits, fixed_batches, one_ahead, timed


def test_the_next_item_is_begun_while_the_caller_is_busy_with_the_one_before():
    begun = {name: threading.Event() for name in "abc"}

    def work(name: str) -> str:
        begun[name].set()
        return name.upper()

    found = []
    for name, future in one_ahead(work, list("abc")):
        if name == "a":
            assert begun["b"].wait(5)
            assert not begun["c"].is_set()
        found.append(future.result())
    assert found == ["A", "B", "C"]


def test_what_goes_wrong_ahead_is_raised_at_its_own_turn():
    futures = [future for _, future in one_ahead(lambda divisor: 1 / divisor, [1, 0, 2])]
    assert futures[0].result() == 1
    with pytest.raises(ZeroDivisionError):
        futures[1].result()
    assert futures[2].result() == 0.5
    assert not list(one_ahead(str, []))


@pytest.mark.parametrize("n", [0, 1, 4, 9])
def test_ring_are_all_of_one_size_and_the_last_is_padded_with_white(n):
    patches = np.random.default_rng(0).integers(0, 200, (n, 2, 2, 3)).astype(np.uint8)
    batches = list(fixed_batches(iter(patches), 4, (2, 2, 3)))
    assert [batch.shape for batch in batches] == [(4, 2, 2, 3)] * -(-n // 4)
    if n:
        joined = np.concatenate(batches)
        np.testing.assert_array_equal(joined[:n], patches)
        assert (joined[n:] == 255).all()


def test_waits_are_told_apart_by_cause():
    waits = Waits(disk=0.25)

    def slow_patches():
        for patch in np.zeros((4, 2, 2, 3), np.uint8):
            time.sleep(0.03)
            yield patch

    def engine(batches):
        for _ in batches:
            time.sleep(0.1)
            yield None

    batches = timed(fixed_batches(timed(slow_patches(), waits, "patches"), 2, (2, 2, 3)), waits, "batches")
    assert len(list(timed(engine(batches), waits, "outputs"))) == 2
    seconds = waits.by_cause()
    assert 0.12 <= seconds["waiting_for_patches"] < 0.2
    assert 0.2 <= seconds["waiting_for_engine"] < 0.28
    assert seconds["filling_batches"] < 0.05
    assert seconds["waiting_for_disk"] == 0.25
