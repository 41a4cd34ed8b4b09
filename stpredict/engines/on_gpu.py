"""Batches on their way through a GPU: upload, inference and download overlap, and a CUDA graph spares the launches.

Written against torch's documented CUDA streams, events and graphs; it has not been run on a GPU yet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stpredict.arrays import Float32, UInt8

#: Batches on the GPU at a time: one is uploaded while the network reads the other. Each has its own graph.
SLOTS = 2
#: Batches at most whose output is yet to come.
IN_FLIGHT = 3
#: Batches that run launch by launch before a graph is captured: they do all work that is done only once.
BEFORE_CAPTURE = 2
#: A graph is used only if its output deviates by no more than this, relative to the largest value, from a run without
#: it.
MAX_DEVIATION = 1e-3

Run = Callable[[Tensor], Tensor]


@dataclass
class Slot:
    """Memory on the GPU that batches are uploaded to and a graph reads. After the event `read`, it is free again."""

    patches: Tensor
    read: torch.cuda.Event = field(default_factory=torch.cuda.Event)
    graph: torch.cuda.CUDAGraph | None = None
    output: Tensor | None = None

    def run(self, answer: Run) -> Tensor:
        """The output of the batch, to be read on the same stream before the next graph runs there."""
        if self.graph is None or self.output is None:
            return answer(self.patches)
        self.graph.replay()
        return self.output


def infer_on_gpu(answer: Run, device: torch.device, batches: Iterable[UInt8], capture: bool) -> Iterator[Float32]:
    """The output of `answer` for each batch, in order.

    The GPU may read a batch until its output has come. A batch in pinned memory is copied only once, by the GPU.
    """
    upload = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    before = torch.cuda.current_stream(device)
    # A graph cannot be captured on the default stream. Without a graph, engines keep the stream that they are used to.
    compute = torch.cuda.Stream(device) if capture else before  # type: ignore[no-untyped-call]
    compute.wait_stream(before)
    slots: list[Slot] = []
    busy: deque[tuple[Tensor, torch.cuda.Event, UInt8]] = deque()

    def finished() -> Float32:
        expression, done, _ = busy.popleft()
        done.synchronize()
        return expression.numpy()

    try:
        for number, batch in enumerate(batches):
            with torch.no_grad(), torch.cuda.device(device), torch.cuda.stream(compute):
                slot = _slot_for(batch, number, slots, device)
                with torch.cuda.stream(upload):
                    upload.wait_event(slot.read)
                    slot.patches.copy_(torch.from_numpy(batch), non_blocking=True)
                compute.wait_stream(upload)
                if capture and number >= BEFORE_CAPTURE and slot.graph is None:
                    capture = _capture(slot, answer, compute, slots)
                on_gpu = slot.run(answer)
                expression = torch.empty(on_gpu.shape, dtype=torch.float32, pin_memory=True)
                expression.copy_(on_gpu, non_blocking=True)
                slot.read.record(compute)
                done = torch.cuda.Event()  # type: ignore[no-untyped-call]
                done.record(compute)
            busy.append((expression, done, batch))
            if len(busy) == IN_FLIGHT:
                yield finished()
        while busy:
            yield finished()
    finally:
        compute.synchronize()  # else the slots' memory would be reused while it is still read
        upload.synchronize()


def _slot_for(batch: UInt8, number: int, slots: list[Slot], device: torch.device) -> Slot:
    """The slot for a batch. It is made for its first batch, and anew for a batch of another shape."""
    place = number % SLOTS
    if place < len(slots) and tuple(slots[place].patches.shape) == batch.shape:
        return slots[place]
    stream = torch.cuda.current_stream(device)
    stream.synchronize()  # the old slot may still be read
    slot = Slot(torch.empty(batch.shape, dtype=torch.uint8, device=device))
    slots[place : place + 1] = [slot]
    return slot


def _capture(slot: Slot, answer: Run, compute: torch.cuda.Stream, slots: list[Slot]) -> bool:
    """Capture `answer` for the slot's batch. Returns whether that worked; if not, the slot stays as it was."""
    expected = answer(slot.patches)
    pool = next((other.graph.pool() for other in slots if other.graph), None)  # they never run at the same time
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, pool=pool, stream=compute, capture_error_mode="thread_local"):
            output = answer(slot.patches)
        graph.replay()
        difference = (output - expected).nan_to_num().abs().max()
        agrees = bool(difference <= MAX_DEVIATION * expected.nan_to_num().abs().max())
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # a network that fetches a value from the GPU in between
        agrees = False
    if agrees:
        slot.graph, slot.output = graph, output
    else:
        for other in slots:
            other.graph = other.output = None
    return agrees
