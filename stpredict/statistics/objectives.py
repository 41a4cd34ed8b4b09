"""What a network is trained on, and how its raw output becomes expression, ln(1 + CPM) of the expected share.

A network's head predicts z, one number per gene about 0, mostly of about unit spread. An objective says what z means:
`eta = offset + slope * z` per gene, and expression is softplus(eta), that is ln(1 + CPM) with eta = ln(CPM), or eta
itself. Both are monotone per gene, so no rank is lost, and both fold into the head's weights. Instead of a million it
may be another number that shares are multiplied by, and instead of a spot's total the panel's sum that they are of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn
from torch.nn import functional as F

from stpredict.arrays import Bool, Float, Labels
from stpredict.errors import UsageError
from stpredict.networks.head import Link
from stpredict.statistics.metrics import PER_MILLION, THETA, log_cpm, pearson_residuals

ObjectiveName = Literal["residuals", "nb", "poisson", "mse", "standardised-mse"]
OBJECTIVES: tuple[str, ...] = get_args(ObjectiveName)
SQUARED_ERRORS = ("residuals", "mse", "standardised-mse")


@dataclass(frozen=True)
class Objective:
    """Targets of all spots (spots x genes, in units of z), the loss, and the way from z to expression."""

    name: str
    targets: Float
    offset: Float
    slope: Float
    link: Link
    loss: Callable[[Tensor, Tensor], Tensor]  # (z of a batch, indices of its spots) to a mean loss
    depth: Float  # what the spots' shares are of
    residual_scale: Float | None = None  # targets are Pearson residuals times this; None where they are something else

    def expression(self, z: Float) -> Float:
        """Expression, from z."""
        eta = self.offset + self.slope * z
        return np.logaddexp(0, eta) if self.link == "softplus" else eta

    def fold_into(self, head: nn.Linear) -> None:
        """Make a head that predicts z predict eta."""
        slope, offset = (
            torch.as_tensor(x, dtype=head.weight.dtype, device=head.weight.device) for x in (self.slope, self.offset)
        )
        with torch.no_grad():
            head.weight.mul_(slope[:, None])
            head.bias.mul_(slope).add_(offset)


def make_objective(
    name: str, counts: Float, depth: Float, section: Labels, fit: Bool, smooth: csr_array | None = None,
    per: float = PER_MILLION,
) -> Objective:  # fmt: skip
    """The objective for spots x genes `counts`; everything fitted is fitted on rows `fit`.

    Expression is ln(1 + `per` x share), the share of `depth`, a spot's total count or the panel's.

    `residuals`: squared error on Pearson residuals within each section. `poisson`, `nb`: likelihood of the counts with
    the log depth as offset. `mse`: squared error on ln(1 + CPM), as in the papers, so that genes count as they vary;
    depth is then learnt too. `standardised-mse`: the same of each gene over its spread, so that genes count alike.
    The squared errors' targets are averaged with the weights `smooth` (spots x spots), if there are any; the
    likelihoods are of the counts as they are. Raises UsageError for another name, and likelihoods of smooth targets.
    """
    check_objective(name, smooth is not None)
    if name in ("mse", "standardised-mse"):
        observed = log_cpm(counts, depth, per)
        if smooth is not None:
            observed = smooth @ observed
        mean = observed[fit].mean(axis=0)
        spread = _spread(observed[fit]) if name == "standardised-mse" else np.ones_like(mean)
        targets = (observed - mean) / spread
        return Objective(name, targets, mean, spread, "identity", _squared_error(targets), depth)

    share = (counts[fit].sum(axis=0) + 0.5) / depth[fit].sum()
    offset = np.log(per * share)
    expected = np.median(depth[fit]) * share
    # A residual of one at the median depth, as a relative change of the share: ln(1 + x) ~ x keeps it monotone.
    relative = np.sqrt(expected + expected**2 / THETA) / expected
    residuals = np.zeros_like(counts)
    for label in np.unique(section):
        residuals[section == label] = pearson_residuals(counts[section == label], depth[section == label])
    if smooth is not None:
        residuals = smooth @ residuals
    if name == "residuals":
        spread = _spread(residuals[fit])
        targets = residuals / spread
        slope = relative * spread
        return Objective(name, targets, offset, slope, "softplus", _squared_error(targets), depth, 1 / spread)
    theta = THETA if name == "nb" else None
    likelihood = _count_likelihood(counts, depth, share, theta)
    return Objective(name, residuals * relative, offset, np.ones(len(share)), "softplus", likelihood, depth, relative)


def check_objective(name: str, smooth: bool) -> None:
    """Raises UsageError for a name that is no objective's, and for likelihoods of `smooth` targets."""
    if name not in OBJECTIVES:
        raise UsageError(f"--objective {name}: choose one of {', '.join(OBJECTIVES)}.")
    if smooth and name not in SQUARED_ERRORS:
        raise UsageError(f"--smooth-labels: not with --objective {name}, which is a likelihood of the counts.")


def _spread(values: Float) -> Float:
    spread: Float = values.std(axis=0)
    return np.where(spread > 0, spread, 1.0)


def _squared_error(targets: Float) -> Callable[[Tensor, Tensor], Tensor]:
    wanted = torch.as_tensor(targets, dtype=torch.float32)
    return lambda z, index: F.mse_loss(z, wanted[index].to(z.device))


def _count_likelihood(
    counts: Float, depth: Float, share: Float, theta: float | None
) -> Callable[[Tensor, Tensor], Tensor]:
    """Negative log likelihood of counts with mean depth x share x exp(z), per gene over the root of its mean count."""
    x = torch.as_tensor(counts, dtype=torch.float32)
    log_mean = torch.as_tensor(np.log(np.maximum(depth, 1))[:, None] + np.log(share), dtype=torch.float32)
    weight = torch.as_tensor(1 / np.sqrt(share * depth.mean()), dtype=torch.float32)

    def loss(z: Tensor, index: Tensor) -> Tensor:
        observed, log_expected = x[index].to(z.device), log_mean[index].to(z.device) + z
        if theta is None:
            negative_log_likelihood = log_expected.exp() - observed * log_expected
        else:
            log_theta = float(np.log(theta))
            log_total = torch.logaddexp(log_expected, torch.full_like(log_expected, log_theta))
            negative_log_likelihood = (observed + theta) * log_total - observed * log_expected - theta * log_theta
        return (negative_log_likelihood * weight.to(z.device)).mean()

    return loss
