"""This machine: its cores, memory and instruction sets, and where compiled models are kept."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from pathlib import Path

#: Of Linux: microseconds of processor time, and in how many.
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
#: Instruction sets that products in networks gain by, of x86-64 and of ARM, and torch's names of them.
INSTRUCTION_SETS = {
    "AVX2": "avx2",
    "AVX-512": "avx512_f",
    "AVX-512 VNNI": "avx512_vnni",
    "AVX-VNNI": "avx_vnni",
    "AVX-512 bf16": "avx512_bf16",
    "AMX": "amx_tile",
    "NEON": "neon",
    "dot products": "dot",
    "I8MM": "i8mm",
    "bf16": "bf16",
    "SVE": "sve",
}


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


def instruction_sets() -> dict[str, bool]:
    """Instruction sets that processors of this kind may have, and whether this one has them. Imports torch.

    Kernels may be told to use fewer: torch's by $ATEN_CPU_CAPABILITY, oneDNN's, of which are OpenVINO's, by
    $ONEDNN_MAX_CPU_ISA.
    """
    import torch

    found = torch.cpu.get_capabilities()
    return {name: bool(found[key]) for name, key in INSTRUCTION_SETS.items() if key in found}


def multiplies_bf16() -> bool:
    """Whether this processor's bf16 is known to be more than imitated, so that it is faster than fp32."""
    has = instruction_sets()
    return has.get("AVX-512 bf16", False) or has.get("AMX", False)


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
