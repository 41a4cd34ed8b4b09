"""This machine: its cores, and where compiled models are kept."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from pathlib import Path

#: Of Linux: microseconds of processor time, and in how many.
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Cores that this process may use, at most what its container's share of time is worth."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit, which says "max"
        quota, period = map(int, CPU_LIMIT.read_text().split())
        return max(1, min(cores, -(-quota // period)))
    return cores


def processor_name() -> str:
    """What this processor calls itself."""
    return cpuinfo("model name") or platform.processor() or platform.machine()


def cpuinfo(field: str) -> str:
    """What Linux says of the first core; empty where there is no such field."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def give_back_memory() -> None:
    """Return what was freed to the system, where the C library would keep it: from slide to slide that grows."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # other libraries than glibc
        ctypes.CDLL(None).malloc_trim(0)


def cache_folder() -> Path:
    """$STPREDICT_CACHE, or a folder that only the user can enter. Raises OSError if it cannot be made."""
    named = os.environ.get("STPREDICT_CACHE")
    try:
        base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "stpredict"
    except RuntimeError as error:  # nobody's home, as in some containers
        raise OSError(str(error)) from error
    base.mkdir(parents=True, exist_ok=True, mode=0o700)
    return base
