"""Losses of a batch, each a mean over the values that its spots measured: a NaN is not read and moves no weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from stpredict.arrays import Int
from stpredict.statistics.blocks import blocks


class Loss(Protocol):
    """The mean loss over measured values, from z of a batch (spots x genes) and the indices of its spots."""

    def __call__(self, z: Tensor, index: Tensor) -> Tensor: ...

    def of(self, genes: Int | slice) -> Loss:
        """The same loss for these genes alone."""


class Targets(Protocol):
    """Spots x genes: an array, or what is read or computed when rows are asked for."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


@dataclass(frozen=True)
class TargetError:
    """The error of z against `targets`, spots x genes; `error` is one of torch's functions."""

    targets: Targets
    error: Callable[..., Tensor]

    @cached_property
    def wanted(self) -> Tensor:
        """The targets as a tensor; heads that are fitted at once never ask for it."""
        wanted = torch.empty(self.targets.shape, dtype=torch.float32)
        for some in blocks(*self.targets.shape):
            wanted[some] = torch.as_tensor(self.targets[some], dtype=torch.float32)
        return wanted

    @cached_property
    def gaps(self) -> bool:
        return bool(torch.isnan(self.wanted).any())

    def __call__(self, z: Tensor, index: Tensor) -> Tensor:
        wanted = self.wanted[index].to(z.device)
        if not self.gaps:
            return self.error(z, wanted)
        known = ~torch.isnan(wanted)
        total = self.error(torch.where(known, z, 0.0), torch.where(known, wanted, 0.0), reduction="sum")
        return total / known.sum().clamp(min=1)

    def of(self, genes: Int | slice) -> TargetError:
        return replace(self, targets=self.targets[:][:, genes])


@dataclass(frozen=True)
class CountLikelihood:
    """Negative log likelihood of counts (spots x genes) with the mean exp(`log_mean` + z), times each gene's `weight`.

    Negative binomial with overdispersion `theta`; Poisson if it is None.
    """

    counts: Tensor
    log_mean: Tensor
    weight: Tensor
    theta: float | None

    @cached_property
    def gaps(self) -> bool:
        return bool(torch.isnan(self.counts).any() or torch.isnan(self.weight).any())

    def __call__(self, z: Tensor, index: Tensor) -> Tensor:
        observed, log_mean = self.counts[index].to(z.device), self.log_mean[index].to(z.device)
        weight = self.weight.to(z.device)
        if not self.gaps:
            return (self._negative(observed, log_mean + z) * weight).mean()
        known = ~torch.isnan(observed * weight)
        # Unknown values must be finite, too: otherwise their gradient would be NaN, not zero.
        observed, log_expected, weight = (torch.where(known, x, 0.0) for x in (observed, log_mean + z, weight))
        return (self._negative(observed, log_expected) * weight).sum() / known.sum().clamp(min=1)

    def _negative(self, observed: Tensor, log_expected: Tensor) -> Tensor:
        if self.theta is None:
            return log_expected.exp() - observed * log_expected
        log_theta = float(np.log(self.theta))
        log_total = torch.logaddexp(log_expected, torch.full_like(log_expected, log_theta))
        return (observed + self.theta) * log_total - observed * log_expected - self.theta * log_theta

    def of(self, genes: Int | slice) -> CountLikelihood:
        return replace(
            self, counts=self.counts[:, genes], log_mean=self.log_mean[:, genes], weight=self.weight[genes]
        )  # fmt: skip
