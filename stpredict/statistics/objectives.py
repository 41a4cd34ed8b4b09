"""Training objectives: targets, loss, and how raw output becomes expression, ln(1 + CPM) of the expected share.

A network's head predicts z, one number per gene about 0, mostly of about unit spread. An objective says what z means:
`eta = offset + slope * z` per gene, and expression is softplus(eta), that is ln(1 + CPM) with eta = ln(CPM), or eta
itself. Both are monotone per gene, so no rank is lost, and both fold into the head's weights. Another number may
replace the million that multiplies shares, and the panel's sum may replace the spot's total that divides counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import nn
from torch.nn import functional as F

from stpredict.arrays import Bool, Float, Int, Labels
from stpredict.errors import UsageError
from stpredict.networks.head import Link
from stpredict.statistics.losses import CountLikelihood, Loss, TargetError, Targets
from stpredict.statistics.masks import known_among, measured_alike, of_rows, per_gene
from stpredict.statistics.metrics import PER_MILLION, THETA, log_cpm, pearson_residuals

ObjectiveName = Literal["residuals", "nb", "poisson", "mse", "standardised-mse", "smooth-l1"]
OBJECTIVES: tuple[str, ...] = get_args(ObjectiveName)
#: Objectives that measure the distance to targets. Such targets may be averaged over spots.
SQUARED_ERRORS = ("residuals", "mse", "standardised-mse", "smooth-l1")


@dataclass(frozen=True)
class Chosen:
    """The targets of the spots of an `index`, taken when they are asked for."""

    targets: Targets
    index: Int

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.index), self.targets.shape[1]

    def __getitem__(self, rows: Any, /) -> Any:
        return self.targets[self.index[rows]]


@dataclass(frozen=True)
class Objective:
    """Targets of all spots (spots x genes, in units of z), the loss, and the way from z to expression.

    A target is NaN if the spot's section did not measure the gene; the loss does not read it. If no spot in the fit
    measured a gene, its offset and targets are NaN.
    """

    name: str
    targets: Targets
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
    name: str, counts: Float, depth: Float, section: Labels, fit: Bool, smooth: csr_array | None = None,
    per: float = PER_MILLION,
) -> Objective:  # fmt: skip
    """The objective for `counts`, spots x genes. Only the rows `fit` are used to fit anything.

    A count is NaN if the spot's section did not measure the gene. Each gene is fitted on the spots that measured it.
    Expression is ln(1 + `per` x share). The share is a count over `depth`, the spot's total count or the panel's.

    `residuals`: squared error on Pearson residuals within each section. `poisson`, `nb`: likelihood of the counts with
    the log depth as offset, and the log share in sections that measured the same genes. `mse`: squared error on
    ln(1 + CPM), as in the papers, so that genes with more variance weigh more; depth is then learnt too.
    `standardised-mse`: the same with each gene over its spread, so that genes weigh alike. `smooth-l1`: smooth L1 with
    each gene over its range, as in DeepSpaCE.
    The weights `smooth` (spots x spots), if given, average the errors' targets. The likelihoods take counts as they
    are. Raises UsageError for another name, and for likelihoods with smooth targets.
    """
    check_objective(name, smooth is not None)
    if name in ("mse", "standardised-mse", "smooth-l1"):
        observed = log_cpm(counts, depth, per)
        if smooth is not None:
            observed = smooth @ observed
        mean = per_gene(observed, fit, lambda own: own.mean(axis=0))
        scales = {"mse": lambda x: np.ones_like(x[0]), "standardised-mse": _spread, "smooth-l1": _range}
        scale = per_gene(observed, fit, scales[name])
        targets = (observed - mean) / scale
        error = TargetError(targets, F.smooth_l1_loss if name == "smooth-l1" else F.mse_loss)
        return Objective(name, targets, mean, scale, "identity", error, depth)

    share, median_depth = _shares(counts, depth, fit), _median_depths(counts, depth, fit)
    residuals = np.zeros_like(counts)
    for label in np.unique(section):
        residuals[section == label] = pearson_residuals(counts[section == label], depth[section == label])
    if smooth is not None:
        residuals = smooth @ residuals
    if name == "residuals":
        spread = per_gene(residuals, fit, _spread)
        targets = np.divide(residuals, spread, out=residuals)
        return residual_objective(share, median_depth, spread, targets, depth, per)
    theta = THETA if name == "nb" else None
    log_shares = np.log(_shares_where_measured(counts, depth, section, fit, share))
    likelihood = CountLikelihood(
        torch.as_tensor(counts, dtype=torch.float32),
        torch.as_tensor(np.log(np.maximum(depth, 1))[:, None] + log_shares, dtype=torch.float32),
        torch.as_tensor(1 / np.sqrt(share * depth.mean()), dtype=torch.float32), theta,
    )  # fmt: skip
    relative = _relative(share, median_depth)
    return Objective(
        name, residuals * relative, np.log(per * share), np.ones(len(share)), "softplus", likelihood, depth, relative
    )


def residual_objective(
    share: Float, median_depth: Float, spread: Float, targets: Targets, depth: Float, per: float = PER_MILLION
) -> Objective:
    """The objective of `targets` that are Pearson residuals over each gene's `spread`.

    `share` is each gene's share in the fitted spots that measured it, `median_depth` the median of their depths, and
    `depth` that of all spots.
    """
    slope, error = _relative(share, median_depth) * spread, TargetError(targets, F.mse_loss)
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


def _spread(values: Float) -> Float:
    spread: Float = values.std(axis=0)
    return np.where(spread > 0, spread, 1.0)


def _range(values: Float) -> Float:
    extent: Float = np.ptp(values, axis=0)
    return np.where(extent > 0, extent, 1.0)


def _shares(counts: Float, depth: Float, rows: Bool) -> Float:
    """Per gene, its share in the depth of those `rows` that measured it; NaN if none did."""
    shares = np.full(counts.shape[1], np.nan)
    for genes, own in known_among(counts, rows):
        shares[genes] = (of_rows(counts, own, genes).sum(axis=0) + 0.5) / depth[own].sum()
    return shares


def _median_depths(counts: Float, depth: Float, rows: Bool) -> Float:
    """Per gene, the median depth of those `rows` that measured it; NaN if none did."""
    medians = np.full(counts.shape[1], np.nan)
    for genes, own in known_among(counts, rows):
        medians[genes] = np.median(depth[own])
    return medians


def _shares_where_measured(counts: Float, depth: Float, section: Labels, fit: Bool, share: Float) -> Float:
    """The expected share of each gene in a spot's counts, spots x genes; 1 x genes if all spots measured the same.

    Sections that measured the same genes have shares of their own, as each technology catches another part of a gene.
    If none of these sections is in the fit, they take the `share` over all.
    """
    groups = measured_alike(counts)
    if groups[0].whole:
        return share[None]
    rows_of: dict[bytes, list[Int]] = {}
    for label in np.unique(section):
        rows = np.flatnonzero(section == label)
        rows_of.setdefault(np.isnan(counts[rows[0]]).tobytes(), []).append(rows)
    shares = np.empty_like(counts)
    for parts in rows_of.values():
        rows = np.concatenate(parts)
        own = np.isin(np.arange(len(fit)), rows)
        found = _shares(counts, depth, own & fit)
        shares[rows] = np.where(np.isnan(found), share, found)
    return shares
