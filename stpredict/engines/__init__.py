"""Engines: one network, run in different ways. Each takes uint8 patches in batches of one size and yields float32."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from stpredict.arrays import Float32, UInt8
from stpredict.engines.check import Verdict
from stpredict.errors import EngineError, PrecisionError, UsageError
from stpredict.weights import Model

EngineName = Literal["openvino", "eager"]
Precision = Literal["fp32", "bf16", "fp16"]
ENGINES: tuple[str, ...] = get_args(EngineName)
PRECISIONS: tuple[str, ...] = get_args(Precision)
Report = Callable[[str], None]


@dataclass(frozen=True)
class EngineRequest:
    """What the user asked for. `batch_size` 0 lets the engine choose."""

    name: str = "auto"
    precision: str = "auto"
    device: str = "auto"
    batch_size: int = 0
    threads: int = 2

    def __post_init__(self) -> None:
        for option, value, choices in (("engine", self.name, ENGINES), ("precision", self.precision, PRECISIONS)):
            if value not in ("auto", *choices):
                raise UsageError(f"--{option} {value}: choose one of auto, {', '.join(choices)}.")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise UsageError(f"--device {self.device}: choose auto, cpu, cuda or cuda:N.")


@dataclass(frozen=True)
class Engine:
    """A network ready to run. `infer` takes full batches (B x P x P x 3) and yields expression (B x genes) in order."""

    name: str
    precision: str
    device: str
    batch_size: int
    versions: dict[str, str]
    verdict: Verdict
    infer: Callable[[Iterable[UInt8]], Iterator[Float32]]

    def description(self) -> dict[str, Any]:
        """What a result records."""
        return {
            "engine": self.name, "precision": self.precision, "device": self.device, "batch_size": self.batch_size,
            "versions": self.versions, "check": self.verdict.as_dict(),
        }  # fmt: skip


def open_engine(model: Model, request: EngineRequest, sample: UInt8, report: Report) -> Engine:
    """Build, or take from the cache, the engine that suits the request, and check it on the `sample` of real patches.

    With `auto`, a precision or engine that fails its check gives way to the next, and `report` is told.
    Raises EngineError if an engine that was named cannot run here, or none passes.
    """
    candidates = _candidates(request)
    failures = []
    for name, precision in candidates:
        try:
            engine = _open(name, model, precision, request, sample, report)
        except PrecisionError:
            if request.precision != "auto":
                raise
            continue  # an older processor is no failure
        except EngineError as error:
            failures.append(str(error))
            continue
        if engine.verdict.passed:
            for failure in failures:
                report(f"engine: {failure} Using {name} {precision}.")
            return engine
        failures.append(f"{name} {precision} failed its numeric check ({engine.verdict.summary()}).")
    raise EngineError(" ".join(dict.fromkeys(failures)) + " Another --engine or --precision may do.")


def _candidates(request: EngineRequest) -> list[tuple[str, str]]:
    """Engines and precisions to try, best first. Lower precisions only where the processor has them."""
    on_gpu = request.device.startswith("cuda")
    if request.device == "auto" and request.name != "openvino":
        import importlib.util

        if request.name == "eager" or importlib.util.find_spec("openvino") is None or _nvidia_driver():
            import torch

            on_gpu = torch.cuda.is_available()
    names = ["eager"] if on_gpu else ["openvino", "eager"]
    if request.name != "auto":
        names = [request.name]
    out = []
    for name in names:
        fast = on_gpu if name == "eager" else True
        precisions = ["bf16", "fp32"] if fast else ["fp32"]
        out += [(name, p) for p in (precisions if request.precision == "auto" else [request.precision])]
    return out


def _nvidia_driver() -> bool:
    from pathlib import Path

    return Path("/proc/driver/nvidia").exists() or Path("/dev/nvidia0").exists() or Path("/dev/dxg").exists()


def _open(name: str, model: Model, precision: str, request: EngineRequest, sample: UInt8, report: Report) -> Engine:
    if name == "openvino":
        try:
            from stpredict.engines.openvino import open_openvino
        except ImportError as error:
            raise EngineError(f"openvino: cannot be imported ({error}).") from error

        return open_openvino(model, precision, request, sample, report)
    from stpredict.engines.eager import open_eager

    return open_eager(model, precision, request, sample)
