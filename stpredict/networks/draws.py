"""Random numbers in training that do not depend on how a batch is divided among processes, or into parts in one.

Whoever computes some of a batch's items draws the numbers of all of them, in the order of the batch, and takes its own.
So every process is as far in its stream of numbers as one that trains alone, and an item gets the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from torch import Tensor, nn

from stpredict.arrays import Int


@dataclass(frozen=True)
class Share:
    """What is computed at once of a batch of `n` items: every `world`-th from the `rank`-th on.

    The shares are of several processes, or of one after the other. If a process has none, it computes the first item
    all the same, as the others wait for it, and what comes of it counts 0. `by_items` is the share's part of the
    batch's items, over the part that its mean loss has in the batch's.
    """

    n: int
    rank: int = 0
    world: int = 1
    by_items: float = 1.0
    batch: Int | None = field(default=None, compare=False, repr=False)  # the items of the batch

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
def sharing(share: Share | None) -> Iterator[None]:
    """While this lasts, what is drawn is drawn for the whole batch of which this is a share; with None as it is asked.

    The latter is for what all processes draw alike.
    """
    token = _share.set(share if share and share.world > 1 else None)
    try:
        yield
    finally:
        _share.reset(token)


def current_share() -> Share | None:
    """The share of a batch that is computed now; None if it is the whole batch."""
    return _share.get()


def whole_batch(items: Int) -> Int:
    """The items of the whole batch, of which these are computed now."""
    share = _share.get()
    return items if share is None or share.batch is None else share.batch


def mean_of_items(mean: Tensor) -> Tensor:
    """A mean over items, to be a term of a loss whose other terms are means over values.

    Items may have unequally many values; the mean is weighted so that shares add up to that of the batch.
    """
    share = _share.get()
    return mean if share is None else mean * share.by_items


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
