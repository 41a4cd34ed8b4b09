"""Losses of a batch, each a mean over the values that its spots measured: a NaN is not read and moves no weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from stpredict.arrays import Float, Int
from stpredict.statistics.targets import Kept


class Loss(Protocol):
    """The mean loss over measured values, from z of a batch (spots x genes) and the indices of its spots."""

    def __call__(self, z: Tensor, index: Tensor) -> Tensor: ...

    def of(self, genes: Int | slice) -> Loss:
        """The same loss for these genes alone."""


@dataclass(frozen=True)
class TargetError:
    """The error of z against `targets`, spots x genes; `error` is one of torch's functions."""

    targets: Kept
    error: Callable[..., Tensor]

    def __call__(self, z: Tensor, index: Tensor) -> Tensor:
        wanted = torch.as_tensor(self.targets[index.numpy()], dtype=torch.float32)
        known = ~torch.isnan(wanted)
        whole, wanted, known = bool(known.all()), wanted.to(z.device), known.to(z.device)
        if whole:
            return self.error(z, wanted)
        total = self.error(torch.where(known, z, 0.0), torch.where(known, wanted, 0.0), reduction="sum")
        return total / known.sum().clamp(min=1)

    def of(self, genes: Int | slice) -> TargetError:
        return replace(self, targets=self.targets.of(genes))


@dataclass(frozen=True)
class CountLikelihood:
    """Negative log likelihood of counts (spots x genes), times each gene's `weight`.

    Their mean is a spot's depth x the gene's expected share x exp(z). Expected shares, kinds x genes, are the same for
    spots of one kind; `kind` is that of each spot. Negative binomial with overdispersion `theta`; Poisson if that is
    None.
    """

    counts: Kept
    log_depth: Float
    kind: Int
    log_share: Float
    weight: Float
    theta: float | None

    def __call__(self, z: Tensor, index: Tensor) -> Tensor:
        spots = index.numpy()
        log_mean = self.log_depth[spots][:, None] + self.log_share[self.kind[spots]]
        given = (torch.as_tensor(x, dtype=torch.float32) for x in (self.counts[spots], log_mean, self.weight))
        observed, log_expected, weight = given
        known = ~torch.isnan(observed * weight)
        whole, known = bool(known.all()), known.to(z.device)
        observed, log_expected, weight = (x.to(z.device) for x in (observed, log_expected, weight))
        log_expected = log_expected + z
        if whole:
            return (self._negative(observed, log_expected) * weight).mean()
        # Unknown values must be finite, too: otherwise their gradient would be NaN, not zero.
        observed, log_expected, weight = (torch.where(known, x, 0.0) for x in (observed, log_expected, weight))
        return (self._negative(observed, log_expected) * weight).sum() / known.sum().clamp(min=1)

    def _negative(self, observed: Tensor, log_expected: Tensor) -> Tensor:
        if self.theta is None:
            return log_expected.exp() - observed * log_expected
        log_theta = float(np.log(self.theta))
        log_total = torch.logaddexp(log_expected, torch.full_like(log_expected, log_theta))
        return (observed + self.theta) * log_total - observed * log_expected - self.theta * log_theta

    def of(self, genes: Int | slice) -> CountLikelihood:
        return replace(
            self, counts=self.counts.of(genes), log_share=self.log_share[:, genes], weight=self.weight[genes]
        )  # fmt: skip
