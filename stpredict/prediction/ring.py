"""Batches of patches in memory that is allocated once, filled by the threads that read the slide.

A patch is copied once on its way from the decoded region to the engine: into its place in a batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

from stpredict.arrays import UInt8
from stpredict.slides.raster import Block

#: Patches that one thread copies at a time.
PATCHES_AT_A_TIME = 32
#: Batches that are filled while the engine is at others.
FILLED_AHEAD = 2

WHITE = 255


@dataclass(frozen=True)
class Ring:
    """Batches of one shape that go round: lent, and given back when nothing reads them any more.

    There are as many as were ever out at once. Engines work at several batches at a time, each in its own way, so only
    who has a batch's output can say that it is free.
    """

    allocate: Callable[[], UInt8]
    free: deque[UInt8] = field(default_factory=deque)

    def lend(self) -> UInt8:
        """A batch with whatever was in it before."""
        return self.free.pop() if self.free else self.allocate()  # the last one is likelier to be in a cache

    def give_back(self, batch: UInt8) -> None:
        self.free.append(batch)


@dataclass
class Filling:
    """A batch that is being filled: the first `rows` are for patches, of which some are `given` to threads."""

    batch: UInt8
    rows: int
    given: int = 0
    copying: list[Future[None]] = field(default_factory=list)

    def filled(self) -> UInt8:
        """The batch, once each patch is in its place. Raises what the copying raised."""
        for copy in self.copying:
            copy.result()
        return self.batch


def filled_batches(blocks: Iterator[Block], sizes: deque[int], ring: Ring, pool: Executor) -> Iterator[UInt8]:
    """The patches of blocks in batches of the ring, copied in the pool; part after part, each with batches of its own.

    The size of a part is known when its first block has come. The last batch of each is padded with white. Who takes
    the batches gives them back to the ring.
    """
    underway: deque[Filling] = deque()
    in_part, current = 0, None
    for block in blocks:
        start = 0
        while start < len(block):
            if current is None:
                in_part = in_part or sizes.popleft()
                batch = ring.lend()
                current = Filling(batch, min(in_part, len(batch)))
                in_part -= current.rows
            count = min(current.rows - current.given, len(block) - start, PATCHES_AT_A_TIME)
            place = current.batch[current.given : current.given + count]
            current.copying.append(pool.submit(block.copy, start, place))
            start, current.given = start + count, current.given + count
            if current.given == current.rows:
                current.batch[current.rows :] = WHITE
                underway.append(current)
                current = None
                if len(underway) > FILLED_AHEAD:
                    yield underway.popleft().filled()
    while underway:
        yield underway.popleft().filled()
