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
from stpredict.training.head_sums import A_FEW, Describe, Observations, Sums, fit_sums, sum_up
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
    """The map from `features` of the training spots `rows` to the panel's z, by ridge regression.

    It goes along gene programmes if the objective's targets are residuals, else gene by gene. Each gene is fitted on
    the spots that measured it, and is 0 if none did. Returns also the sections that showed how genes vary together.
    """
    if not isinstance(objective.targets, np.ndarray):
        return fit_map_by(
            lambda some: features[np.searchsorted(rows, some)], rows, tiles, panel, objective, normalisation
        )
    used: list[str] = []
    scale = objective.residual_scale
    if scale is None:
        found = fit_ridge(features, objective.targets[rows])
        found = replace(found, bias=np.nan_to_num(found.bias))
        scale = np.ones(len(panel))
    else:
        covariance, used = gene_covariance(tiles, panel, sorted(set(tiles.section[rows])), normalisation)
        n = N_PROGRAMMES if used else len(panel)  # each gene by itself if nothing shows how they vary together
        residuals = objective.targets[rows]
        residuals /= scale
        found = fit_programmes_where_measured(features, residuals, covariance, n)
    return replace(found, weight=found.weight * scale, bias=found.bias * scale), used


def fit_map_by(
    describe: Describe, rows: Int, tiles: Tiles, panel: Sequence[str], objective: Objective,
    normalisation: Normalisation,
) -> tuple[LinearMap, list[str]]:  # fmt: skip
    """As `fit_map`, of so many spots that their targets are read, and features made by `describe`, some at a time."""
    scale = objective.residual_scale
    if scale is None:
        observed = Observations(objective.targets, tiles, panel, rows, describe)
        return fit_ridge_by(observed), []
    observed = Observations(Scaled(objective.targets, 0.0, scale), tiles, panel, rows, describe)
    kinds = sum_up(observed, describe(rows[:A_FEW]).mean(axis=0))
    return map_from_sums(kinds, observed, scale, normalisation)


def fit_ridge_by(observed: Observations) -> LinearMap:
    """Ridge regression, gene by gene, of spots that are read some at a time; 0 for genes that none of them measured."""
    kinds, n = sum_up(observed, observed.describe(observed.rows[:A_FEW]).mean(axis=0)), len(observed.panel)
    return fit_sums(kinds, np.eye(n), n, observed)


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
