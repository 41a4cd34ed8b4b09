"""The network compiled by OpenVINO for this CPU, kept in a private cache folder together with its numeric check."""

from __future__ import annotations

import hashlib
import io
import json
import platform
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino

import stpredict
from stpredict.arrays import Float32, UInt8
from stpredict.engines import Engine, EngineRequest, Report
from stpredict.engines.check import Verdict, check_patches, compare
from stpredict.errors import EngineError, PrecisionError
from stpredict.files import atomic_path
from stpredict.machine import cache_folder
from stpredict.weights import Model

BATCH_SIZE = 8
#: Changed whenever what is compiled changes without a change of version.
RECIPE = 1


def open_openvino(model: Model, precision: str, request: EngineRequest, sample: UInt8, report: Report) -> Engine:
    """Raises EngineError where this CPU or OpenVINO cannot run the precision."""
    if request.device not in ("auto", "cpu"):
        raise EngineError(f"--device {request.device}: the openvino engine runs on the CPU.")
    try:
        core = openvino.Core()
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except RuntimeError as error:
        raise EngineError(f"openvino: does not run on this processor ({error}).") from error
    if precision != "fp32" and precision.upper() not in capabilities:
        raise PrecisionError(f"openvino: this CPU has no {precision} (it has {', '.join(capabilities)}).")
    batch_size = request.batch_size or BATCH_SIZE
    config = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}[precision],
        "INFERENCE_NUM_THREADS": request.threads,
        "NUM_STREAMS": request.threads,
        "PERFORMANCE_HINT": "THROUGHPUT",
    }
    versions = {"openvino": openvino.__version__}
    compiled, verdict = _from_cache(core, model, config, batch_size)
    if compiled is None or verdict is None:
        report(f"compiling {model.name} for this processor, once ...")
        try:
            compiled = _compile(core, model, config, batch_size)
            verdict = _check(compiled, model, precision, batch_size, sample)
        except RuntimeError as error:
            raise EngineError(f"openvino: cannot compile {model.name} ({error}).") from error
        if verdict.passed:
            _to_cache(compiled, verdict, model, config, batch_size)
    return Engine(
        name="openvino", precision=precision, device="cpu", batch_size=batch_size, versions=versions, verdict=verdict,
        infer=lambda batches: _infer(compiled, batches, request.threads),
    )  # fmt: skip


def _infer(compiled: Any, batches: Iterable[UInt8], streams: int) -> Iterator[Float32]:
    """Keep each stream busy and one batch waiting; results in the order of the batches."""
    idle = [compiled.create_infer_request() for _ in range(streams + 1)]
    busy: deque[Any] = deque()

    def finished() -> Float32:
        request = busy.popleft()
        request.wait()
        idle.append(request)
        return np.array(request.get_output_tensor().data, np.float32)

    for batch in batches:
        if not idle:
            yield finished()
        request = idle.pop()
        request.set_input_tensor(openvino.Tensor(np.ascontiguousarray(batch)))
        request.start_async()
        busy.append(request)
    while busy:
        yield finished()


def _compile(core: Any, model: Model, config: dict[str, Any], batch_size: int) -> Any:
    import torch

    from stpredict.engines.eager import load_network

    shape = (batch_size, model.card["patch_px"], model.card["patch_px"], 3)
    with torch.inference_mode():
        converted = openvino.convert_model(
            load_network(model),
            example_input=torch.zeros(shape, dtype=torch.uint8),
            input=(list(shape), openvino.Type.u8),
        )
    return core.compile_model(converted, "CPU", config)


def _check(compiled: Any, model: Model, precision: str, batch_size: int, sample: UInt8) -> Verdict:
    from stpredict.engines.eager import run_reference

    patches = check_patches(sample)
    n_batches = -(-len(patches) // batch_size)
    padded = np.resize(patches, (n_batches * batch_size, *patches.shape[1:]))
    output = np.concatenate(list(_infer(compiled, np.split(padded, n_batches), 1)))[: len(patches)]
    return compare(output, run_reference(model, patches), precision)


def _cache_path(model: Model, config: dict[str, Any], batch_size: int) -> Path:
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        processor = next(
            (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")),
            processor,
        )
    key = [RECIPE, stpredict.__version__, openvino.__version__, model.sha256, config, batch_size, processor]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_folder() / f"openvino-{digest[:32]}.blob"


def _from_cache(core: Any, model: Model, config: dict[str, Any], batch_size: int) -> tuple[Any, Verdict | None]:
    try:
        path = _cache_path(model, config, batch_size)
        verdict = Verdict(**json.loads(path.with_suffix(".json").read_text()))
        blob = path.read_bytes()
        return core.import_model(io.BytesIO(blob), "CPU", config), verdict
    except (OSError, ValueError, TypeError, RuntimeError):
        return None, None  # not there, or of no use any more: build it again


def _to_cache(compiled: Any, verdict: Verdict, model: Model, config: dict[str, Any], batch_size: int) -> None:
    """Keep the compiled model if the folder can be written; it is only time that is lost otherwise."""
    try:
        path = _cache_path(model, config, batch_size)
        stream = io.BytesIO()
        compiled.export_model(stream)
        with atomic_path(path) as temporary:
            temporary.write_bytes(stream.getvalue())
        with atomic_path(path.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(verdict.as_dict()))
    except (OSError, RuntimeError):
        return
