"""The device that a network is trained on, and the processes of torchrun that share the work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed

from stpredict.errors import UsageError
from stpredict.machine import multiplies_bf16

#: How long a process waits while the first one cuts patches.
LONGEST_WAIT = timedelta(hours=24)


def is_main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the other processes that torchrun started, if it did."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        on_gpu = pick_device(device).type == "cuda"
        if on_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=LONGEST_WAIT)
    try:
        yield
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def world_and_rank() -> tuple[int, int]:
    """How many processes train together, and the number of this one."""
    return (distributed.get_world_size(), distributed.get_rank()) if distributed.is_initialized() else (1, 0)


def wait_for_all() -> None:
    if distributed.is_initialized():
        distributed.barrier()


def agree_on(value: int | None) -> int | None:
    """The first process's value, in all processes."""
    values = [value]
    if distributed.is_initialized():
        distributed.broadcast_object_list(values)
    return values[0]


def sum_over_all(value: Tensor) -> Tensor:
    """The sum of all processes' values, in all processes."""
    if distributed.is_initialized():
        distributed.all_reduce(value)
    return value


def pick_device(name: str = "auto") -> torch.device:
    """The device of a name. Raises UsageError if it is not there."""
    if name != "auto":
        if name.split(":")[0] not in ("cpu", "cuda") or (name != "cpu" and not torch.cuda.is_available()):
            raise UsageError(
                f"--device {name}: not a device of this machine; choose cpu, or cuda where there is a GPU."
            )
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def computes_bf16(device: torch.device) -> bool:
    """Whether the device computes in bf16. If it only imitates that, fp32 trains two to three times as fast."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return multiplies_bf16()


def in_bf16(device: torch.device) -> torch.autocast:
    """A context that computes in bf16 where that is safe, if the device has bf16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=computes_bf16(device))
