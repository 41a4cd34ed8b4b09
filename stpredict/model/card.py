"""Model cards: what a model file says of itself, made after training and read by people and by `predict`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import stpredict
from stpredict.arrays import Float, Int
from stpredict.errors import ModelFileError
from stpredict.model.file import (
    REFERENCE_BIAS,
    REFERENCE_FEATURES,
    REFERENCE_PART,
    REFERENCE_WEIGHT,
    Model,
    load_model,
    save_model,
)
from stpredict.model.reliability import PREDICTED_FROM, describe_reliability, held_out_correlation, read_reliability
from stpredict.slides.views import views_in_words
from stpredict.statistics.conformal import describe_intervals
from stpredict.statistics.metrics import (
    FALSE_DISCOVERIES,
    LOG_CPM_BY_SECTION,
    SPOTS_BY_SECTION,
)
from stpredict.statistics.normalisation import EXPECTED, NORMALISATIONS, find_normalisation

if TYPE_CHECKING:
    from stpredict.data.tiles import Tiles
    from stpredict.model.reference import Reference
    from stpredict.networks import Network
    from stpredict.statistics.objectives import Objective

N_REFERENCE = 512
PIXEL_SCALING = {
    "m2ort": "RGB uint8 / 255",
    "m2ost": "RGB uint8 / 255",
    "triplex": "RGB uint8 / 255, less ImageNet's mean, over its deviation",
    "patch": "RGB uint8 / 255, less ImageNet's mean, over its deviation",
    "dictionary": "optical density, -ln((RGB uint8 + 1) / 256)",
    "encoder": "RGB uint8 / 255, less the encoder's mean, over its deviation",
}
#: What each objective minimises; expression is in the card's unit.
LOSSES = {
    "residuals": "squared error on Pearson residuals, each gene over its spread",
    "nb": "negative binomial likelihood of the counts",
    "poisson": "Poisson likelihood of the counts",
    "mse": "squared error on expression",
    "standardised-mse": "squared error on expression, each gene over its spread",
}
DISPLAY_PERCENTILES = (1, 99)
MIN_DISPLAY_RANGE = 0.2
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
        "pixel_scaling": PIXEL_SCALING[network_parameters(network.config)["network"]],
        "objective": objective.name,
        "loss": LOSSES[objective.name],
        "expression_unit": NORMALISATIONS[training["normalisation"]].unit + EXPECTED,
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
        "held_out": (folds := [_for_panel(scores, panel) for scores in held_out]),
        "reliability": describe_reliability(folds, panel),
        "intervals": list(intervals),
        "intended_use": "Research use only. Not a medical device; no clinical decision may rest on it.",
    }


def write_model(
    path: Path, card: dict[str, Any], network: Network, objective: Objective, features: Float, part: Int,
    reference: Reference | None,
) -> None:  # fmt: skip
    """Write the network in fp16 with what tells unusual patches; its head is made to predict expression.

    That is colour and texture `features` of some training patches, with the part that each is left out in, and the
    `reference` of what the head reads of them.
    """
    from stpredict.networks import build_network, own_state

    saved = build_network(card["parameters"])
    saved.load_state_dict(own_state(network))
    objective.fold_into(saved.head)
    # What standardises features stays in fp32: those that hardly vary have scales beyond fp16. So do counts of batches.
    exact = ("feature_", "running_", "num_batches_")
    tensors = {
        name: tensor.detach().cpu().numpy().astype(
            np.float32 if name.rpartition(".")[2].startswith(exact) else np.float16
        )
        for name, tensor in saved.state_dict().items()
    }  # fmt: skip
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise ModelFileError(f"{path.name}: its weights are not finite, and are not written.")
    chosen = np.random.default_rng(0).permutation(len(features))[:N_REFERENCE]
    references = {REFERENCE_FEATURES: features[chosen].astype(np.float32), REFERENCE_PART: part[chosen]}
    if reference:
        references[REFERENCE_WEIGHT] = reference.whitening.T.astype(np.float32)
        references[REFERENCE_BIAS] = -(reference.mean @ reference.whitening).astype(np.float32)
    save_model(path, tensors | references, card)
    load_model(path)


def show_crossvalidation(folds: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Mean over held-out parts of the same kind of each row's depth-controlled correlation, if there are several."""
    for kind in ("patient", "section"):
        own = [fold["rows"] for fold in folds if fold["kind"] == kind]
        if len(own) < 2:
            continue
        leak = "" if kind == "patient" else ", of patients that were also trained on"
        yield f"mean over {len(own)} held-out parts by {kind}{leak}, depth-controlled correlation (lowest to highest):"
        for row in (name for name in ROWS if all(name in rows for rows in own)):
            values = np.array([rows[row]["depth_controlled"] for rows in own], dtype=float)
            if not np.isfinite(values).any():
                continue
            mean, low, high = np.nanmean(values), np.nanmin(values), np.nanmax(values)
            yield f"  {row:30}{mean:8.3f} ({low:.3f} to {high:.3f})"


def card_without_genes(card: dict[str, Any]) -> dict[str, Any]:
    """What a result repeats of its model's card: all but the panel, what is said per gene, and the network's sizes.

    The panel too where expression is the share of its counts.
    """
    normalisation = find_normalisation(card["expression_unit"])
    left_out = {"genes", "parameters", *(() if normalisation and normalisation.of_panel else ("panel",))}
    kept = {key: value for key, value in card.items() if key not in left_out}
    folds = [{key: value for key, value in fold.items() if key != "per_gene"} for fold in card.get("held_out", [])]
    if isinstance(card.get("reliability"), dict):
        kept["reliability"] = {"how": card["reliability"].get("how")}
    kept["intervals"] = [{k: v for k, v in one.items() if k != "half_width"} for one in card.get("intervals", [])]
    return {**kept, "held_out": folds}


def objective_of(card: dict[str, Any]) -> str | None:
    """What a model was trained on, by its name of now: cards that do not say their loss called another thing mse."""
    name = card.get("objective")
    renamed = name == "mse" and "loss" not in card and "sections" in (card.get("training") or {})
    return "standardised-mse" if renamed else name


def better_baselines(fold: dict[str, Any]) -> list[str]:
    """The baselines whose depth-controlled correlation, 0 for a mean, the model did not beat on a held-out part."""
    ours = fold["rows"]["model"]["depth_controlled"]
    theirs = {row: scores["depth_controlled"] for row, scores in fold["rows"].items() if row != "model"}
    return [row for row in ROWS if row in theirs and (ours is None or (theirs[row] or 0.0) >= ours)]


def show_card(model: Model, n_genes: int = 10) -> Iterator[str]:
    """Lines that tell a person what a model is, how it was tested, and what it predicts best and worst."""
    card, training = model.card, model.card["training"]
    yield f"{model.name}: {card['architecture']}, {len(model.panel)} genes, sha256 {model.sha256[:16]}"
    yield (
        f"input: {card['patch_px']} px patches at {card['mpp']:g} um/px{views_in_words(model.views)}; "
        f"spots of {card['spot_diameter_um']:g} um"
    )
    yield f"output: {card['expression_unit']}; objective {objective_of(card)}{_in_brackets(card.get('loss'))}"
    if "sections" in training:
        yield (
            f"trained on: {training['spots']} spots of {len(training['sections'])} sections "
            f"({', '.join(training['sections'])}) of {len(training['patients'])} patients; "
            f"licence of the data: {training['licence']}"
        )
    if counted := training.get("counts_only_sections"):
        yield (
            f"how genes vary together: also from the counts of {len(counted)} sections without images, of "
            f"{len(training['counts_only_patients'])} patients"
        )
    yield card["intended_use"]
    for fold in card["held_out"]:
        leak = "" if fold["kind"] == "patient" else ", of a patient that was also trained on"
        leak += f"; LEAK: {fold['leak']}" if fold.get("leak") else ""
        yield ""
        yield (
            f"held out: {fold['kind']} {fold['name']}{leak}; {fold['spots']} spots{_how_deep(fold)}, "
            f"{fold['genes']} genes, trained on {', '.join(fold['train'])}"
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
    if lines := list(show_crossvalidation(card["held_out"])):
        yield from ("", *lines)
    yield from describe_intervals(card["intervals"], 0, card["expression_unit"]) if card.get("intervals") else ()
    correlation = held_out_correlation(card)
    known = [i for i in np.argsort(-correlation) if np.isfinite(correlation[i])]
    if known:
        yield ""
        yield "best predicted when held out: " + _named(model.panel, correlation, known[:n_genes])
        yield "worst: " + _named(model.panel, correlation, known[::-1][:n_genes])
        yield f"{int((correlation[known] >= PREDICTED_FROM).sum())} of {len(known)} genes reach {PREDICTED_FROM:g}"
        if untested := len(model.panel) - len(known):
            yield f"{untested} genes were not tested: in no held-out part's panel, or never counted there"
        reliability = read_reliability(card)
        if reliability:
            yield (
                f"{int(reliability.reliable.sum())} of {len(known)} genes are reliable: their interval lies above 0, "
                f"at a false discovery rate of {FALSE_DISCOVERIES:.0%}, and they beat ridge ({reliability.how})"
            )
    else:
        yield "never tested on held-out tissue"


def _how_deep(fold: dict[str, Any]) -> str:
    """Which of a held-out part's spots were scored; all of them by older versions."""
    if fold.get("min_depth", 0) <= 1:
        return " (all, however few counts they have)"
    return f" of {fold['min_depth']} counts or more ({fold['spots_left_out']} left out)"


def _named(panel: Sequence[str], correlation: Float, index: Sequence[int]) -> str:
    return ", ".join(f"{panel[i]} {correlation[i]:.2f}" for i in index)


def _in_brackets(text: object) -> str:
    return f" ({text})" if text else ""


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _for_panel(scores: dict[str, Any], panel: Sequence[str]) -> dict[str, Any]:
    """A fold's scores with its per-gene ones in the order of the final panel; None for genes it did not predict."""
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
