"""The network compiled by OpenVINO for this CPU, kept in a private cache folder together with its numeric check."""

from __future__ import annotations

import io
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import opset13

import stpredict
from stpredict.arrays import Float32, UInt8
from stpredict.console import Report
from stpredict.engines.cache import Key, find, store
from stpredict.engines.check import Verdict
from stpredict.engines.engine import Engine, EngineRequest
from stpredict.errors import EngineError, PrecisionError
from stpredict.machine import cpuinfo, processor_name
from stpredict.model.file import Model

BATCH_SIZE = 8
#: Variables that restrict the instruction sets of oneDNN, whose kernels OpenVINO runs, and of OpenVINO's own kernels.
CAPS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "OV_CPU_MAX_ISA")
#: Part of the cache's key. Raise it when a change of this code compiles another network from the same versions.
RECIPE = 2


def open_openvino(
    model: Model, precision: str, request: EngineRequest, sample: UInt8, report: Report, keep: bool
) -> Engine:
    """Raises EngineError where OpenVINO or int8 cannot run, PrecisionError where this CPU lacks the precision."""
    if request.device not in ("auto", "cpu"):
        raise EngineError(f"--device {request.device}: the openvino engine runs on the CPU.")
    core, capabilities = open_core()
    if precision != "fp32" and precision.upper() not in capabilities:
        raise PrecisionError(f"openvino: this CPU has no {precision} (it has {', '.join(capabilities)}).")
    batch_size = request.batch_size or BATCH_SIZE
    config = _config(precision, request.threads, "BF16" in capabilities)
    versions = {"openvino": openvino.__version__}
    narrow = False
    if precision == "int8":
        from stpredict.engines.int8 import NARROW, nncf_version, sums_overflow

        versions["nncf"], narrow = nncf_version(), sums_overflow()
        if narrow:
            report(f"int8: {NARROW}.")
    key = cache_key(model, precision, config, versions, batch_size, narrow)
    compiled, verdict, calibration = _from_cache(core, key, config)
    if compiled is None or verdict is None:
        report(f"compiling {model.name} for this processor in {precision} ...")
        compiled, verdict, calibration = _build(core, model, precision, config, batch_size, sample, narrow)
        if verdict.passed and keep:
            store("openvino", key, verdict, lambda path: _export(compiled, path), report, calibration)
    if precision == "int8":
        report(f"int8: {verdict.summary()}.")
    return Engine(
        name="openvino", precision=precision, device="cpu", batch_size=batch_size, versions=versions, verdict=verdict,
        infer=lambda batches: _infer(compiled, batches, request.threads), calibration=calibration,
    )  # fmt: skip


def open_core() -> tuple[Any, list[str]]:
    """OpenVINO, and this processor's precisions as it reports them. Raises EngineError if it does not run."""
    try:
        core = openvino.Core()
        return core, core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except RuntimeError as error:
        raise EngineError(f"openvino: does not run on this processor ({_reason(error)}).") from error


def _reason(error: RuntimeError) -> str:
    """OpenVINO's message, without the lines of its source code."""
    lines = map(str.strip, str(error).splitlines())
    return " ".join(line for line in lines if line and not line.startswith("Exception from")) or "no reason given"


def _config(precision: str, threads: int, has_bf16: bool) -> dict[str, Any]:
    """One stream per thread. In an int8 network, other operations run in bf16 if the processor has it."""
    rest = "bf16" if has_bf16 else "f32"
    return {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": rest}[precision],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": threads,
        "PERFORMANCE_HINT": "THROUGHPUT",
    }


def _infer(compiled: Any, batches: Iterable[UInt8], streams: int) -> Iterator[Float32]:
    """Keep each stream busy and one batch waiting; yield results in the order of the batches."""
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


def _build(
    core: Any, model: Model, precision: str, config: dict[str, Any], batch_size: int, sample: UInt8, narrow: bool
) -> tuple[Any, Verdict, str | None]:
    """The compiled network, its check, and the digest of its calibration. Raises EngineError if OpenVINO fails."""
    from stpredict.engines.eager import judge

    calibration = None
    try:
        graph = convert(model, batch_size)
        if precision == "int8":
            from stpredict.engines.int8 import calibration_digest, quantise

            graph = quantise(graph, sample, batch_size, narrow)
            calibration = calibration_digest(sample, narrow)
        compiled = _compile(core, graph, config)
        verdict = judge(lambda batches: _infer(compiled, batches, 1), model, sample, precision, batch_size)
    except RuntimeError as error:
        raise EngineError(f"openvino: cannot compile {model.name} ({_reason(error)}).") from error
    return compiled, verdict, calibration


def convert(model: Model, batch_size: int) -> Any:
    """The network as an OpenVINO graph from uint8, a batch of patches or stacks of views, to float32."""
    import torch

    from stpredict.engines.eager import load_network

    shape = (batch_size, *model.patch_shape)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # from torch, whose tracer OpenVINO calls
        graph = openvino.convert_model(
            load_network(model),
            example_input=torch.zeros(shape, dtype=torch.uint8),
            input=(list(shape), openvino.Type.u8),
        )
    separate_products(graph)
    return graph


def separate_products(graph: Any) -> None:
    """Compute q, k and v by a product each. One joint product would have to be cut by copying (saves 6 % in fp32)."""
    for split in graph.get_ordered_ops():
        product = split.input_value(0).get_node() if split.get_type_name() == "VariadicSplit" else None
        if product is None or product.get_type_name() != "MatMul" or not product.get_attributes()["transpose_b"]:
            continue
        weight = product.input_value(1).get_node()
        if weight.get_type_name() != "Constant" or len(weight.shape) != 2:
            continue
        sizes = [output.get_shape()[-1] for output in split.outputs()]
        parts = np.split(np.array(weight.data), np.cumsum(sizes)[:-1])
        for i, (output, part) in enumerate(zip(split.outputs(), parts, strict=True)):
            constant = opset13.constant(part)
            separate = opset13.matmul(product.input_value(0), constant, False, True)
            separate.set_friendly_name(f"{product.get_friendly_name()}/{i}")
            output.replace(separate.output(0))


def _compile(core: Any, graph: Any, config: dict[str, Any]) -> Any:
    return core.compile_model(graph, "CPU", config)


def cache_key(
    model: Model, precision: str, config: dict[str, Any], versions: dict[str, str], batch_size: int, narrow: bool
) -> Key:
    """Everything that the compiled network depends on."""
    return {
        "recipe": RECIPE, "stpredict": stpredict.__version__, "versions": versions, "weights": model.sha256,
        "precision": precision, "config": config, "batch_size": batch_size,
        "narrow": narrow,
        # The flags too: a virtual machine may hide some of what the named processor can do.
        "processor": [processor_name(), cpuinfo("flags"), *map(os.environ.get, CAPS)],
    }  # fmt: skip


def _from_cache(core: Any, key: Key, config: dict[str, Any]) -> tuple[Any, Verdict | None, str | None]:
    found = find("openvino", key)
    if found is None:
        return None, None, None
    try:
        compiled = core.import_model(io.BytesIO(found.path.read_bytes()), "CPU", config)
    except (OSError, RuntimeError):
        return None, None, None  # unusable: build it again
    return compiled, found.verdict, found.calibration


def _export(compiled: Any, path: Path) -> None:
    stream = io.BytesIO()
    compiled.export_model(stream)
    path.write_bytes(stream.getvalue())
