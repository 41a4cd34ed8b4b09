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
from stpredict.training.covariances import KeptCovariances, gene_covariance
from stpredict.training.head_sums import Describe, Sums, fit_sums, sum_sections
from stpredict.training.programmes import N_PROGRAMMES, fit_programmes_where_measured
from stpredict.training.residuals import Residuals

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


def fit_ridge_head(
    network: Dictionary | Encoded | Hipt, features: Float, rows: Int, tiles: Tiles, panel: Sequence[str],
    objective: Objective, normalisation: Normalisation,
) -> list[str]:  # fmt: skip
    """Make the head predict the panel's z from the `features` of spots `rows`, by `fit_map`.

    Returns the sections that showed how genes vary together.
    """
    found, used = fit_map(features, rows, tiles, panel, objective, normalisation)
    write_head(network, found)
    return used


def fit_map(
    features: Float, rows: Int, tiles: Tiles, panel: Sequence[str], objective: Objective, normalisation: Normalisation
) -> tuple[LinearMap, list[str]]:
    """The map from `features` of the training spots `rows` to the panel's z, by ridge regression.

    It goes along gene programmes if the objective's targets are residuals, else gene by gene. Each gene is fitted on
    the spots that measured it, and is 0 if none did. Returns also the sections that showed how genes vary together.
    """
    used: list[str] = []
    scale = objective.residual_scale
    sections = sorted(set(tiles.section[rows]))
    if isinstance(objective.targets, Residuals) and scale is not None:
        unscaled = replace(objective.targets, scale=1.0)
        describe: Describe = lambda some: features[np.searchsorted(rows, some)]  # noqa: E731
        kinds = sum_sections(unscaled, sections, describe, features[0])
        return map_from_sums(kinds, unscaled, scale, sections, describe, normalisation)
    if scale is None:
        found = fit_ridge(features, objective.targets[rows])
        found = replace(found, bias=np.nan_to_num(found.bias))
        scale = np.ones(len(panel))
    else:
        covariance, used = gene_covariance(tiles, panel, sections, normalisation)
        n = N_PROGRAMMES if used else len(panel)  # each gene by itself if nothing shows how they vary together
        residuals = objective.targets[rows]
        residuals /= scale
        found = fit_programmes_where_measured(features, residuals, covariance, n)
    return replace(found, weight=found.weight * scale, bias=found.bias * scale), used


def map_from_sums(
    kinds: Sequence[Sums], residuals: Residuals, scale: Float, sections: Sequence[str], describe: Describe,
    normalisation: Normalisation, kept: KeptCovariances | None = None,
) -> tuple[LinearMap, list[str]]:  # fmt: skip
    """As `fit_map`, from sums over the spots of `sections` for each set of genes that sections measured.

    `describe` gives the features of spots, `residuals` their residuals; z are residuals times the `scale` of each gene.
    """
    tiles, panel = residuals.tiles, residuals.genes
    covariance, used = gene_covariance(tiles, panel, sections, normalisation, kept)

    def few(gene: Int) -> tuple[Float, Float]:
        names = np.array(sections, dtype=object)[tiles.measured_by(sections, [panel[int(gene)]])[:, 0]]
        rows = np.flatnonzero(np.isin(tiles.section, names) & (tiles.depth > 0))
        return describe(rows), residuals[rows]

    found = fit_sums(kinds, covariance, N_PROGRAMMES if used else len(panel), few)
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
