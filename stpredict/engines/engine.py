"""An engine, a network ready to run in its own way, and the request for one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from stpredict.arrays import Float, Float16, Float32, Int, UInt8
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
#: CUDA, its libraries and TensorRT each report in other words that a GPU's memory is used up.
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
class TileReading:
    """How a network reads slides in tiles of `tile_px`, laid out from the slide's corner, not around the spots.

    It reads whole regions of `region` x `region` tiles, or the whole slide if `region` is None. It compares tiles by
    their first `n_leading` features. A tile has 16 x 16 squares; `radius` is that of a spot, in squares. If `divides`,
    the network can also predict smaller spots. It reads `shifts` x `shifts` layouts of tiles, each shifted.
    """

    tile_px: int
    region: int | None
    n_leading: int
    radius: float
    divides: bool
    shifts: int = 1


@dataclass(frozen=True)
class TwoPasses:
    """How to run a network that looks at all spots of a slide: first describe all patches, then predict each spot.

    `describe` takes full batches of patches (B x P x P x 3) and yields features (B x width) in order. `global_tokens`
    takes the features of all spots' own patches and the spots' cells (n x 2, row and column), and gives tokens (n x C).
    If it `reads_centres`, it takes the spots' centres on the slide in place of cells. The patches around a spot touch
    each other; if `at_pitch`, they lie at the pitch of the spots that the network was trained on.
    `read_spots` takes patches, the features of the `side` x `side` patches around them, a mask of those off the slide,
    and their tokens, and gives expression (B x genes). The network knows `positions` columns and rows of spots; the
    first `learnt` of them had spots in training.

    With `tiles`, the patches are tiles: `global_tokens` takes their leading features and cells, and gives a token for
    each. `read_spots` then takes no patches. It takes the tokens of the tiles around each spot, the square of the
    middle tile in which the spot lies (n x 2, row and column), and a `radius` by name.
    """

    width: int
    side: int
    describe: Callable[[Iterable[UInt8]], Iterator[Float32]]
    global_tokens: Callable[[Float16 | Float32, Int | Float], Float32]
    read_spots: Callable[..., Float32]
    at_pitch: bool = False
    reads_centres: bool = False
    stored: type[np.float16] | type[np.float32] = np.float16  # the type in which features are kept
    positions: int | None = None  # None for any number
    learnt: int | None = None
    tiles: TileReading | None = None


@dataclass(frozen=True)
class Engine:
    """A network ready to run. `infer` takes full batches and yields expression (B x genes) in order.

    After the genes come the patches' coordinates among the training patches, if the model file defines them.
    Batches are B x P x P x 3, or B x V x P x P x 3 for a network that looks at several views. Do not change a batch
    before its output has come: `infer` may still read it. On a GPU `infer` also takes a function to wrap around the
    network, the `around` of `infer_batches`.

    `calibration` identifies the patches that a network was quantised on; None if it is not quantised.
    """

    name: str
    precision: str
    device: str
    batch_size: int
    versions: dict[str, str]
    verdict: Verdict
    infer: Callable[..., Iterator[Float32]]
    calibration: str | None = None
    two_passes: TwoPasses | None = None  # if needed; `infer` then treats each spot as the only one of its slide

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def pin(self) -> tuple[str, str, str | None]:
        """What must be the same for all spots of a slide: name, precision, calibration."""
        return self.name, self.precision, self.calibration

    def description(self) -> dict[str, Any]:
        """The facts that a result records."""
        return {
            "engine": self.name, "precision": self.precision, "device": self.device, "batch_size": self.batch_size,
            "versions": self.versions, "calibration": self.calibration, "check": self.verdict.as_dict(),
        }  # fmt: skip
