"""Training objectives: targets, loss, and how raw output becomes expression, ln(1 + CPM) of the expected share.

A network's head predicts z, one number per gene about 0, mostly of about unit spread. An objective says what z means:
`eta = offset + slope * z` per gene, and expression is softplus(eta), that is ln(1 + CPM) with eta = ln(CPM), or eta
itself. Both are monotone per gene, so no rank is lost, and both fold into the head's weights. Another number may
replace the million that multiplies shares, and the panel's sum may replace the spot's total that divides counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import nn
from torch.nn import functional as F

from stpredict.arrays import Bool, Float, Int, Labels
from stpredict.errors import UsageError
from stpredict.networks.head import Link
from stpredict.statistics.blocks import Table
from stpredict.statistics.losses import CountLikelihood, Loss, TargetError
from stpredict.statistics.masks import patterns_of
from stpredict.statistics.metrics import PER_MILLION, THETA
from stpredict.statistics.targets import (
    Averaged,
    Chosen,
    Keep,
    Kept,
    LogShares,
    PearsonResiduals,
    Scaled,
    counts_of_sections,
    in_memory,
    summary_of,
)

ObjectiveName = Literal["residuals", "nb", "poisson", "mse", "standardised-mse", "smooth-l1"]
OBJECTIVES: tuple[str, ...] = get_args(ObjectiveName)
#: Objectives that measure the distance to targets. Such targets may be averaged over spots.
SQUARED_ERRORS = ("residuals", "mse", "standardised-mse", "smooth-l1")


@dataclass(frozen=True)
class Objective:
    """Targets of all spots (spots x genes, in units of z), the loss, and the way from z to expression.

    A target is NaN if the spot's section did not measure the gene; the loss does not read it. If no spot in the fit
    measured a gene, its offset and targets are NaN.
    """

    name: str
    targets: Table
    offset: Float
    slope: Float
    link: Link
    loss: Loss
    depth: Float  # per spot; shares are counts over it
    residual_scale: Float | None = None  # targets are Pearson residuals times this; None if they are something else

    def at(self, index: Int) -> Objective:
        """The objective of some spots; it has no loss for them, whose index counts all spots."""
        return replace(self, targets=Chosen(self.targets, index), depth=self.depth[index])

    def expression(self, z: Float) -> Float:
        """Expression, from z."""
        eta: Float = self.slope * z
        eta += self.offset
        with np.errstate(invalid="ignore"):  # NaN for genes that no training spot measured
            return np.logaddexp(0, eta, out=eta) if self.link == "softplus" else eta

    def fold_into(self, head: nn.Linear) -> None:
        """Make a head that predicts z predict eta."""
        slope, offset = (
            torch.as_tensor(x, dtype=head.weight.dtype, device=head.weight.device) for x in (self.slope, self.offset)
        )
        with torch.no_grad():
            head.weight.mul_(slope[:, None])
            head.bias.mul_(slope).add_(offset)


def make_objective(
    name: str, counts: Table, depth: Float, section: Labels, fit: Bool, smooth: csr_array | None = None,
    per: float = PER_MILLION, keep: Keep = in_memory,
) -> Objective:  # fmt: skip
    """The objective for `counts`, spots x genes. Only the rows `fit` are used to fit anything.

    A count is NaN if the spot's section did not measure the gene. Each gene is fitted on the spots that measured it.
    Expression is ln(1 + `per` x share). The share is a count over `depth`, the spot's total count or the panel's.
    Of counts in an array, targets are an array. Else they are computed when they are asked for, and the loss's are put
    where `keep` says.

    `residuals`: squared error on Pearson residuals within each section. `poisson`, `nb`: likelihood of the counts with
    the log depth as offset, and the log share in sections that measured the same genes. `mse`: squared error on
    ln(1 + CPM), as in the papers, so that genes with more variance weigh more; depth is then learnt too.
    `standardised-mse`: the same with each gene over its spread, so that genes weigh alike. `smooth-l1`: smooth L1 with
    each gene over its range, as in DeepSpaCE.
    The weights `smooth` (spots x spots), if given, average the errors' targets. The likelihoods take counts as they
    are. Raises UsageError for another name, and for likelihoods with smooth targets.
    """
    check_objective(name, smooth is not None)

    in_array = isinstance(counts, np.ndarray)
    keep = in_memory if in_array else keep

    def at_hand(targets: Table) -> Table:
        return targets[:] if in_array else targets

    def averaged(table: Table) -> Table:
        return table if smooth is None else Averaged(table, smooth)

    if name in ("mse", "standardised-mse", "smooth-l1"):
        observed = averaged(LogShares(counts, depth, per))
        found = summary_of(observed, fit)
        spreads = {"mse": np.where(np.isnan(found.mean), np.nan, 1.0), "standardised-mse": found.spread}
        scale = _not_zero(spreads.get(name, found.extent))
        targets = at_hand(Scaled(observed, found.mean, scale))
        error = TargetError(Kept(targets, keep), F.smooth_l1_loss if name == "smooth-l1" else F.mse_loss)
        return Objective(name, targets, found.mean, scale, "identity", error, depth)

    _, of_spot = np.unique(section, return_inverse=True)
    sums, fitted = counts_of_sections(counts, of_spot, fit)
    share, median_depth = shares_and_depths(fitted, depth, of_spot, fit)
    residuals = averaged(PearsonResiduals(counts, depth, of_spot, sums))
    if name == "residuals":
        spread = _not_zero(summary_of(residuals, fit).spread)
        targets = at_hand(Scaled(residuals, 0.0, spread))
        return residual_objective(share, median_depth, spread, targets, depth, per, keep)
    kind, shares = _shares_by_kind(fitted, depth, of_spot, fit, share)
    likelihood = CountLikelihood(
        Kept(counts, keep), np.log(np.maximum(depth, 1)), kind, np.log(shares), 1 / np.sqrt(share * depth.mean()),
        THETA if name == "nb" else None,
    )  # fmt: skip
    relative = _relative(share, median_depth)
    targets = at_hand(Scaled(residuals, 0.0, 1 / relative))
    return Objective(
        name, targets, np.log(per * share), np.ones(len(share)), "softplus", likelihood, depth, relative
    )  # fmt: skip


def residual_objective(
    share: Float, median_depth: Float, spread: Float, targets: Table, depth: Float, per: float = PER_MILLION,
    keep: Keep = in_memory,
) -> Objective:  # fmt: skip
    """The objective of `targets` that are Pearson residuals over each gene's `spread`.

    `share` is each gene's share in the fitted spots that measured it, `median_depth` the median of their depths, and
    `depth` that of all spots.
    """
    slope, error = _relative(share, median_depth) * spread, TargetError(Kept(targets, keep), F.mse_loss)
    return Objective("residuals", targets, np.log(per * share), slope, "softplus", error, depth, 1 / spread)


def _relative(share: Float, depth: Float) -> Float:
    """The relative change of the share by a residual of one at a depth; ln(1 + x) ~ x keeps it monotone."""
    expected = depth * share
    relative: Float = np.sqrt(expected + expected**2 / THETA) / expected
    return relative


def check_objective(name: str, smooth: bool) -> None:
    """Raises UsageError for a name that no objective has, and for likelihoods with `smooth` targets."""
    if name not in OBJECTIVES:
        raise UsageError(f"--objective {name}: choose one of {', '.join(OBJECTIVES)}.")
    if smooth and name not in SQUARED_ERRORS:
        raise UsageError(f"--smooth-labels: not with --objective {name}, which is a likelihood of the counts.")


def _not_zero(scale: Float) -> Float:
    """A scale to divide by: 1 for a gene that does not vary."""
    return np.where(scale == 0, 1.0, scale)


def shares_and_depths(sums: Float, depth: Float, of_spot: Int, fit: Bool) -> tuple[Float, Float]:
    """Per gene: its share in the depth of those spots `fit` that measured it, and the median of their depths.

    `sums` are each section's counts in these spots, sections x genes, NaN if it did not measure the gene; `of_spot` is
    the number of each spot's section. Both are NaN for a gene that none of these spots measured.
    """
    share, median = np.full((2, sums.shape[1]), np.nan)
    for genes, there in patterns_of(~np.isnan(sums)):
        rows = fit & there[of_spot]
        if rows.any():
            share[genes] = (sums[there][:, genes].sum(axis=0) + 0.5) / depth[rows].sum()
            median[genes] = np.median(depth[rows])
    return share, median


def _shares_by_kind(sums: Float, depth: Float, of_spot: Int, fit: Bool, share: Float) -> tuple[Int, Float]:
    """The kind of each spot, and each gene's expected share in counts of spots of a kind, kinds x genes.

    Sections that measured the same genes have shares of their own, as each technology catches another part of a gene.
    If none of these sections is in the fit, they take the `share` over all.
    """
    measured, kind = np.unique(~np.isnan(sums), axis=0, return_inverse=True)
    kind = kind.reshape(-1)
    shares = np.empty(measured.shape)
    for number, own in enumerate(shares):
        of_kind = np.where((kind == number)[:, None], sums, np.nan)
        found, _ = shares_and_depths(of_kind, depth, of_spot, fit)
        own[:] = np.where(np.isnan(found), share, found)
    return kind[of_spot], shares
