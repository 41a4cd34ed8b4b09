"""Model cards: a model file's description of itself. Training makes it; `predict` and `model.show` read it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import stpredict
from stpredict.arrays import Float, Float32, Int
from stpredict.errors import ModelFileError
from stpredict.model.file import (
    NOTES,
    REFERENCE_BIAS,
    REFERENCE_FEATURES,
    REFERENCE_PART,
    REFERENCE_WEIGHT,
    load_model,
    save_model,
)
from stpredict.model.measured import measured_where
from stpredict.model.reliability import describe_reliability
from stpredict.model.self_test import fixed_images, self_test_outputs, self_test_tensors
from stpredict.statistics.metrics import LOG_CPM_BY_SECTION, SPOTS_BY_SECTION
from stpredict.statistics.normalisation import EXPECTED, NORMALISATIONS, find_normalisation

if TYPE_CHECKING:
    from stpredict.data.tiles import Tiles
    from stpredict.model.reference import Reference
    from stpredict.networks import Network
    from stpredict.networks.encoder import OnEncoder
    from stpredict.statistics.objectives import Objective

N_REFERENCE = 512
PIXEL_SCALING = {
    "m2ort": "RGB uint8 / 255",
    "m2ost": "RGB uint8 / 255",
    "triplex": "RGB uint8 / 255, less ImageNet's mean, over its deviation",
    "histogene": "RGB uint8",
    "hist2st": "RGB uint8",
    "hipt": "RGB uint8 / 127.5 - 1",
    "istar": "RGB uint8 / 127.5 - 1",
    "patch": "RGB uint8 / 255, less ImageNet's mean, over its deviation",
    "bleep": "RGB uint8 / 255, less ImageNet's mean, over its deviation",
    "egn": "RGB uint8 / 255, less a mean, over a deviation: EGN's own for tokens, ImageNet's for the frozen trunk",
    "dictionary": "optical density, -ln((RGB uint8 + 1) / 256)",
    "encoder": "RGB uint8 / 255, less the encoder's mean, over its deviation",
}
#: The loss that each objective minimises; expression is in the card's unit.
LOSSES = {
    "residuals": "squared error on Pearson residuals, each gene over its spread",
    "nb": "negative binomial likelihood of the counts",
    "poisson": "Poisson likelihood of the counts",
    "mse": "squared error on expression",
    "standardised-mse": "squared error on expression, each gene over its spread",
    "smooth-l1": "smooth L1 on expression, each gene over its range",
}
DISPLAY_PERCENTILES, MIN_DISPLAY_RANGE = (1, 99), 0.2
#: Genes whose values are sorted together, as a copy of all takes much memory.
GENES_AT_A_TIME = 64
ROWS = (
    "training mean",
    "same-patient mean",
    "depth (true)",
    "depth (ridge)",
    "ridge on colour and texture",
    "k nearest neighbours",
    "model",
)
SCORES = {
    "depth_controlled": "depth-controlled",
    "log_cpm_per_gene": "expression per gene",
    "log_cpm_per_spot": "per spot",
    "log_cpm_rmse": "RMSE",
}


def make_card(
    name: str, tiles: Tiles, panel: list[str], network: Network, objective: Objective,
    expression: Float, training: dict[str, Any], held_out: Sequence[dict[str, Any]],
    intervals: Sequence[dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """The card of a network whose `expression` of its training spots is given."""
    import torch

    from stpredict.networks import network_parameters, says_z

    parameters = network_parameters(network.config)
    in_density = parameters.get("pixels") == "density"
    parts = np.array_split(np.arange(len(panel)), -(-len(panel) // GENES_AT_A_TIME))
    low, high = np.hstack([np.percentile(expression[:, genes], DISPLAY_PERCENTILES, axis=0) for genes in parts])
    return {
        "name": name,
        "architecture": training["architecture"],
        "parameters": parameters | ({"link": objective.link} if says_z(network) else {}),
        "panel": panel,
        "patch_px": tiles.patch_px,
        "mpp": tiles.mpp,
        "spot_diameter_um": tiles.spot_diameter_um,
        "pitch_um": tiles.pitch_um,
        "pixel_scaling": PIXEL_SCALING["dictionary" if in_density else parameters["network"]],
        "objective": objective.name,
        "loss": LOSSES[objective.name],
        "expression_unit": NORMALISATIONS[training["normalisation"]].unit + EXPECTED,
        "genes": {
            # In the unit of the predictions: from the mean share, and over the training spots as predicted.
            "training_mean": _rounded(objective.expression(np.zeros((1, len(panel))))[0]),
            "training_spread": _rounded(np.concatenate([expression[:, genes].std(axis=0) for genes in parts])),
            "display_range": [_rounded(low), _rounded(np.maximum(high, low + MIN_DISPLAY_RANGE))],
            **measured_where(tiles, panel, training["sections"]),
        },
        "training": {
            **training,
            "date": datetime.now(UTC).date().isoformat(),
            "stpredict": stpredict.__version__,
            "torch": torch.__version__,
        },
        "held_out": (folds := [_for_panel(scores, panel) for scores in held_out]),
        "reliability": describe_reliability(folds, panel),
        "intervals": list(intervals),
        "intended_use": "Research use only. Not a medical device; no clinical decision may rest on it.",
    }


def write_model(
    path: Path, card: dict[str, Any], network: Network, objective: Objective, features: Float, part: Int,
    reference: Reference | None,
) -> None:  # fmt: skip
    """Write the network in fp16, its head converted to predict expression, and the data that reveal unusual patches.

    These data are colour and texture `features` of some training patches (NaN for those that were not described), the
    part in which each patch is left out, and the `reference` of the features that the head reads.
    """
    from stpredict.networks import build_network, own_state
    from stpredict.networks.encoder import OnEncoder
    from stpredict.networks.head import Head

    saved = build_network(card["parameters"])
    saved.load_state_dict(own_state(network))
    if isinstance(saved.head, Head):  # a bank's expression is stored as it is
        objective.fold_into(saved.head)
    # Means and scales of features stay in fp32: if a feature hardly varies, its scale exceeds fp16. So do batch counts.
    exact = ("feature_", "running_", "num_batches_")
    tensors = {
        name: tensor.detach().cpu().numpy().astype(
            np.float32 if name.rpartition(".")[2].startswith(exact) else np.float16
        )
        for name, tensor in saved.state_dict().items()
    }  # fmt: skip
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise ModelFileError(f"{path.name}: its weights are not finite, and are not written.")
    known = np.flatnonzero(np.isfinite(features).all(axis=1))
    chosen = known[np.random.default_rng(0).permutation(len(known))[:N_REFERENCE]]
    references = {REFERENCE_FEATURES: features[chosen].astype(np.float32), REFERENCE_PART: part[chosen]}
    if isinstance(network, OnEncoder):
        references |= self_test_tensors(stored_self_test(saved, tensors, network, card))
    if reference:
        references[REFERENCE_WEIGHT] = reference.whitening.T.astype(np.float32)
        references[REFERENCE_BIAS] = -(reference.mean @ reference.whitening).astype(np.float32)
    save_model(path, tensors | references, card)
    load_model(path)


def stored_self_test(
    saved: Network, tensors: dict[str, Any], network: OnEncoder, card: dict[str, Any]
) -> Float32:  # fmt: skip
    """The output of `saved`, with its stored `tensors` and the encoder of `network`, for the fixed images."""
    import torch

    saved.load_state_dict({name: torch.from_numpy(tensor).float() for name, tensor in tensors.items()})
    saved.to(network.feature_mean.device).eval()
    saved.encoder = network.encoder
    return self_test_outputs(saved, fixed_images(card["patch_px"]), len(card["panel"]))


def card_without_genes(card: dict[str, Any]) -> dict[str, Any]:
    """The part of a model's card that its results repeat: all but the panel, values per gene, and the network's sizes.

    If expression is the share of the panel's counts, they repeat the panel, too.
    """
    normalisation = find_normalisation(card["expression_unit"])
    left_out = {"genes", "parameters", NOTES, *(() if normalisation and normalisation.of_panel else ("panel",))}
    kept = {key: value for key, value in card.items() if key not in left_out}
    folds = [{key: value for key, value in fold.items() if key != "per_gene"} for fold in card.get("held_out", [])]
    if isinstance(card.get("reliability"), dict):
        kept["reliability"] = {"how": card["reliability"].get("how")}
    kept["intervals"] = [{k: v for k, v in one.items() if k != "half_width"} for one in card.get("intervals", [])]
    return {**kept, "held_out": folds}


def objective_of(card: dict[str, Any]) -> str | None:
    """The objective that a model was trained on, by its present name. On cards without a loss, "mse" means another."""
    name = card.get("objective")
    renamed = name == "mse" and "loss" not in card and "sections" in (card.get("training") or {})
    return "standardised-mse" if renamed else name


def better_baselines(fold: dict[str, Any]) -> list[str]:
    """The baselines whose depth-controlled correlation, 0 for a mean, the model did not beat on a held-out part."""
    ours = fold["rows"]["model"]["depth_controlled"]
    theirs = {row: scores["depth_controlled"] for row, scores in fold["rows"].items() if row != "model"}
    return [row for row in ROWS if row in theirs and (ours is None or (theirs[row] or 0.0) >= ours)]


def _for_panel(scores: dict[str, Any], panel: Sequence[str]) -> dict[str, Any]:
    """A fold's scores; those per gene are in the order of the final panel, None for genes that it did not predict."""
    column = {gene: i for i, gene in enumerate(scores["panel"])}
    per_gene = {
        key: [values[column[gene]] if gene in column else None for gene in panel]
        for key, values in scores["per_gene"].items()
    }
    left_out = ("panel", LOG_CPM_BY_SECTION, SPOTS_BY_SECTION)
    kept = {key: value for key, value in scores.items() if key not in left_out}
    return {**kept, "per_gene": per_gene}


def _rounded(values: Float) -> list[float]:
    return [round(float(value), 4) for value in values]
