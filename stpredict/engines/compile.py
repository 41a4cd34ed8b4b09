"""The network compiled by torch, for large jobs: to a package of machine code on a CPU, to Triton kernels on a GPU.

A package (of AOTInductor) is kept, loads in seconds and may be called from any thread. For a GPU, torch makes one only
if all of CUDA's toolkit is installed, which pip does not bring. So on a GPU each process compiles anew. It does so
without CUDA graphs, because only the thread that captured a graph could run it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch._inductor import config as inductor
from torch._inductor.utils import fresh_cache

import stpredict
from stpredict.arrays import UInt8
from stpredict.console import Report
from stpredict.engines.cache import Key, engine_folder, find, store
from stpredict.engines.check import Verdict
from stpredict.engines.eager import judge, load_network
from stpredict.engines.engine import Engine, EngineRequest
from stpredict.engines.running import (
    BATCH_SIZES,
    DTYPES,
    Run,
    choose_device,
    demand_precision,
    infer_batches,
    with_precision,
)
from stpredict.errors import EngineError, first_line
from stpredict.machine import cpuinfo, processor_name
from stpredict.model.file import Model
from stpredict.networks import Network

#: Part of the cache's key. Raise it when a change of this code compiles another network from the same versions.
RECIPE = 1
#: Precompiled headers would lie where others can write, and would serve one network only.
OPTIONS = {"aot_inductor.precompile_headers": False}


def unavailable(device_type: str) -> str | None:
    """Why torch cannot compile here and how to mend it; None if it can, as far as one can tell beforehand."""
    if device_type == "cuda" and importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install triton"
    if not any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "g++", "clang++", "cl")):
        return "no C++ compiler is installed; install g++ or clang, or name one in $CXX"
    return None


def open_compile(
    model: Model, precision: str, request: EngineRequest, sample: UInt8, report: Report, keep: bool
) -> Engine:
    """Raises EngineError where torch cannot compile or the device is missing, PrecisionError if that lacks it."""
    device = choose_device(request)
    demand_precision(precision, device)
    batch_size = request.batch_size or BATCH_SIZES[device.type]
    key = cache_key(model, precision, batch_size, request.threads)
    run, verdict = _from_cache(key) if device.type == "cpu" else (None, None)
    if run is None or verdict is None:
        if reason := unavailable(device.type):
            raise EngineError(f"compile: {reason}.")
        report(f"compiling {model.name} with torch; this takes a minute or more ...")
        with tempfile.TemporaryDirectory() as folder:
            package = Path(folder) / "network.pt2"
            try:
                run, verdict = _build(model, precision, batch_size, device, sample, package)
            except Exception as error:  # compilers fail in many ways, some only at the first run
                reason = f"{type(error).__name__}: {first_line(error)}"
                raise EngineError(f"compile: torch cannot compile {model.name} ({reason}).") from error
            if device.type == "cpu" and verdict.passed and keep:
                store("compile", key, verdict, partial(_copy, package), report)
    return Engine(
        name="compile", precision=precision, device=str(device), batch_size=batch_size,
        versions={"torch": torch.__version__}, verdict=verdict, infer=partial(infer_batches, run, device),
    )  # fmt: skip


def cache_key(model: Model, precision: str, batch_size: int, threads: int) -> Key:
    """Everything that a package depends on. The number of threads is compiled into its loops."""
    return {
        "recipe": RECIPE, "stpredict": stpredict.__version__, "versions": {"torch": torch.__version__},
        "weights": model.sha256, "parameters": model.card["parameters"], "precision": precision,
        "shape": [batch_size, *model.patch_shape], "threads": threads,
        # The flags too: a virtual machine may hide some of what the named processor can do.
        "processor": [processor_name(), cpuinfo("flags"), os.environ.get("ATEN_CPU_CAPABILITY")],
    }  # fmt: skip


def _from_cache(key: Key) -> tuple[Run | None, Verdict | None]:
    found = find("compile", key)
    if found is None:
        return None, None
    try:
        return load_package(found.path, key["shape"]), found.verdict
    except Exception:  # noqa: BLE001 (unusable: compile it again)
        return None, None


def _build(
    model: Model, precision: str, batch_size: int, device: torch.device, sample: UInt8, package: Path
) -> tuple[Run, Verdict]:
    """Compile and check; for a CPU, into the file `package`."""
    network = load_network(model).to(device)
    if device.type == "cpu":
        shape = (batch_size, *model.patch_shape)
        write_package(network, precision, shape, package)
        run = load_package(package, shape)
    else:
        run = compile_network(network, precision, device)
    return run, judge(partial(infer_batches, run, device), model, sample, precision, batch_size, str(device))


def _copy(package: Path, path: Path) -> None:
    shutil.copyfile(package, path)


def write_package(network: Network, precision: str, shape: Sequence[int], path: Path) -> None:
    """Compile the network, cast to `precision`, for batches of one shape and torch's present number of threads."""
    with torch.inference_mode(False), torch.no_grad():
        patches = torch.zeros(tuple(shape), dtype=torch.uint8)
        program = torch.export.export(network.cast(DTYPES[precision]), (patches,), strict=False)
        with fresh_cache(dir=str(path.parent)), warnings.catch_warnings():  # torch does not use it again
            warnings.simplefilter("ignore", FutureWarning)  # torch warns of its own code
            torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=dict(OPTIONS))


def load_package(path: Path, shape: Sequence[int]) -> Run:
    """Load what `write_package` wrote, ready to be called from any thread."""
    with inductor.patch("cpp.vec_isa_ok", True):  # else it compiles a file to test the processor
        package = torch._inductor.aoti_load_package(str(path))

    def run(patches: Tensor) -> Tensor:
        if patches.shape != tuple(shape):  # else it would read beyond them
            raise ValueError(f"compiled for batches of {tuple(shape)}, not of {tuple(patches.shape)}")
        expression: Tensor = package(patches.contiguous())
        return expression

    return run


def compile_network(network: Network, precision: str, device: torch.device) -> Run:
    """One graph for batches of one size, or an error on the first of them."""
    with contextlib.suppress(OSError):  # by default torch keeps its output where others can write
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(engine_folder() / "inductor"))
    mode = "max-autotune-no-cudagraphs" if device.type == "cuda" else "default"
    return with_precision(torch.compile(network, mode=mode, fullgraph=True, dynamic=False), precision, device)
