"""Model cards: what a model file says of itself, made after training and read by people and by `predict`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import stpredict
from stpredict.arrays import Float
from stpredict.metrics import mean_of_known
from stpredict.weights import REFERENCE_FEATURES, Model, load_model, save_model

if TYPE_CHECKING:
    from stpredict.data.tiles import Tiles
    from stpredict.networks.m2ort import M2ORT
    from stpredict.objectives import Objective

N_REFERENCE = 512
DISPLAY_PERCENTILES = (1, 99)
MIN_DISPLAY_RANGE = 0.2
#: Genes whose held-out correlation is below this were not predicted when the model was tested.
PREDICTED_FROM = 0.1
ROWS = (
    "training mean",
    "same-patient mean",
    "depth (true)",
    "depth (ridge)",
    "ridge on colour and texture",
    "model",
)
SCORES = {
    "depth_controlled": "depth-controlled",
    "log_cpm_per_gene": "ln(1+CPM) per gene",
    "log_cpm_per_spot": "per spot",
    "log_cpm_rmse": "RMSE",
}


def make_card(
    name: str, tiles: Tiles, panel: list[str], network: M2ORT, objective: Objective,
    expression: Float, training: dict[str, Any], held_out: Sequence[dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """The card of a network whose `expression` of its training spots is given."""
    import torch

    from stpredict.networks import network_parameters

    low, high = np.percentile(expression, DISPLAY_PERCENTILES, axis=0)
    return {
        "name": name,
        "architecture": training["architecture"],
        "parameters": network_parameters(network.config) | {"link": objective.link},
        "panel": panel,
        "patch_px": tiles.patch_px,
        "mpp": tiles.mpp,
        "spot_diameter_um": tiles.spot_diameter_um,
        "pitch_um": tiles.pitch_um,
        "pixel_scaling": "RGB uint8 / 255",
        "objective": objective.name,
        "expression_unit": "ln(1 + CPM) of the expected share",
        "genes": {
            # In the unit of what is predicted: of the mean share, and over the training spots as predicted.
            "training_mean": _rounded(objective.expression(np.zeros((1, len(panel))))[0]),
            "training_spread": _rounded(expression.std(axis=0)),
            "display_range": [_rounded(low), _rounded(np.maximum(high, low + MIN_DISPLAY_RANGE))],
        },
        "training": {
            **training,
            "date": datetime.now(UTC).date().isoformat(),
            "stpredict": stpredict.__version__,
            "torch": torch.__version__,
        },
        "held_out": [_for_panel(scores, panel) for scores in held_out],
        "intended_use": "Research use only. Not a medical device; no clinical decision may rest on it.",
    }


def write_model(path: Path, card: dict[str, Any], network: M2ORT, objective: Objective, features: Float) -> None:
    """Write the network in fp16 with `features` of some training patches; its head is made to predict expression."""
    from stpredict.networks import build_network

    saved = build_network(card["parameters"])
    saved.load_state_dict(network.state_dict())
    objective.fold_into(saved.head)
    tensors = {name: tensor.detach().cpu().numpy().astype(np.float16) for name, tensor in saved.state_dict().items()}
    chosen = np.random.default_rng(0).permutation(len(features))[:N_REFERENCE]
    save_model(path, {**tensors, REFERENCE_FEATURES: features[chosen].astype(np.float32)}, card)
    load_model(path)


def held_out_correlation(card: dict[str, Any]) -> Float:
    """Per gene of the panel, the mean depth-controlled correlation on patients the model had not seen.

    On unseen sections of known patients where no patient was held out; NaN where nothing was.
    """
    folds = card.get("held_out", [])
    chosen = [fold for fold in folds if fold["kind"] == "patient"] or folds
    values = np.array([fold["per_gene"]["correlation"] for fold in chosen], dtype=float).reshape(-1, len(card["panel"]))
    return mean_of_known(values)


def card_without_genes(card: dict[str, Any]) -> dict[str, Any]:
    """What a result repeats of its model's card: all but the panel, what is said per gene, and the network's sizes."""
    kept = {key: value for key, value in card.items() if key not in ("panel", "genes", "parameters")}
    folds = [{key: value for key, value in fold.items() if key != "per_gene"} for fold in card.get("held_out", [])]
    return {**kept, "held_out": folds}


def better_baselines(fold: dict[str, Any]) -> list[str]:
    """The baselines whose depth-controlled correlation the model did not beat on a held-out part."""
    ours = fold["rows"]["model"]["depth_controlled"]
    theirs = {row: scores["depth_controlled"] for row, scores in fold["rows"].items() if row != "model"}
    return [row for row in ROWS if theirs.get(row) is not None and (ours is None or theirs[row] >= ours)]


def show_card(model: Model, n_genes: int = 10) -> Iterator[str]:
    """Lines that tell a person what a model is, how it was tested, and what it predicts best and worst."""
    card, training = model.card, model.card["training"]
    yield f"{model.name}: {card['architecture']}, {len(model.panel)} genes, sha256 {model.sha256[:16]}"
    yield f"input: {card['patch_px']} px patches at {card['mpp']:g} um/px; spots of {card['spot_diameter_um']:g} um"
    yield f"output: {card['expression_unit']}; objective {card['objective']}"
    if "sections" in training:
        yield (
            f"trained on: {training['spots']} spots of {len(training['sections'])} sections "
            f"({', '.join(training['sections'])}) of {len(training['patients'])} patients; "
            f"licence of the data: {training['licence']}"
        )
    yield card["intended_use"]
    for fold in card["held_out"]:
        leak = "" if fold["kind"] == "patient" else ", of a patient that was also trained on"
        yield ""
        yield (
            f"held out: {fold['kind']} {fold['name']}{leak}; {fold['spots']} spots, {fold['genes']} genes, "
            f"trained on {', '.join(fold['train'])}"
        )
        yield f"  {'':30}" + "".join(f"{title:>20}" for title in SCORES.values())
        for row in (name for name in ROWS if name in fold["rows"]):
            scores = fold["rows"][row]
            yield f"  {row:30}" + "".join(f"{_shown(scores[key]):>20}" for key in SCORES)
        yield (
            f"  noise ceiling {_shown(fold['noise_ceiling'])}; on counts without biology the model scores "
            f"{_shown(fold['counts_without_biology'])}"
        )
        beaten_by = better_baselines(fold)
        if beaten_by:
            yield f"  here the model has learnt nothing that {' and '.join(beaten_by)} had not"
    correlation = held_out_correlation(card)
    known = [i for i in np.argsort(-correlation) if np.isfinite(correlation[i])]
    if known:
        yield ""
        yield "best predicted when held out: " + _named(model.panel, correlation, known[:n_genes])
        yield "worst: " + _named(model.panel, correlation, known[::-1][:n_genes])
        yield f"{int((correlation[known] >= PREDICTED_FROM).sum())} of {len(known)} genes reach {PREDICTED_FROM:g}"
    else:
        yield "never tested on held-out tissue"


def _named(panel: Sequence[str], correlation: Float, index: Sequence[int]) -> str:
    return ", ".join(f"{panel[i]} {correlation[i]:.2f}" for i in index)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _for_panel(scores: dict[str, Any], panel: Sequence[str]) -> dict[str, Any]:
    """A fold's scores with its per-gene ones in the order of the final panel; None for genes it did not predict."""
    column = {gene: i for i, gene in enumerate(scores["panel"])}
    per_gene = {
        key: [values[column[gene]] if gene in column else None for gene in panel]
        for key, values in scores["per_gene"].items()
    }
    kept = {key: value for key, value in scores.items() if key != "panel"}
    return {**kept, "per_gene": per_gene}


def _rounded(values: Float) -> list[float]:
    return [round(float(value), 4) for value in values]
