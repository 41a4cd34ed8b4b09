"""The network as one TensorRT engine, by way of torch.export and Torch-TensorRT, kept in a private cache folder.

TensorRT takes the precision of each layer from the graph, so the network is cast before it is exported. Patches become
fp16 on the GPU: TensorRT accepts uint8 only as the input of a cast, and Torch-TensorRT's runtime not at all. Its own
cache is not used, because that cache's key contains neither shapes nor precision nor the GPU.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import re
import sys
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import stpredict
from stpredict.arrays import UInt8
from stpredict.console import Report
from stpredict.engines.cache import Key, engine_folder, find, store
from stpredict.engines.check import Verdict
from stpredict.engines.eager import judge, load_network
from stpredict.engines.engine import OUT_OF_MEMORY, Engine, EngineRequest
from stpredict.engines.running import BATCH_SIZES, DTYPES, choose_device, demand_precision, infer_batches
from stpredict.errors import EngineError, first_line
from stpredict.model.file import Model
from stpredict.networks import Network

#: Part of the cache's key. Raise it when a change of this code builds another engine from the same versions.
RECIPE = 2
INSTALL = 'pip install ".[tensorrt]", which also needs NVIDIA\'s own package index'
#: They give one engine or an error. Torch-TensorRT ignores unknown names without a word, so each name must be its own.
SETTINGS = {
    "min_block_size": 1,
    "require_full_compilation": True,
    "decompose_attention": True,  # Torch-TensorRT 2.11 needs it where queries are fewer than keys
    "disable_tf32": True,  # fp32 stays fp32
    "optimization_level": 3,
    "workspace_size": 0,  # TensorRT's own limit
    "use_fast_partitioner": True,
    "immutable_weights": True,
    "cache_built_engines": False,
    "reuse_cached_engines": False,
    "hardware_compatible": False,  # built anew for each GPU and version: faster
    "version_compatible": False,
}
#: The log in which Torch-TensorRT repeats TensorRT's messages.
LOG = "torch_tensorrt [TensorRT Conversion Context]"
#: Names of TensorRT's packages, which change with its versions and with the version of CUDA.
PACKAGES = re.compile(r"(torch_)?tensorrt(_rtx)?(_cu\d+)?")


class TakesHalf(nn.Module):
    """A network that takes patches in fp16, which holds 0 to 255 exactly."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, patches: Tensor) -> Tensor:
        return self.network(patches.float())  # type: ignore[no-any-return]


def unavailable() -> str | None:
    """Why TensorRT cannot run here and how to get it; None if it can."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU; TensorRT needs one from NVIDIA and a torch with CUDA"
    if importlib.util.find_spec("torch_tensorrt") is None:
        return f"torch_tensorrt is not installed; {INSTALL}"
    try:
        _import()
    except Exception as error:  # noqa: BLE001 (without its libraries it raises errors of many kinds)
        return f"torch_tensorrt cannot be imported ({type(error).__name__}: {error}); {INSTALL}"
    return None


def _import() -> Any:
    with contextlib.redirect_stdout(sys.stderr):  # it prints why it fails
        return importlib.import_module("torch_tensorrt")


def open_tensorrt(
    model: Model, precision: str, request: EngineRequest, sample: UInt8, report: Report, keep: bool
) -> Engine:
    """Raises EngineError where TensorRT is missing or cannot build, PrecisionError where the GPU lacks bf16."""
    if reason := unavailable():
        raise EngineError(f"tensorrt: {reason}.")
    device = choose_gpu(request)
    demand_precision(precision, device)
    batch_size = request.batch_size or BATCH_SIZES["cuda"]
    key = cache_key(model, precision, batch_size, device)
    with torch.cuda.device(device):
        module, verdict = _from_cache(key)
        if module is None or verdict is None:
            report(f"building a TensorRT engine of {model.name} in {precision}; this takes minutes ...")
            module, verdict = _build(model, precision, batch_size, device, sample)
            if verdict.passed and keep:
                write = partial(_save, module, example(model, batch_size, device))
                store("tensorrt", key, verdict, write, report)
    return Engine(
        name="tensorrt", precision=precision, device=str(device), batch_size=batch_size, versions=key["versions"],
        verdict=verdict, infer=partial(infer_batches, partial(_run, module), device),
    )  # fmt: skip


def choose_gpu(request: EngineRequest) -> torch.device:
    """The requested GPU, or the first. Raises EngineError if it is missing."""
    device = choose_device(request)
    if device.type != "cuda":
        raise EngineError(f"--device {request.device}: the tensorrt engine runs on a GPU.")
    return device


def is_cached(model: Model, precision: str, request: EngineRequest) -> bool:
    """Is there a built engine of this model? Raises EngineError if the GPU is missing."""
    key = cache_key(model, precision, request.batch_size or BATCH_SIZES["cuda"], choose_gpu(request))
    return find("tensorrt", key) is not None


def cache_key(model: Model, precision: str, batch_size: int, device: torch.device) -> Key:
    """Everything that an engine depends on."""
    return {
        "recipe": RECIPE, "stpredict": stpredict.__version__, "versions": versions(), "weights": model.sha256,
        "parameters": model.card["parameters"], "precision": precision,
        "shape": [batch_size, *model.patch_shape], "settings": SETTINGS,
        "gpu": describe_gpu(device),
    }  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of torch, Torch-TensorRT and TensorRT, under the names of their packages."""
    installed = {
        found.name.lower().replace("-", "_"): found.version for found in metadata.distributions() if found.name
    }
    return {
        "torch": torch.__version__,
        **{name: installed[name] for name in sorted(filter(PACKAGES.fullmatch, installed))},
    }


def describe_gpu(device: torch.device) -> list[str]:
    """Name, compute capability and driver of a GPU."""
    major, minor = torch.cuda.get_device_capability(device)
    driver = Path("/proc/driver/nvidia/version")
    told = driver.read_text().splitlines()[0] if driver.exists() else _driver_version()
    return [torch.cuda.get_device_name(device), f"{major}.{minor}", told]


def _driver_version() -> str:
    return str(torch._C._cuda_getDriverVersion())  # type: ignore[attr-defined]


def export_network(network: Network, precision: str, patches: Tensor) -> torch.export.ExportedProgram:
    """The network as one graph in `precision` that takes patches of this shape in fp16 and gives float32."""
    with torch.inference_mode(False), torch.no_grad():
        return torch.export.export(TakesHalf(network.cast(DTYPES[precision])), (patches.half(),), strict=False)


def build(network: Network, precision: str, patches: Tensor) -> Any:
    """Build the TensorRT engine, which takes patches of this shape in fp16.

    Raises OutOfMemoryError where the GPU has too little memory, RuntimeError if it would not be a single engine.
    """
    torch_tensorrt = _import()
    with _told_of_memory():
        module = torch_tensorrt.dynamo.compile(
            export_network(network, precision, patches),
            arg_inputs=[torch_tensorrt.Input(shape=tuple(patches.shape), dtype=torch.float16)],
            timing_cache_path=str(engine_folder() / "tensorrt-timing.bin"),  # by default in a shared folder
            **SETTINGS,
        )
    parts = [type(part).__name__ for _, part in module.named_children()]
    if len(parts) != 1 or "TensorRT" not in parts[0]:
        raise RuntimeError(f"the network became {', '.join(parts) or 'no engine'} rather than one engine")
    return module


@contextlib.contextmanager
def _told_of_memory() -> Iterator[None]:
    """Raise OutOfMemoryError if a build ran out of memory, which TensorRT reports only in its log."""
    told: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger(LOG)
    log.addHandler(handler)
    try:
        yield
    except Exception as error:
        short = [line for line in told if OUT_OF_MEMORY.search(line)]
        if short:
            raise torch.OutOfMemoryError(short[-1]) from error
        raise
    finally:
        log.removeHandler(handler)


def _build(model: Model, precision: str, batch_size: int, device: torch.device, sample: UInt8) -> tuple[Any, Verdict]:
    """Build and check. Raises EngineError if TensorRT fails."""
    try:
        network = load_network(model).to(device)
        module = build(network, precision, example(model, batch_size, device))
        infer = partial(infer_batches, partial(_run, module), device)
        return module, judge(infer, model, sample, precision, batch_size, str(device))
    except Exception as error:  # of many kinds, none documented
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise EngineError(f"tensorrt: cannot build {model.name} ({reason}).") from error


def _run(module: Any, patches: Tensor) -> Tensor:
    with torch.no_grad():
        expression: Tensor = module(patches.to(torch.float16, memory_format=torch.contiguous_format))
    return expression


def example(model: Model, batch_size: int, device: torch.device) -> Tensor:
    """A batch of black patches."""
    return torch.zeros((batch_size, *model.patch_shape), dtype=torch.uint8).to(device)


def _from_cache(key: Key) -> tuple[Any, Verdict | None]:
    found = find("tensorrt", key)
    if found is None:
        return None, None
    try:
        return _import().load(str(found.path)).module(), found.verdict
    except Exception:  # noqa: BLE001 (unusable: build it again)
        return None, None


def _save(module: Any, patches: Tensor, path: Path) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        _import().save(module, str(path), output_format="exported_program", arg_inputs=[patches.half()], retrace=True)
