"""Memory for batches of patches."""

from __future__ import annotations

import numpy as np

from stpredict.arrays import UInt8


def allocate_batch(shape: tuple[int, ...], on_gpu: bool) -> UInt8:
    """Memory for a batch of patches; for a GPU, pinned memory, which it reads without another copy."""
    if not on_gpu:
        return np.empty(shape, np.uint8)
    from stpredict.engines.running import pinned_batch  # imports torch

    return pinned_batch(shape)
