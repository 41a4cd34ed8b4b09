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

#: Batches on the GPU at a time: one is uploaded while the other is read. Each has a graph of its own.
SLOTS = 2
#: Batches whose output is awaited at a time.
IN_FLIGHT = 3
#: Batches that are run launch by launch before a graph is captured: they make all that is made but once.
BEFORE_CAPTURE = 2
#: A graph that deviates further than this, relative to the largest value, from the run that it was captured of is not
#: used.
MAX_DEVIATION = 1e-3

Run = Callable[[Tensor], Tensor]


@dataclass
class Slot:
    """Where batches are uploaded to, which a graph reads. They are free again for the next once `read` has come."""

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
    """What is answered to each batch, in order.

    A batch is read until its output has come. One in pinned memory is copied but once, by the GPU.
    """
    upload = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    before = torch.cuda.current_stream(device)
    # What is captured cannot be on the default stream. Engines of others are left to the one that they are used to.
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
        compute.synchronize()  # else what the slots held would be given away while it is still read
        upload.synchronize()


def _slot_for(batch: UInt8, number: int, slots: list[Slot], device: torch.device) -> Slot:
    """The slot for a batch. It is made for the first one that comes to it, and anew for one of another shape."""
    place = number % SLOTS
    if place < len(slots) and tuple(slots[place].patches.shape) == batch.shape:
        return slots[place]
    stream = torch.cuda.current_stream(device)
    stream.synchronize()  # somebody may be reading the one that was there
    slot = Slot(torch.empty(batch.shape, dtype=torch.uint8, device=device))
    slots[place : place + 1] = [slot]
    return slot


def _capture(slot: Slot, answer: Run, compute: torch.cuda.Stream, slots: list[Slot]) -> bool:
    """Capture what is answered to the slot's batch; says whether that went well. Without, all goes on as it was."""
    expected = answer(slot.patches)
    pool = next((other.graph.pool() for other in slots if other.graph), None)  # they never run at a time
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, pool=pool, stream=compute, capture_error_mode="thread_local"):
            output = answer(slot.patches)
        graph.replay()
        difference = (output - expected).nan_to_num().abs().max()
        agrees = bool(difference <= MAX_DEVIATION * expected.nan_to_num().abs().max())
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # a network that asks the GPU for a value in between
        agrees = False
    if agrees:
        slot.graph, slot.output = graph, output
    else:
        for other in slots:
            other.graph = other.output = None
    return agrees
