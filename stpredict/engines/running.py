"""What the torch engines share: the device, the precision, and batches that go to the device and back in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from stpredict.arrays import Float32, UInt8
from stpredict.engines.engine import EngineRequest
from stpredict.errors import EngineError, PrecisionError
from stpredict.machine import limit_threads

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BATCH_SIZES = {"cpu": 16, "cuda": 256}

Run = Callable[[Tensor], Tensor]


def choose_device(request: EngineRequest) -> torch.device:
    """The requested device; for auto, the GPU if there is one. Raises EngineError if the device is missing."""
    found = torch.cuda.is_available()
    device = torch.device(request.device if request.device != "auto" else "cuda" if found else "cpu")
    if device.type == "cuda" and not found:
        raise EngineError(
            f"--device {request.device}: torch {torch.__version__} sees no GPU; `stpredict doctor` says more."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EngineError(f"--device {request.device}: there are {torch.cuda.device_count()} GPUs.")
    if device.type == "cpu":
        limit_threads(request.threads)
    else:
        torch.backends.cudnn.allow_tf32 = False  # by default fp32 convolutions use TF32
    return device


def demand_precision(precision: str, device: torch.device) -> None:
    """Raise PrecisionError for bf16 on a GPU that would only imitate it."""
    if device.type == "cuda" and precision == "bf16":
        with torch.cuda.device(device):
            if not torch.cuda.is_bf16_supported(including_emulation=False):
                raise PrecisionError(f"{torch.cuda.get_device_name(device)} has no bf16; --precision fp16 may do.")


def with_precision(network: Callable[[Tensor], Any], precision: str, device: torch.device) -> Run:
    """The network in a precision: by autocast, not by casting weights, so that the residual stream stays in fp32."""

    def run(patches: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
            expression: Tensor = network(patches)
            return expression

    return run


def infer_batches(
    run: Run,
    device: torch.device,
    batches: Iterable[UInt8],
    around: Callable[[Run], Run] | None = None,
    capture: bool = False,
) -> Iterator[Float32]:
    """Run batches one by one; expression (B x genes) comes in their order.

    `around` wraps the network; the wrapped function then runs on the device. With `capture`, a GPU captures that in a
    CUDA graph, which requires that it never waits for a value from the GPU.
    """
    answer = around(run) if around else run
    if device.type == "cuda":
        from stpredict.engines.on_gpu import infer_on_gpu

        yield from infer_on_gpu(answer, device, batches, capture)
        return
    with torch.no_grad():
        for batch in batches:
            yield answer(torch.from_numpy(batch)).numpy()


def pinned_batch(shape: tuple[int, ...]) -> UInt8:
    """Pinned memory, which a GPU reads by itself; ordinary memory without a GPU."""
    batch: UInt8 = torch.empty(shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available()).numpy()
    return batch
