"""How fast an engine is on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from stpredict.arrays import UInt8
from stpredict.engines.engine import Engine
from stpredict.engines.memory import allocate_batch


def spots_per_second(engine: Engine, patches: UInt8, seconds: float = 1.0) -> float:
    """Spots per second over about `seconds`, after one batch to warm up. `patches` (of n spots) are repeated."""
    batch = allocate_batch((engine.batch_size, *patches.shape[1:]), engine.on_gpu)
    batch[:] = np.resize(patches, batch.shape)
    for _ in engine.infer([batch]):
        pass
    start = time.perf_counter()

    def batches() -> Iterator[UInt8]:
        yield batch
        while time.perf_counter() < start + seconds:
            yield batch

    spots = sum(len(expression) for expression in engine.infer(batches()))
    return spots / (time.perf_counter() - start)
