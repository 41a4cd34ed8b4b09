"""Engines: one network, run in different ways. Each takes uint8 patches in batches of one size and yields float32."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from stpredict.arrays import Bool, Float16, Float32, Int, UInt8
from stpredict.console import Report
from stpredict.engines.check import Verdict
from stpredict.errors import EngineError, PrecisionError, UsageError
from stpredict.weights import Model

#: OpenVINO's converter and nncf would report their use over the network; without this module they do not.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

EngineName = Literal["tensorrt", "compile", "openvino", "eager"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]
ENGINES: tuple[str, ...] = get_args(EngineName)
PRECISIONS: tuple[str, ...] = get_args(Precision)
#: What each engine can run, given a device that can.
SUPPORTED: dict[str, tuple[str, ...]] = {
    "tensorrt": ("bf16", "fp16"),
    "compile": ("fp32", "bf16", "fp16"),
    "openvino": PRECISIONS,
    "eager": ("fp32", "bf16", "fp16"),
}


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
        if not re.fullmatch(r"auto|cpu|cuda|cuda:all|cuda:\d+(,cuda:\d+)*", self.device):
            one_of = "auto, cpu, cuda, cuda:N, or several as in cuda:0,cuda:1 or cuda:all"
            raise UsageError(f"--device {self.device}: choose {one_of}.")

    def on_each_device(self) -> list[EngineRequest]:
        """The request for each device that it names. Raises UsageError for one named twice, or no GPU at all."""
        devices = self.device.split(",")
        if self.device == "cuda:all":
            import torch

            devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
            if not devices:
                raise UsageError(f"--device cuda:all: torch {torch.__version__} sees no GPU.")
        if len(set(devices)) < len(devices):
            raise UsageError(f"--device {self.device}: names a GPU twice, which would only share its memory.")
        return [replace(self, device=device) for device in devices]


@dataclass(frozen=True)
class TwoPasses:
    """How a network is run that is told of all spots of a slide: first features of patches, then spots among them.

    `describe` takes full batches of patches (B x P x P x 3) and yields features (B x width) in order. `global_tokens`
    takes the features of all spots' own patches and their cells (n x 2, row and column), and gives tokens (n x C).
    `read_spots` takes patches, the features of the `side` x `side` patches around them, which of these lie off the
    slide, and their tokens, and gives expression (B x genes).
    """

    width: int
    side: int
    describe: Callable[[Iterable[UInt8]], Iterator[Float32]]
    global_tokens: Callable[[Float16, Int], Float32]
    read_spots: Callable[[UInt8, Float16, Bool, Float32], Float32]


@dataclass(frozen=True)
class Engine:
    """A network ready to run. `infer` takes full batches and yields expression (B x genes) in order.

    Behind the genes stand the patches' coordinates among the training patches, where the model file tells of them.
    Batches are B x P x P x 3, or B x V x P x P x 3 for a network that looks at several views. One may be read until its
    output has come, and is not to be changed before. On a GPU `infer` also takes what is to be made of the network, as
    `infer_batches` has it.

    `calibration` tells apart networks that were quantised on other patches; None if nothing was.
    """

    name: str
    precision: str
    device: str
    batch_size: int
    versions: dict[str, str]
    verdict: Verdict
    infer: Callable[..., Iterator[Float32]]
    calibration: str | None = None
    two_passes: TwoPasses | None = None  # where needed; `infer` then takes each spot for the only one of its slide

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def pin(self) -> tuple[str, str, str | None]:
        """What has to be the same for all of a slide."""
        return self.name, self.precision, self.calibration

    def description(self) -> dict[str, Any]:
        """What a result records."""
        return {
            "engine": self.name, "precision": self.precision, "device": self.device, "batch_size": self.batch_size,
            "versions": self.versions, "calibration": self.calibration, "check": self.verdict.as_dict(),
        }  # fmt: skip


def allocate_batch(shape: tuple[int, ...], on_gpu: bool) -> UInt8:
    """Memory for a batch of patches; for a GPU such as it reads by itself, without another copy."""
    if not on_gpu:
        return np.empty(shape, np.uint8)
    from stpredict.engines.running import pinned_batch

    return pinned_batch(shape)


def open_engine(
    model: Model, request: EngineRequest, sample: UInt8, report: Report, n_spots: int = 0, keep: bool = True
) -> Engine:
    """Build, or take from the cache, the engine that suits the request, and check it on the `sample` of real patches.

    With `auto`, nothing is built that takes longer than it saves on `n_spots` spots, a precision or engine that fails
    its check gives way to the next, and `report` is told. Without `keep` what is built is forgotten.
    Raises EngineError if an engine that was named cannot run here, or none passes.
    """
    from stpredict.engines.selection import candidates

    failures = []
    for name, precision in candidates(model, request, n_spots):
        try:
            engine = _open_smaller(name, model, precision, request, sample, report, keep)
        except PrecisionError as error:
            if request.precision != "auto":  # unasked, an older processor is no failure
                failures.append(str(error))
            continue
        except EngineError as error:
            failures.append(str(error))
            continue
        if engine.verdict.passed:
            for failure in failures:
                report(f"engine: {failure} Using {name} {precision}.")
            return engine
        failures.append(f"{name} {precision} failed its numeric check ({engine.verdict.summary()}).")
    raise EngineError(" ".join([*dict.fromkeys(failures), "Another --engine or --precision may do."]))


def _open_smaller(
    name: str, model: Model, precision: str, request: EngineRequest, sample: UInt8, report: Report, keep: bool
) -> Engine:
    """Open an engine, with batches of half the size, aloud, for as long as a GPU has no memory for them."""
    while True:
        try:
            return _open(name, model, precision, request, sample, report, keep)
        except Exception as error:
            if not _out_of_memory(error):
                raise
            from stpredict.engines.running import BATCH_SIZES

            size = request.batch_size or BATCH_SIZES["cuda"]
            if size == 1:
                raise EngineError(f"{name}: the GPU has no memory for even one patch at a time.") from error
            report(f"{name}: the GPU has no memory for {size} patches at a time; trying {size // 2}.")
            request = replace(request, batch_size=size // 2)


def _out_of_memory(error: BaseException | None) -> bool:
    """Did torch run out of a GPU's memory, here or in what this error came from? Without importing torch."""
    while error is not None and type(error).__name__ != "OutOfMemoryError":
        error = error.__cause__
    return error is not None


def _open(
    name: str, model: Model, precision: str, request: EngineRequest, sample: UInt8, report: Report, keep: bool
) -> Engine:
    if precision not in SUPPORTED[name]:
        able = ", ".join(engine for engine in ENGINES if precision in SUPPORTED[engine])
        raise EngineError(f"{name}: runs in {', '.join(SUPPORTED[name])}; for {precision} there is {able}.")
    if name == "openvino":
        try:
            from stpredict.engines.openvino import open_openvino
        except ImportError as error:
            raise EngineError(f"openvino: cannot be imported ({error}); pip install openvino.") from error

        return open_openvino(model, precision, request, sample, report, keep)
    if name == "tensorrt":
        from stpredict.engines.tensorrt import open_tensorrt

        return open_tensorrt(model, precision, request, sample, report, keep)
    if name == "compile":
        from stpredict.engines.compile import open_compile

        return open_compile(model, precision, request, sample, report)
    from stpredict.engines.eager import open_eager

    return open_eager(model, precision, request, sample)
