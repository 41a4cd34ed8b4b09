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
    read: Callable[[Int], Any], batches: Sequence[tuple[Int, Int]], turned: bool, pin: bool = False
) -> Iterator[tuple[Int, Tensor]]:
    """Batches of items and turns as items with their patches, `turned` if so wanted; the next is read meanwhile.

    A GPU copies what is in `pin`ned memory while it computes.
    """

    def prepare(items: Int, turns: Int) -> Tensor:
        given = read(items)
        patches = torch.from_numpy(augment(given, turns) if turned else given)
        return patches.pin_memory() if pin else patches

    with ThreadPoolExecutor(1) as pool:
        coming = deque(pool.submit(prepare, *batch) for batch in batches[:READ_AHEAD])
        for number, (items, _) in enumerate(batches):
            given = coming.popleft().result()
            if number + READ_AHEAD < len(batches):
                coming.append(pool.submit(prepare, *batches[number + READ_AHEAD]))
            yield items, given
