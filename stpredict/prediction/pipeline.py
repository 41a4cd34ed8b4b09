"""One slide's patches through an engine into shards: reading, measuring, inference and writing overlap."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TypeVar

import numpy as np

from stpredict.arrays import Int, UInt8
from stpredict.engines.engine import Engine
from stpredict.engines.memory import allocate_batch
from stpredict.model.file import Model
from stpredict.prediction.answers import arrange, ask_on_cpu, ask_on_gpu
from stpredict.prediction.quality import MEASURES
from stpredict.prediction.ring import Ring, filled_batches
from stpredict.prediction.shards import Shards
from stpredict.slides.lattice import Spots
from stpredict.slides.raster import Raster, read_blocks

Item = TypeVar("Item")
Done = TypeVar("Done")
#: Shards that may wait to be written.
MAX_WAITING_SHARDS = 2


@dataclass
class Waits:
    """Seconds in which the flow waited for patches, for the engine's output, or for the disk."""

    patches: float = 0.0
    batches: float = 0.0  # includes `patches`, and copying them into batches
    outputs: float = 0.0  # includes `batches`, and the engine
    disk: float = 0.0

    def by_cause(self) -> dict[str, float]:
        """Seconds by cause, as a result records them."""
        seconds = {
            "waiting_for_patches": self.patches,
            "filling_batches": self.batches - self.patches,
            "waiting_for_engine": self.outputs - self.batches,
            "waiting_for_disk": self.disk,
        }
        return {cause: round(max(0.0, value), 3) for cause, value in seconds.items()}


def one_ahead(work: Callable[[Item], Done], items: Sequence[Item]) -> Generator[tuple[Item, Future[Done]], None, None]:
    """Yield each item and the future of its `work`, which runs while the caller is busy with the item before."""
    with ThreadPoolExecutor(1) as pool:
        begun = deque((item, pool.submit(work, item)) for item in items[:1])
        for item in items[1:]:
            begun.append((item, pool.submit(work, item)))
            yield begun.popleft()
        yield from begun


def predict_shards(
    wanted: Iterable[int],
    shards: Shards,
    raster: Raster,
    spots: Spots,
    model: Model,
    columns: Int,
    engine: Engine,
    threads: int,
    progress: Callable[[int, int], None],
) -> tuple[set[int], Waits]:
    """Predict and measure the `wanted` shards; each is taken when its reading begins. Returns those predicted.

    Each shard has its own batches. So a spot's values do not depend on the process that predicts its shard, or on the
    shards before it. If shards hold a spread, each batch is predicted in its eight flips and rotations.
    Raises SlideError if the slide cannot be decoded.
    """
    upcoming, n_patches, n_batches = deque[int](), deque[int](), deque[int]()  # read, but not yet predicted
    waits, begun = Waits(), set[int]()

    def parts() -> Iterator[Int]:
        for shard in wanted:
            part = shards.spots(shard)
            upcoming.append(shard)
            n_patches.append(len(part))
            n_batches.append(-(-len(part) // engine.batch_size))
            yield part

    ring = Ring(partial(allocate_batch, (engine.batch_size, *model.patch_shape), engine.on_gpu))
    writing: deque[Future[None]] = deque()
    with ExitStack() as stack:
        readers = stack.enter_context(ThreadPoolExecutor(threads))
        writer = stack.enter_context(ThreadPoolExecutor(1))
        patch_px = model.card["patch_px"]
        reading = read_blocks(raster, spots.centres, patch_px, readers, threads, model.views, parts())
        stack.callback(reading.close)  # stop reading before the slide is closed
        filled = filled_batches(timed(reading, waits, "patches"), n_patches, ring, readers)
        batches = timed(filled, waits, "batches")
        ask = ask_on_gpu if engine.on_gpu and not engine.two_passes else ask_on_cpu
        asked = stack.enter_context(closing(ask(engine, batches, ring, model, shards.tta, threads)))
        for answered in in_parts(timed(asked, waits, "outputs"), n_batches):
            shard, held = upcoming.popleft(), 0
            size, done = len(shards.spots(shard)), shards.done(begun)
            values = np.empty((size, shards.n_columns + len(MEASURES)), np.float32)
            for answer in answered:
                rows = values[held : held + engine.batch_size]
                arrange(answer, columns, rows)
                held += len(rows)
                progress(min(done + held, len(spots)), len(spots))
            begun.add(shard)
            writing.append(writer.submit(shards.write, shard, values))
            _wait_for(writing, MAX_WAITING_SHARDS, waits)
        _wait_for(writing, 0, waits)
    return begun, waits


def finish_shards(
    shards: Shards, mine: Container[int], predict: Callable[..., object], progress: Callable[[int, int], None]
) -> None:
    """Predict shards that other processes began and have not finished. If they finish one meanwhile, it is used."""
    for shard in (shard for shard in range(shards.count) if shard not in mine):

        def unless_finished(done: int, total: int, shard: int = shard) -> None:
            if shards.read(shard) is not None:
                raise _FinishedElsewhereError
            progress(done, total)

        if shards.read(shard) is None:
            with suppress(_FinishedElsewhereError):
                predict([shard], progress=unless_finished)


class _FinishedElsewhereError(Exception):
    pass


def in_parts(items: Iterator[Item], sizes: deque[int]) -> Iterator[Iterator[Item]]:
    """Cut a flow into parts. A part's size is known when its first item has come. Use up each before the next."""
    for first in items:
        yield chain((first,), islice(items, sizes.popleft() - 1))


def fixed_batches(patches: Iterator[UInt8], batch_size: int, shape: tuple[int, ...]) -> Iterator[UInt8]:
    """Batches of exactly `batch_size` patches; the last one is padded with white."""
    batch, filled = np.full((batch_size, *shape), 255, np.uint8), 0
    for patch in patches:
        batch[filled] = patch
        filled += 1
        if filled == batch_size:
            yield batch
            batch, filled = np.full((batch_size, *shape), 255, np.uint8), 0
    if filled:
        yield batch


def timed(items: Iterator[Item], waits: Waits, cause: str) -> Iterator[Item]:
    """Yield the items, and add the seconds spent waiting for them to `cause`."""
    while True:
        start = time.monotonic()
        try:
            item = next(items)
        except StopIteration:
            return
        finally:
            setattr(waits, cause, getattr(waits, cause) + time.monotonic() - start)
        yield item


def _wait_for(writing: deque[Future[None]], most: int, waits: Waits) -> None:
    """Wait until at most `most` shards are left to write. Raises the errors of writing."""
    start = time.monotonic()
    while len(writing) > most:
        writing.popleft().result()
    waits.disk += time.monotonic() - start
