"""Parts of a network that keep their own precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def no_autocast(like: Tensor) -> AbstractContextManager[Any]:
    """Keep what follows in its own precision. Nothing where nothing is cast, so that an exported graph stays flat."""
    device = like.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
