"""What an engine is and what is asked of one: a network ready to run, in its own way."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from stpredict.arrays import Bool, Float16, Float32, Int, UInt8
from stpredict.engines.check import Verdict
from stpredict.errors import UsageError

EngineName = Literal["tensorrt", "compile", "openvino", "eager"]


Precision = Literal["fp32", "bf16", "fp16", "int8"]


ENGINES: tuple[str, ...] = get_args(EngineName)


PRECISIONS: tuple[str, ...] = get_args(Precision)


#: What each engine can run, given a device that can.
SUPPORTED: dict[str, tuple[str, ...]] = {
    "tensorrt": ("fp32", "bf16", "fp16"),
    "compile": ("fp32", "bf16", "fp16"),
    "openvino": PRECISIONS,
    "eager": ("fp32", "bf16", "fp16"),
}
#: What CUDA, its libraries and TensorRT say, each in words of its own, where a GPU's memory is used up.
OUT_OF_MEMORY = re.compile(r"out.?of.?memory|MemoryAllocation|ALLOC_FAILED|memory .*could not be allocated", re.I)


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
