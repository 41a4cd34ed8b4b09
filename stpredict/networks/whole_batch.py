"""What a network computes in training from all items of a batch, though several processes share them.

Each process gives what its items come to, and all get the sum. Gradients flow back to whoever computed an item.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

from stpredict.networks.draws import current_share


class SumOverProcesses(torch.autograd.Function):
    """The sum of all processes' tensors, in each. Its gradient is the sum of theirs."""

    @staticmethod
    def forward(_context: Any, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total


def sum_over_processes(x: Tensor) -> Tensor:
    return SumOverProcesses.apply(x)  # type: ignore[no-any-return, no-untyped-call]


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all of a batch's items, in its order, of which each process computed those of its own.

    A batch that processes share must not be divided into parts besides.
    """
    share = current_share()
    if share is None:
        return rows
    whole = rows.new_zeros(share.n, *rows.shape[1:])
    own = torch.tensor(share.own, device=rows.device)
    return sum_over_processes(whole.index_add(0, own, rows * bool(share.counted)))


class BatchNorm2d(nn.BatchNorm2d):
    """torch's, whose mean and variance in training are those of the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not distributed.is_initialized():
            return super().forward(x)
        share = current_share()
        if share is None:
            return super().forward(x)
        counts = float(bool(share.counted))
        values = x.float()
        own = values.new_tensor([counts * values.numel() / values.shape[1]])
        sums = sum_over_processes(torch.cat([counts * values.sum(dim=(0, 2, 3)), own]))
        n, mean = sums[-1], sums[:-1] / sums[-1]
        apart = values - mean[:, None, None]
        variance = sum_over_processes(counts * apart.square().sum(dim=(0, 2, 3))) / n
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr, arg-type]
            self.running_var.lerp_(variance * n / (n - 1).clamp(min=1), self.momentum)  # type: ignore[union-attr, arg-type]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (apart * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)
