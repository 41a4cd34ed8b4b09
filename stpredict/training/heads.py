"""Fit the linear head of a network whose features are given: a dictionary's, or a frozen encoder's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from stpredict.arrays import Float, Int
from stpredict.data.tiles import Tiles
from stpredict.evaluation.baselines import fit_ridge
from stpredict.networks.dictionary import Dictionary
from stpredict.networks.encoder import Encoded
from stpredict.statistics.normalisation import Normalisation
from stpredict.statistics.objectives import Objective
from stpredict.training.programmes import N_PROGRAMMES, LinearMap, fit_programmes, gene_covariance

BATCH = 16


def describe_patches(network: Dictionary | Encoded, tiles: Tiles, rows: Int, device: torch.device) -> Float:
    """What the head reads of some spots, before it is standardised."""
    network.to(device)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(rows), BATCH):
            patches = torch.from_numpy(tiles.read_patches(rows[start : start + BATCH])).to(device)
            parts.append(network.features(patches).double().cpu().numpy())
    return np.concatenate(parts)


def fit_ridge_head(
    network: Dictionary | Encoded, features: Float, rows: Int, tiles: Tiles, panel: Sequence[str],
    objective: Objective, normalisation: Normalisation,
) -> list[str]:  # fmt: skip
    """Make the head predict z of the panel from the `features` of spots `rows`, which are trained on.

    By ridge regression, along gene programmes where the objective's targets are residuals, else gene by gene. Returns
    the sections that told how genes vary together.
    """
    used: list[str] = []
    scale = objective.residual_scale
    if scale is None:
        ridge = fit_ridge(features, objective.targets[rows])
        scaler, regression = ridge[0], ridge[-1]
        found = LinearMap(scaler.mean_, 1 / scaler.scale_, regression.coef_.T, regression.intercept_)
        scale = np.ones(len(panel))
    else:
        covariance, used = gene_covariance(tiles, panel, sorted(set(tiles.section[rows])), normalisation)
        n = N_PROGRAMMES if used else len(panel)  # where nothing tells how genes vary together, each by itself
        found = fit_programmes(features, objective.targets[rows] / scale, covariance, n)
    write_head(network, replace(found, weight=found.weight * scale, bias=found.bias * scale))
    return used


def write_head(network: Dictionary | Encoded, found: LinearMap) -> None:
    """Let the network's head, and what standardises features before it, be the `found` map to z."""
    with torch.no_grad():
        for parameter, values in (
            (network.feature_mean, found.mean), (network.feature_scale, found.scale),
            (network.head.weight, found.weight.T), (network.head.bias, found.bias),
        ):  # fmt: skip
            parameter.copy_(torch.as_tensor(values))
