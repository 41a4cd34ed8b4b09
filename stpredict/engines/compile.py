"""The network compiled by torch: Triton kernels and CUDA graphs on a GPU, C++ on a CPU. For large jobs."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from functools import partial

import torch
from torch import Tensor

from stpredict.arrays import UInt8
from stpredict.console import Report
from stpredict.engines.cache import engine_folder
from stpredict.engines.eager import judge, load_network
from stpredict.engines.engine import Engine, EngineRequest
from stpredict.engines.running import BATCH_SIZES, Run, choose_device, demand_precision, infer_batches, with_precision
from stpredict.errors import EngineError, first_line
from stpredict.model.file import Model
from stpredict.networks import Network


def unavailable(device_type: str) -> str | None:
    """Why torch cannot compile here and how to mend it; None if it can, as far as one can tell beforehand."""
    if device_type == "cuda" and importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install triton"
    if not any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "g++", "clang++", "cl")):
        return "no C++ compiler is installed; install g++ or clang, or name one in $CXX"
    return None


def open_compile(model: Model, precision: str, request: EngineRequest, sample: UInt8, report: Report) -> Engine:
    """Raises EngineError where torch cannot compile or the device is missing, PrecisionError if that lacks it."""
    device = choose_device(request)
    demand_precision(precision, device)
    if reason := unavailable(device.type):
        raise EngineError(f"compile: {reason}.")
    batch_size = request.batch_size or BATCH_SIZES[device.type]
    run = compile_network(load_network(model).to(device), precision, device)
    infer = partial(infer_batches, run, device)
    report(f"compiling {model.name} with torch; the first time this takes minutes ...")
    try:
        verdict = judge(infer, model, sample, precision, batch_size, str(device))
    except Exception as error:  # compilers fail in many ways, and only when they are first run
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise EngineError(f"compile: torch cannot compile {model.name} ({reason}).") from error
    return Engine(
        name="compile", precision=precision, device=str(device), batch_size=batch_size,
        versions={"torch": torch.__version__}, verdict=verdict, infer=infer,
    )  # fmt: skip


def compile_network(network: Network, precision: str, device: torch.device) -> Run:
    """One graph for batches of one size, or an error on the first of them."""
    with contextlib.suppress(OSError):  # by default torch keeps what it compiled where others can write
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(engine_folder() / "inductor"))
    mode = "max-autotune" if device.type == "cuda" else "default"
    compiled = with_precision(torch.compile(network, mode=mode, fullgraph=True, dynamic=False), precision, device)

    def run(patches: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return compiled(patches).clone()  # the next run of a CUDA graph writes to the same memory

    return run
