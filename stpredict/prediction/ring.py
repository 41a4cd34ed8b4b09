"""Batches of patches in memory that is allocated once. The threads that read the slide fill them.

A patch is copied once between the decoded region and the engine: into its place in a batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

from stpredict.arrays import UInt8
from stpredict.slides.raster import Block

#: Patches for one thread to copy at a time.
PATCHES_AT_A_TIME = 32
#: Batches to fill while the engine works on others.
FILLED_AHEAD = 2

WHITE = 255


@dataclass(frozen=True)
class Ring:
    """Batches of one shape to reuse: lent, and given back when nothing reads them any more.

    There are as many as were ever lent at once. Engines work on several batches at a time, each in its own way, so a
    batch is free only once its output has come.
    """

    allocate: Callable[[], UInt8]
    free: deque[UInt8] = field(default_factory=deque)

    def lend(self) -> UInt8:
        """A batch, which still holds its former content."""
        return self.free.pop() if self.free else self.allocate()  # the last one is more likely in a cache

    def give_back(self, batch: UInt8) -> None:
        self.free.append(batch)


@dataclass
class Filling:
    """A batch that is being filled: its first `rows` are for patches, the first `given` of which threads copy."""

    batch: UInt8
    rows: int
    given: int = 0
    copying: list[Future[None]] = field(default_factory=list)

    def filled(self) -> UInt8:
        """The batch, once each patch is in its place. Raises the errors of copying."""
        for copy in self.copying:
            copy.result()
        return self.batch


def filled_batches(blocks: Iterator[Block], sizes: deque[int], ring: Ring, pool: Executor) -> Iterator[UInt8]:
    """The patches of blocks, copied in the pool into batches of the ring. Each part has its own batches.

    The size of a part is known when its first block has come. A part's last batch is padded with white. The caller
    gives the batches back to the ring.
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
