"""One slide's patches through an engine into shards: reading, measuring, inference and writing overlap."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain, islice
from typing import TypeVar

import numpy as np

from stpredict.arrays import Float32, Int, UInt8
from stpredict.engines.engine import Engine
from stpredict.model.file import Model
from stpredict.model.reference import Reference, length, reference_of
from stpredict.prediction.quality import measure_patches
from stpredict.prediction.shards import Shards
from stpredict.slides.lattice import Spots
from stpredict.slides.raster import Raster, read_patches
from stpredict.slides.symmetry import SYMMETRIES, turn
from stpredict.slides.views import first_views

Item = TypeVar("Item")
Done = TypeVar("Done")
#: Shards that may wait to be written.
MAX_WAITING_SHARDS = 2


@dataclass
class Waits:
    """Seconds in which the flow stood still for want of patches, of the engine's output, or of the disk."""

    patches: float = 0.0
    batches: float = 0.0  # of patches, and of the copying of them into batches
    outputs: float = 0.0  # of batches and of the engine
    disk: float = 0.0

    def by_cause(self) -> dict[str, float]:
        """What a result records."""
        seconds = {
            "waiting_for_patches": self.patches,
            "filling_batches": self.batches - self.patches,
            "waiting_for_engine": self.outputs - self.batches,
            "waiting_for_disk": self.disk,
        }
        return {cause: round(max(0.0, value), 3) for cause, value in seconds.items()}


def one_ahead(work: Callable[[Item], Done], items: Sequence[Item]) -> Generator[tuple[Item, Future[Done]], None, None]:
    """Each item and what `work` makes of it, which goes on while the caller is busy with the item before."""
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
    """Predict and measure shards; which is next is asked when its reading begins. Returns which they were.

    Each has batches of its own, so that it does not matter to a spot which process predicts its shard, after which.
    Where shards are to hold a spread, each batch is predicted in its eight flips and rotations.
    Raises SlideError where the slide cannot be decoded.
    """
    reference, n_genes = reference_of(model), len(model.panel)
    waits, begun = Waits(), set[int]()
    upcoming, n_patches, n_batches = deque[int](), deque[int](), deque[int]()  # of what is read, but not yet predicted

    def parts() -> Iterator[Int]:
        for shard in wanted:
            part = shards.spots(shard)
            upcoming.append(shard)
            n_patches.append(len(part))
            n_batches.append(-(-len(part) // engine.batch_size))
            yield part

    reading = read_patches(raster, spots.centres, model.card["patch_px"], threads, model.views, parts())
    patches = (patch for _, block in timed(reading, waits, "patches") for patch in block)
    by_shard = in_parts(patches, n_patches)
    filled = (batch for part in by_shard for batch in fixed_batches(part, engine.batch_size, model.patch_shape))
    batches = timed(filled, waits, "batches")
    measuring: deque[Future[Float32]] = deque()
    writing: deque[Future[None]] = deque()
    with (
        closing(reading),  # no thread reads on when the slide is closed
        ThreadPoolExecutor(threads) as measurer,
        ThreadPoolExecutor(1) as writer,
    ):
        tried = measured(batches, reference, measurer, measuring)
        inferred = engine.infer(in_all_turns(tried) if shards.tta else tried)
        once = ((expression,) for expression in inferred)
        outputs = timed(mean_and_spread(inferred) if shards.tta else once, waits, "outputs")
        for part in in_parts(outputs, n_batches):
            shard, buffer, held = upcoming.popleft(), list[Float32](), 0
            size, done = len(shards.spots(shard)), shards.done(begun)
            for expression, *spread in part:
                measures = measuring.popleft().result()
                if expression.shape[1] > n_genes:  # coordinates among the training patches, behind the genes
                    measures[:, 0] = np.fmax(measures[:, 0], length(expression[:, n_genes:]))
                batch = np.concatenate([*(values[:, columns] for values in (expression, *spread)), measures], axis=1)
                buffer.append(batch)
                held = min(held + len(batch), size)
                progress(min(done + held, len(spots)), len(spots))
            begun.add(shard)
            writing.append(writer.submit(shards.write, shard, np.concatenate(buffer)[:size]))
            _wait_for(writing, MAX_WAITING_SHARDS, waits)
        _wait_for(writing, 0, waits)
    return begun, waits


def finish_shards(
    shards: Shards, mine: Container[int], predict: Callable[..., object], progress: Callable[[int, int], None]
) -> None:
    """Predict what other processes began and have not finished; where they do so meanwhile, theirs is as good."""
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
    """Cut a flow into parts; the size of a part is known when its first item has come. Each is used up in its turn."""
    for first in items:
        yield chain((first,), islice(items, sizes.popleft() - 1))


def measured(
    batches: Iterator[UInt8], reference: Reference | None, pool: Executor, measuring: deque[Future[Float32]]
) -> Iterator[UInt8]:
    """The batches as they come; what the pool measures of each is appended to `measuring`."""
    for batch in batches:
        measuring.append(pool.submit(measure_patches, first_views(batch), reference))
        yield batch


def in_all_turns(batches: Iterator[UInt8]) -> Iterator[UInt8]:
    """Each batch in its eight flips and rotations."""
    return (turn(batch, code) for batch in batches for code in range(SYMMETRIES))


def mean_and_spread(expressions: Iterator[Float32]) -> Iterator[tuple[Float32, ...]]:
    """Of every eight arrays (B x genes), their mean and their standard deviation."""
    while turns := list(islice(expressions, SYMMETRIES)):
        yield np.mean(turns, axis=0), np.std(turns, axis=0)


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
    """The items, the seconds until each one comes added to `cause`."""
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
    """Wait until no more than `most` shards are yet to be written. Raises what the writing raised."""
    start = time.monotonic()
    while len(writing) > most:
        writing.popleft().result()
    waits.disk += time.monotonic() - start
