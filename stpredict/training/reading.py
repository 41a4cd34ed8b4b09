"""Read and turn patches for training while the network is busy with others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from stpredict.arrays import Int
from stpredict.training.augmentation import augment

#: How many batches are read ahead.
READ_AHEAD = 2


def read_ahead(
    read: Callable[[Int], Any], batches: Sequence[Int], symmetry: Int | None, pin: bool = False
) -> Iterator[tuple[Int, Tensor]]:
    """Batches of items with their patches, turned if each item has a `symmetry`; the next is read meanwhile.

    A GPU copies what is in `pin`ned memory while it computes.
    """

    def prepare(items: Int) -> Tensor:
        given = read(items)
        patches = torch.from_numpy(given if symmetry is None else augment(given, symmetry[items]))
        return patches.pin_memory() if pin else patches

    with ThreadPoolExecutor(1) as pool:
        coming = deque(pool.submit(prepare, items) for items in batches[:READ_AHEAD])
        for number, items in enumerate(batches):
            given = coming.popleft().result()
            if number + READ_AHEAD < len(batches):
                coming.append(pool.submit(prepare, batches[number + READ_AHEAD]))
            yield items, given
