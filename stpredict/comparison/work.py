"""The work of one job: train a system without the held-out part, predict that part, and score it as all others."""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stpredict.arrays import Float, Int, Real
from stpredict.comparison.cost import multiplications, parameters
from stpredict.comparison.preparation import FROZEN, Prepared, threads_of
from stpredict.comparison.request import BASELINES, folder_name, system_settings
from stpredict.console import Report
from stpredict.data.section import demand_slides
from stpredict.data.whole_depth import depth_of_shares
from stpredict.errors import UsageError
from stpredict.evaluation.described import is_described
from stpredict.evaluation.splits import (
    SAME_PATIENT_MEAN,
    TRAINING_MEAN,
    TRUE_DEPTH,
    Split,
    predict_baselines,
    score,
    where_predicted,
)
from stpredict.machine import limit_threads
from stpredict.networks import TileNetwork, reads_slides, reads_tiles
from stpredict.networks.hierarchy_files import read_hierarchy
from stpredict.networks.triplex import Triplex
from stpredict.networks.trunk_files import read_trunk
from stpredict.prediction.leases import alone
from stpredict.statistics import metrics
from stpredict.statistics.masks import measured_by_section
from stpredict.statistics.normalisation import NORMALISATIONS
from stpredict.statistics.objectives import make_objective
from stpredict.statistics.spatial import neighbour_mean
from stpredict.training.crossvalidation import sections_of
from stpredict.training.fit import empty_trunk
from stpredict.training.folds import Fold, split_of
from stpredict.training.head_sums import are_many
from stpredict.training.one_network import express_held_out, train_network
from stpredict.training.panel_counts import PanelCounts
from stpredict.training.panels import Panel
from stpredict.training.preparation import ENCODED
from stpredict.training.processes import pick_device
from stpredict.training.run import Run, Trained
from stpredict.training.triplex import SURROUNDINGS
from stpredict.training.whole_run import with_hierarchy

#: Scores that are not defined for a predictor with one value for all spots of a section.
OVER_SPOTS = ("depth_controlled", "log_cpm_per_gene", "pcc_m", "pcc_h")


def carry_out(
    prepared: Prepared, system: str, fold: Fold, seed: int, folder: Path, report: Report
) -> dict[str, Any]:  # fmt: skip
    """Train and score one system, or the baselines, from where a killed call stopped. Returns the job's outcome.

    Raises StpredictError if the system cannot be trained on such data.
    """
    run = make_run(prepared, system, seed, fold, report)
    sections, validation = sections_of(run.tiles, run.settings, fold)
    shared = {"fold": fold.name, "kind": fold.kind, "test": fold.test_sections, "train": sections, "seed": seed}
    if system == BASELINES:
        return {**shared, **score_baselines(run, fold, sections)}
    before, started = logged_seconds(folder), time.monotonic()
    trained = train_network(run, sections, validation, None, folder)
    seconds = before + time.monotonic() - started
    none = np.empty(0, np.int64)  # of training spots, as no baseline learns here
    split, tested = split_of(run.tiles, fold, sections, trained.panel, trained.objective.depth, run.settings, none)
    predicted, rate = predict(run, trained, tested)
    scores = {
        **shared, "validation": validation, "genes": trained.panel, "settings": asdict(run.settings),
        "spots": int(split.test.sum()), "epochs": trained.epochs, "penalty": trained.penalty,
        "row": score_one(predicted, split),
        "cost": {
            "parameters": parameters(trained.network),
            "multiplications": multiplications(trained.network, run.tiles.patch_px, run.tiles.views),
            "spots_per_second": rate,
            "training_seconds": seconds,
        },
    }  # fmt: skip
    for state in folder.glob("*.pt"):  # as large as three networks each
        state.unlink()
    shutil.rmtree(folder / SURROUNDINGS, ignore_errors=True)
    return scores


def make_run(prepared: Prepared, system: str, seed: int, fold: Fold, report: Report) -> Run:
    """Collect what training needs: patches, features, the part's genes, settings, and the weights to begin with."""
    request = prepared.request
    settings = request.settings if system == BASELINES else system_settings(request, system, seed)
    architecture = settings.architecture
    tiles = prepared.tiles(architecture)
    features, unlabelled = prepared.features(tiles, report)
    in_slides = system != BASELINES and reads_slides(system)
    if in_slides and request.dataset.suffix == ".h5":
        raise UsageError(
            f"{system}: looks at the slides around the spots, which {request.dataset.name} does not hold; name the "
            "folder that it was cut from."
        )
    if in_slides:
        demand_slides(prepared.sections, system)
    given, in_tiles = request.weights.get(system), system != BASELINES and reads_tiles(system)
    weights = read_trunk(given, empty_trunk(settings, tiles.patch_px), system) if given and not in_tiles else None
    limit_threads(threads_of(request))
    run = Run(
        tiles, features, unlabelled, Panel(prepared.genes(fold, tiles)), settings, "", pick_device(request.device),
        report, sections=prepared.sections if in_slides else (), weights=weights,
    )  # fmt: skip
    if given is None or not in_tiles:
        return run
    folder = request.out / FROZEN / folder_name(request, system)
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder / "lease", f"another call makes {system}'s features; waiting for it", report):
        return with_hierarchy(run, *read_hierarchy(given, request.region_weights[system]), folder / ENCODED)


def predict(run: Run, trained: Trained, rows: Int) -> tuple[Real, float]:
    """Expression of some spots, and spots predicted per second in plain torch, reading of patches included."""
    started = time.monotonic()
    predicted = express_held_out(run, trained, rows)
    seconds = time.monotonic() - started
    network = trained.network
    first_pass: Callable[[torch.Tensor], object] | None = None  # if it was done before the network was trained
    if isinstance(network, Triplex) and network.config.reads_slide:
        first_pass = network.describe
    elif isinstance(network, TileNetwork):
        first_pass = network
    if first_pass:
        some = torch.from_numpy(run.tiles.read_patches(rows[:64])).to(run.device)
        started = time.monotonic()
        with torch.inference_mode():
            first_pass(some)
        seconds += (time.monotonic() - started) * len(rows) / len(some)
    return predicted, len(rows) / seconds


def score_one(predicted: Real, split: Split) -> dict[str, Any]:
    """Scores of one prediction: their means, each gene's and each patient's depth-controlled correlation."""
    counts, depth, section = split.counts[split.test], split.depth[split.test], split.section[split.test]
    patient = split.patient[split.test]

    def per_gene(rows: Any) -> Float:
        return metrics.depth_controlled_correlation(predicted[rows], counts[rows], depth[rows], section[rows])

    return {
        "scores": score(predicted, split),
        "per_gene": listed(per_gene(slice(None))),
        "per_patient": {str(name): metrics.rounded_mean(per_gene(patient == name)) for name in np.unique(patient)},
    }


def score_baselines(run: Run, fold: Fold, sections: list[str]) -> dict[str, Any]:
    """The rows that every comparison has, trained on the same targets.

    For each gene also the noise ceiling, and how many held-out sections measured it.
    """
    tiles, settings, genes = run.tiles, run.settings, list(run.panel.genes)
    counts = PanelCounts(tiles, genes) if are_many(len(tiles.spot)) else tiles.panel_counts(genes)
    normalisation = NORMALISATIONS[settings.normalisation]
    depth = depth_of_shares(tiles, genes, normalisation, sections)
    split, index = split_of(tiles, fold, sections, genes, depth, settings, is_described(run.features))
    train = np.isin(np.arange(len(tiles.spot)), index[split.train])
    smooth = neighbour_mean(tiles.section, tiles.centres) if settings.smooth_labels else None
    name = settings.objective if settings.objective in ("residuals", "mse", "standardised-mse") else "residuals"
    objective = make_objective(name, counts, depth, tiles.section, train, smooth, normalisation.per)
    rows = {}
    for row, predicted in predict_baselines(split, run.features[index], objective.at(index)).items():
        if row in (TRAINING_MEAN, SAME_PATIENT_MEAN):
            scores = score(predicted, split) | dict.fromkeys(OVER_SPOTS)
            rows[row] = {"scores": scores, "per_gene": [], "per_patient": {}}
        else:
            rows[row] = score_one(*where_predicted(predicted, split))
        if row == TRUE_DEPTH:  # it has no unit of expression
            rows[row]["scores"] = score(predicted, split, across_genes=False)
    tested = split.counts[split.test], split.depth[split.test], split.section[split.test]
    return {
        "genes": genes, "spots": int(split.test.sum()), "rows": rows,
        "noise_ceiling": listed(metrics.noise_ceiling(*tested)),
        "sections": measured_by_section(tested[0], tested[2]).sum(axis=0).tolist(),
        "scored_sections": len(np.unique(tested[2])),
    }  # fmt: skip


def logged_seconds(folder: Path) -> float:
    """Seconds that the epochs of earlier calls took."""
    log = folder / "log.csv"
    if not log.exists():
        return 0.0
    with log.open(newline="") as file:
        return sum(float(row["seconds"]) for row in csv.DictReader(file))


def listed(values: Float) -> list[float | None]:
    return [round(float(value), 4) if np.isfinite(value) else None for value in values]
