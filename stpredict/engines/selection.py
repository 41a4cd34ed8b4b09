"""Which engine and precision to try, best first: by device, by what building costs, and by the size of the job."""

from __future__ import annotations

import ctypes.util
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

from stpredict.engines.engine import EngineRequest
from stpredict.errors import EngineError
from stpredict.model.file import Model

#: The costs and savings of building on a GPU. Stated, not measured: no GPU was there. See docs/predict.md.
COMPILE_S, TENSORRT_S = 60.0, 240.0
#: Spots a second of the whole flow with eager, cast and captured; slides can hardly be read faster.
EAGER_RATE = 20_000.0
#: Share of the time that a built engine saves if the GPU, not the reading of slides, is the bottleneck.
COMPILE_SAVES, TENSORRT_SAVES = 0.25, 0.3
#: Spots, over all slides of a call, from which on building pays.
COMPILE_FROM = round(COMPILE_S * EAGER_RATE / COMPILE_SAVES)
TENSORRT_FROM = round(TENSORRT_S * EAGER_RATE / TENSORRT_SAVES)

Candidate = tuple[str, str]


def candidates(model: Model, request: EngineRequest, n_spots: int) -> list[Candidate]:
    """Engines and precisions to try for `n_spots` spots, best first.

    Raises EngineError for an engine or a precision that the model's network cannot run in.
    """
    if request.precision == "int8" and model.card["parameters"].get("network", "m2ort") != "m2ort":
        raise EngineError(f"--precision int8: for M2ORT alone, which {model.name} is not.")
    if model.reads_slide and request.name not in ("auto", "eager"):
        raise EngineError(
            f"--engine {request.name}: {model.name} looks at all spots of a slide at once, and runs in eager alone."
        )
    if model.fp32_only:
        if request.precision not in ("auto", "fp32"):
            raise EngineError(f"--precision {request.precision}: {model.name} needs fp32.")
        request = replace(request, precision="fp32")
    if model.reads_slide:
        return [("eager", "fp32")]
    if request.name != "auto":
        on_gpu = request.name != "openvino" and finds_gpu(request)
        return _in_precisions(request.name, request, on_gpu)
    if request.precision == "int8":
        return [("openvino", "int8")]
    if finds_gpu(request):
        return _on_gpu(model, request, n_spots)
    return [*_in_precisions("openvino", request, False), *_in_precisions("eager", request, False)]


def _in_precisions(name: str, request: EngineRequest, on_gpu: bool) -> list[Candidate]:
    """An engine in the requested precision; for auto, in those that suit the device. int8 has to be requested."""
    if request.precision != "auto":
        return [(name, request.precision)]
    if name == "tensorrt":
        return [(name, "bf16"), (name, "fp16"), (name, "fp32")]
    if name == "openvino":
        return [(name, "bf16"), (name, "fp32")]
    return [(name, "bf16"), (name, "fp16"), (name, "fp32")] if on_gpu else [(name, "fp32")]


def _on_gpu(model: Model, request: EngineRequest, n_spots: int) -> list[Candidate]:
    """TensorRT if an engine is cached, or the spots are enough to build one; `compile` if they are enough; eager."""
    found: list[Candidate] = []
    if importlib.util.find_spec("torch_tensorrt") is not None:
        from stpredict.engines.tensorrt import is_cached

        tensorrt = _in_precisions("tensorrt", request, True)
        cached = [candidate for candidate in tensorrt if is_cached(model, candidate[1], request)]
        found += cached or (tensorrt if n_spots >= TENSORRT_FROM else [])
    if n_spots >= COMPILE_FROM:
        found += _in_precisions("compile", request, True)
    return [*found, *_in_precisions("eager", request, True)]


def finds_gpu(request: EngineRequest) -> bool:
    """Is a GPU requested, or for auto available? Looks without torch if possible, because its import takes seconds."""
    if request.device != "auto":
        return request.device.startswith("cuda")
    if request.name == "auto" and importlib.util.find_spec("openvino") is not None and not _nvidia_driver():
        return False
    import torch

    return torch.cuda.is_available()


def _nvidia_driver() -> bool:
    if sys.platform == "win32":
        return ctypes.util.find_library("nvcuda") is not None
    return any(Path(path).exists() for path in ("/proc/driver/nvidia", "/dev/nvidia0", "/dev/dxg"))
