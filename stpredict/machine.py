"""This machine: its cores, and where compiled models are kept."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_folder() -> Path:
    """$STPREDICT_CACHE, or a folder that only the user can enter. Raises OSError if it cannot be made."""
    named = os.environ.get("STPREDICT_CACHE")
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "stpredict"
    base.mkdir(parents=True, exist_ok=True, mode=0o700)
    return base
