"""JSON that commands print for programs; null stands for a number that is not known."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def print_json(content: Any) -> None:
    """Print one JSON document and nothing else, so that a program can read standard output."""
    print(json.dumps(_plain(content), indent=1, allow_nan=False), flush=True)


def _plain(value: Any) -> Any:
    """A value as JSON holds it: paths become text, arrays lists, numbers that are not finite null."""
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str | Path):  # a name that is not text holds surrogates, which JSON lacks
        return str(value).encode("utf-8", "replace").decode()
    return value
