"""Random numbers in training that do not depend on how many processes share a batch.

A process that has some of a batch's items draws the numbers of all of them, in the order of the batch, and takes its
own. So every process is as far in its stream of numbers as one that trains alone, and an item gets the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Share:
    """What one of `world` processes has of a batch of `n` items: every `world`-th from the `rank`-th on.

    If that is none, it computes the first item all the same, as the others wait for it, and what comes of it counts 0.
    """

    n: int
    rank: int = 0
    world: int = 1

    @property
    def own(self) -> list[int]:
        """The places of its items in the batch."""
        return list(range(self.rank, self.n, self.world)) or [0]

    @property
    def counted(self) -> list[int]:
        """The places of those that are its alone."""
        return list(range(self.rank, self.n, self.world))


_share: ContextVar[Share | None] = ContextVar("share", default=None)


@contextmanager
def sharing(share: Share) -> Iterator[None]:
    """While this lasts, what is drawn is drawn for the whole batch of which this process has a share."""
    token = _share.set(share if share.world > 1 else None)
    try:
        yield
    finally:
        _share.reset(token)


def draw(make: Callable[[int], Tensor], rows: int) -> Tensor:
    """The `rows` of random numbers that `make` makes for a process's items, as many rows for each, item by item."""
    share = _share.get()
    if share is None:
        return make(rows)
    each = rows // len(share.own)
    drawn = make(each * share.n)
    return drawn.reshape(share.n, each, *drawn.shape[1:])[share.own].flatten(0, 1)


class Dropout(nn.Dropout):
    """torch's dropout, of rows of items that processes may share."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or _share.get() is None:
            return super().forward(x)
        return x * draw(lambda rows: super(Dropout, self).forward(x.new_ones(rows, *x.shape[1:])), len(x))
