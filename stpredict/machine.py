"""This machine and process: cores, memory, instruction sets, the working folder, and where compiled models are kept."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from pathlib import Path

from stpredict.errors import StpredictError, UsageError

#: Bytes of memory that the libraries need to load.
LEAST_MEMORY = 512 << 20
#: Linux's limit: microseconds of processor time in each period, and the microseconds of a period.
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
#: Instruction sets of x86-64 and ARM that speed up the products in networks, and torch's names for them.
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
    """Cores that this process may use, at most as many as its container's share of processor time is worth."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit, which says "max"
        quota, period = map(int, CPU_LIMIT.read_text().split())
        return max(1, min(cores, -(-quota // period)))
    return cores


def processor_name() -> str:
    """The name that this processor reports."""
    return cpuinfo("model name") or platform.processor() or platform.machine()


def cpuinfo(field: str) -> str:
    """A field of the first core as Linux reports it; empty if there is no such field."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def instruction_sets() -> dict[str, bool]:
    """Instruction sets that processors of this kind may have, and whether this one has them. Imports torch.

    Variables restrict kernels to fewer: $ATEN_CPU_CAPABILITY those of torch. For OpenVINO, set both $OV_CPU_MAX_ISA and
    $ONEDNN_MAX_CPU_ISA to the same value, because most of its kernels are oneDNN's.
    """
    import torch

    found = torch.cpu.get_capabilities()
    return {name: bool(found[key]) for name, key in INSTRUCTION_SETS.items() if key in found}


def multiplies_bf16() -> bool:
    """Whether this processor is known to compute bf16 itself, not to imitate it, so that bf16 is faster than fp32."""
    has = instruction_sets()
    return has.get("AVX-512 bf16", False) or has.get("AMX", False)


def limit_threads(threads: int) -> None:
    """Limit torch to so many threads, and the libraries of numpy, scipy and scikit-learn where that is possible.

    Without a limit, each of these takes all cores, in every process.
    """
    import torch

    torch.set_num_threads(threads)
    with contextlib.suppress(ImportError):  # it comes with scikit-learn, which only training needs
        from threadpoolctl import threadpool_limits

        threadpool_limits(threads)


def one_blas_thread() -> contextlib.AbstractContextManager[object]:
    """Use one thread for decompositions of some hundred rows: several wait for one another longer than they work."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:  # as above
        return contextlib.nullcontext()
    limits: contextlib.AbstractContextManager[object] = threadpool_limits(1, "blas")
    return limits


def demand_memory() -> None:
    """Raises StpredictError if a limit of this process leaves too little memory to load the libraries.

    SciPy's OpenBLAS, for one, asks for memory for ever if it gets none while it loads.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    least = min((limit for limit in limits if limit != resource.RLIM_INFINITY), default=LEAST_MEMORY)
    if least < LEAST_MEMORY:
        raise StpredictError(
            f"this process may have {least >> 20} MiB of memory, and stpredict needs {LEAST_MEMORY >> 20} to begin; "
            "raise the limit (ulimit -v, ulimit -d)."
        )


def demand_working_folder() -> None:
    """Raises UsageError if the working folder was removed. Torch ends the process if it loads in such a folder."""
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise UsageError("the working folder was removed; change to a folder that exists.") from error


def leave_removed_folder() -> None:
    """Go to the root folder if the working folder was removed: for workers, which need none."""
    try:
        demand_working_folder()
    except UsageError:
        os.chdir(os.sep)


def give_back_memory() -> None:
    """Return freed memory to the system. The C library would keep it, and more with each slide."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # other libraries than glibc
        ctypes.CDLL(None).malloc_trim(0)


def cache_folder() -> Path:
    """$STPREDICT_CACHE, or a folder that only the user can enter. Raises OSError if it cannot be made."""
    named = os.environ.get("STPREDICT_CACHE")
    try:
        base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "stpredict"
    except RuntimeError as error:  # a user without a home, as in some containers
        raise OSError(str(error)) from error
    base.mkdir(parents=True, exist_ok=True, mode=0o700)
    return base
