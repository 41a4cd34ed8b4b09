"""Fit a linear head on fixed features: those of a dictionary, of a frozen encoder, or of a taught network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from stpredict.arrays import Float, Int
from stpredict.data.tiles import Tiles
from stpredict.evaluation.baselines import fit_ridge
from stpredict.networks.dictionary import Dictionary
from stpredict.networks.encoder import Encoded
from stpredict.networks.hipt import Hipt
from stpredict.networks.m2ort import M2ORT
from stpredict.networks.m2ost import M2OST
from stpredict.statistics.normalisation import Normalisation
from stpredict.statistics.objectives import Objective
from stpredict.statistics.regression import LinearMap
from stpredict.statistics.targets import Scaled
from stpredict.training.covariances import KeptCovariances, gene_covariance
from stpredict.training.head_sums import A_FEW, Describe, Observations, Sums, are_many, fit_sums, sum_up
from stpredict.training.programmes import N_PROGRAMMES, fit_programmes_where_measured

BATCH = 16
HasFeatures = Dictionary | Encoded | Hipt | M2ORT | M2OST


def describe_patches(network: HasFeatures, tiles: Tiles, rows: Int, device: torch.device) -> Float:
    """The features of some spots that the head reads, before they are standardised."""
    network.to(device).eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(rows), BATCH):
            patches = torch.from_numpy(tiles.read_patches(rows[start : start + BATCH])).to(device)
            parts.append(network.features(patches).double().cpu().numpy())
    return np.concatenate(parts)


def fit_map(
    features: Float, rows: Int, tiles: Tiles, panel: Sequence[str], objective: Objective, normalisation: Normalisation
) -> tuple[LinearMap, list[str]]:  # fmt: skip
    """As `fit_map_by`, from the `features` of the training spots `rows`, which rise."""
    return fit_map_by(
        lambda some: features[np.searchsorted(rows, some)], rows, tiles, panel, objective, normalisation
    )  # fmt: skip


def fit_map_by(
    describe: Describe, rows: Int, tiles: Tiles, panel: Sequence[str], objective: Objective,
    normalisation: Normalisation,
) -> tuple[LinearMap, list[str]]:  # fmt: skip
    """The map, by ridge regression, from features of the training spots `rows` to the panel's z.

    `describe` gives the features of some spots. The map goes along gene programmes if the objective's targets are
    residuals, else gene by gene. Each gene is fitted on the spots that measured it, and is 0 if none did. Returns also
    the sections that showed how genes vary together.
    """
    scale = objective.residual_scale
    if scale is None:
        return fit_each_gene(Observations(objective.targets, tiles, panel, rows, describe)), []
    observed = Observations(Scaled(objective.targets, 0.0, scale), tiles, panel, rows, describe)
    if are_many(len(rows)):
        return map_from_sums(sum_up(observed, middle_of(observed)), observed, scale, normalisation)
    covariance, used = gene_covariance(tiles, panel, sorted(set(tiles.section[rows])), normalisation)
    n = N_PROGRAMMES if used else len(panel)  # each gene by itself if nothing shows how they vary together
    found = fit_programmes_where_measured(describe(rows), observed.table[rows], covariance, n)
    return replace(found, weight=found.weight * scale, bias=found.bias * scale), used


def fit_each_gene(observed: Observations) -> LinearMap:
    """Ridge regression, gene by gene, of what was `observed`; 0 for genes that none of its spots measured."""
    if are_many(len(observed.rows)):
        n = len(observed.panel)
        return fit_sums(sum_up(observed, middle_of(observed)), np.eye(n), n, observed)
    found = fit_ridge(observed.describe(observed.rows), observed.table[observed.rows])
    return replace(found, bias=np.nan_to_num(found.bias))


def middle_of(observed: Observations) -> Float:
    """A middle of the features, by a few of them."""
    middle: Float = observed.describe(observed.rows[:A_FEW]).mean(axis=0)
    return middle


def map_from_sums(
    kinds: Sequence[Sums], observed: Observations, scale: Float, normalisation: Normalisation,
    kept: KeptCovariances | None = None,
) -> tuple[LinearMap, list[str]]:  # fmt: skip
    """As `fit_map`, from sums over residuals that were `observed`, for each set of genes that sections measured.

    z are residuals times the `scale` of each gene.
    """
    panel = observed.panel
    covariance, used = gene_covariance(observed.tiles, panel, list(observed.by_section), normalisation, kept)
    found = fit_sums(kinds, covariance, N_PROGRAMMES if used else len(panel), observed)
    return replace(found, weight=found.weight * scale, bias=found.bias * scale), used


def write_taught_head(network: M2ORT | M2OST, lessons: nn.Linear, found: LinearMap) -> None:
    """Set the network's head to the `found` map of the lessons that `lessons` predicts from the network's features."""
    weight = found.scale[:, None] * found.weight
    bias = found.bias - found.mean @ weight
    read, read_bias = (values.detach().double().cpu().numpy() for values in (lessons.weight, lessons.bias))
    with torch.no_grad():
        network.head.weight.copy_(torch.as_tensor((read.T @ weight).T))
        network.head.bias.copy_(torch.as_tensor(bias + read_bias @ weight))


def write_head(network: Dictionary | Encoded | Hipt, found: LinearMap) -> None:
    """Set the network's head, and the standardisation of features before it, to the `found` map to z."""
    with torch.no_grad():
        for parameter, values in (
            (network.feature_mean, found.mean), (network.feature_scale, found.scale),
            (network.head.weight, found.weight.T), (network.head.bias, found.bias),
        ):  # fmt: skip
            parameter.copy_(torch.as_tensor(values))
