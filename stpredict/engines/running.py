"""What the torch engines share: the device, the precision, and batches that go to it and come back in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from stpredict.arrays import Float32, UInt8
from stpredict.engines.engine import EngineRequest
from stpredict.errors import EngineError, PrecisionError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BATCH_SIZES = {"cpu": 16, "cuda": 256}
#: Batches on their way through a GPU at a time.
IN_FLIGHT = 3

Run = Callable[[Tensor], Tensor]


def choose_device(request: EngineRequest) -> torch.device:
    """The device that was asked for, or the GPU if there is one. Raises EngineError if it is not there."""
    found = torch.cuda.is_available()
    device = torch.device(request.device if request.device != "auto" else "cuda" if found else "cpu")
    if device.type == "cuda" and not found:
        raise EngineError(
            f"--device {request.device}: torch {torch.__version__} sees no GPU; `stpredict doctor` says more."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EngineError(f"--device {request.device}: there are {torch.cuda.device_count()} GPUs.")
    if device.type == "cpu":
        torch.set_num_threads(request.threads)
    else:
        torch.backends.cudnn.allow_tf32 = False  # by default fp32 convolutions are not
    return device


def demand_precision(precision: str, device: torch.device) -> None:
    """Raise PrecisionError for bf16 on a GPU that would only imitate it."""
    if device.type == "cuda" and precision == "bf16":
        with torch.cuda.device(device):
            if not torch.cuda.is_bf16_supported(including_emulation=False):
                raise PrecisionError(f"{torch.cuda.get_device_name(device)} has no bf16; --precision fp16 may do.")


def with_precision(network: Callable[[Tensor], Any], precision: str, device: torch.device) -> Run:
    """The network in a precision: by autocast rather than cast weights, so that what layers add to stays in fp32."""

    def run(patches: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
            expression: Tensor = network(patches)
            return expression

    return run


def infer_batches(run: Run, device: torch.device, batches: Iterable[UInt8]) -> Iterator[Float32]:
    """Run batches one by one; expression (B x genes) comes in their order."""
    if device.type == "cuda":
        yield from _infer_on_gpu(run, device, batches)
        return
    for batch in batches:
        yield run(torch.from_numpy(batch)).numpy()


def _infer_on_gpu(run: Run, device: torch.device, batches: Iterable[UInt8]) -> Iterator[Float32]:
    """Upload, inference and download overlap with one another and with whatever makes the batches."""
    upload, compute = torch.cuda.Stream(device), torch.cuda.current_stream(device)  # type: ignore[no-untyped-call]
    busy: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    def finished() -> Float32:
        expression, done = busy.popleft()
        done.synchronize()
        return expression.numpy()

    for batch in batches:
        with torch.cuda.stream(upload):
            patches = torch.from_numpy(batch).pin_memory().to(device, non_blocking=True)
        compute.wait_stream(upload)
        patches.record_stream(compute)
        with torch.cuda.device(device):
            on_gpu = run(patches)
            expression = torch.empty(on_gpu.shape, dtype=torch.float32, pin_memory=True)
            expression.copy_(on_gpu, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(compute)
        busy.append((expression, done))
        if len(busy) == IN_FLIGHT:
            yield finished()
    while busy:
        yield finished()
