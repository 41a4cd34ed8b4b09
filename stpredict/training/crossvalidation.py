"""From a data set to a model file: hold parts out, train, score, then train on everything and write the card."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np
import torch

from stpredict.arrays import Float, Int
from stpredict.cards import better_baselines, make_card, show_crossvalidation, write_model
from stpredict.data.dataset import read_dataset
from stpredict.data.panel import check_rule, choose_panel, match_genes
from stpredict.data.tiles import Tiles, read_tiles, write_tiles
from stpredict.errors import ResultError
from stpredict.evaluation.features import colour_texture_features
from stpredict.evaluation.spatial_statistics import neighbour_mean
from stpredict.evaluation.splits import DEPTH_CONTROLLED, Split, evaluate_split
from stpredict.files import atomic_path
from stpredict.networks import architecture_config
from stpredict.networks.m2ort import M2ORT
from stpredict.prediction.shards import describe_difference
from stpredict.training.fit import (
    Log,
    Report,
    Settings,
    agree_on,
    is_main_process,
    new_network,
    pick_device,
    predict_z,
    process_group,
    teach,
    train_on_spots,
    wait_for_all,
)
from stpredict.training.folds import Fold, check_leaks, check_split, choose_validation, plan_folds
from stpredict.training.objectives import Objective, check_objective, make_objective
from stpredict.training.protocols import find_protocol, show_protocol


@dataclass(frozen=True)
class Panel:
    """How to choose the genes: a list, or a rule of data/panel.py with a size and required genes."""

    genes: Sequence[str] = ()
    size: int | None = None
    required: Sequence[str] = ()
    rule: str = "variance"


@dataclass(frozen=True)
class Run:
    """What all networks of one training run share."""

    tiles: Tiles
    features: Float
    unlabelled_features: Float
    panel: Panel
    settings: Settings
    licence: str
    device: torch.device
    report: Report


def train_model(
    dataset: Path, out: Path, settings: Settings, panel: Panel, *, folds: str, hold_out: Sequence[str],
    allow_patient_leak: bool, protocol: str | None, unlabelled: int, mpp: float | None, licence: str, device: str,
    threads: int, overwrite: bool, report: Report,
) -> dict[str, Any]:  # fmt: skip
    """Train a model from a data set or a tiles file, by way of the folder MODEL.run; returns its card.

    A killed run goes on where it was. Under torchrun every process calls this.
    Raises ResultError if the model exists, or the folder holds a run with other settings, unless `overwrite`;
    UsageError for a held-out section of a patient who is also trained on, unless `allow_patient_leak`.
    """
    architecture_config(settings.architecture, n_genes=1)
    check_objective(settings.objective)
    check_rule(panel.rule)
    check_split(folds)

    def plan(tiles: Tiles) -> list[Fold]:
        if protocol:
            return find_protocol(protocol).folds(tiles, settings.seed)
        return plan_folds(tiles, folds, hold_out)

    folder = out.with_suffix(".run")
    own_tiles = folder / "dataset.tiles.h5"
    tiles_path = dataset if dataset.suffix == ".h5" else own_tiles
    wanted = {
        **asdict(settings), "panel": asdict(panel), "folds": protocol or folds, "hold_out": list(hold_out), "mpp": mpp,
        "unlabelled": unlabelled, "licence": licence, "dataset": dataset.name, "files": fingerprint(dataset),
    }  # fmt: skip
    wanted = json.loads(json.dumps(wanted))
    with process_group(device):
        if is_main_process():
            begun = find_run(folder, out, wanted, overwrite)
            if not begun:
                own_tiles.unlink(missing_ok=True)
                (folder / "features.npz").unlink(missing_ok=True)
            if not tiles_path.exists():
                sections = read_dataset(dataset)
                write_tiles(sections, tiles_path, mpp=mpp, unlabelled=unlabelled, seed=settings.seed, report=report)
            check_leaks(plan(read_tiles(tiles_path)), allow_patient_leak)
            match_genes([*panel.required, *panel.genes], read_tiles(tiles_path).genes, "measured genes")
            if not begun:
                with atomic_path(folder / "run.json") as temporary:
                    temporary.write_text(json.dumps(wanted, indent=1))
            read_features(read_tiles(tiles_path), folder / "features.npz", report, threads)
        wait_for_all()
        tiles = read_tiles(tiles_path)
        features, unlabelled_features = read_features(tiles, folder / "features.npz", report, threads)
        torch.set_num_threads(threads)
        run = Run(tiles, features, unlabelled_features, panel, settings, licence, pick_device(device), report)
        return run_crossvalidation(run, plan(tiles), protocol, out, folder)


def find_run(folder: Path, out: Path, wanted: dict[str, Any], overwrite: bool) -> bool:
    """Whether the run's folder holds the same run, begun; the folder is made if it is not there.

    Raises ResultError if it holds another, or the model exists without one, unless `overwrite`.
    """
    record = folder / "run.json"
    if overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    elif record.exists():
        found = json.loads(record.read_text())
        if found != wanted:
            difference = describe_difference(found, wanted)
            raise ResultError(f"{folder}: holds a run with other settings ({difference}); --overwrite begins anew.")
        return True
    elif out.exists():
        raise ResultError(f"{out}: exists; --overwrite replaces it.")
    folder.mkdir(parents=True, exist_ok=True)
    return False


def fingerprint(dataset: Path) -> str:
    """Changes when files of a data set are added, removed or replaced by others of another size."""
    files = sorted(path for path in dataset.rglob("*") if path.is_file()) if dataset.is_dir() else [dataset]
    sizes = [(path.name, path.stat().st_size) for path in files if path.exists()]
    return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:16]


def train_network(
    run: Run, sections: Sequence[str], validation: Sequence[str], epochs: int | None, folder: Path
) -> tuple[M2ORT, Objective, list[str], int]:
    """Teach, choose the number of epochs on `validation` unless `epochs` is given, and train on all of `sections`.

    Returns the network (its head predicts z), its objective, its panel, and the number of epochs.
    """
    tiles, settings = run.tiles, run.settings
    folder.mkdir(parents=True, exist_ok=True)
    in_training = np.isin(tiles.section, sections)
    in_validation = np.isin(tiles.section, validation)
    panel = list(run.panel.genes) or choose_panel(
        tiles.counts[np.flatnonzero(in_training)].toarray(), tiles.section[in_training], tiles.genes,
        run.panel.size, run.panel.required, settings.seed, run.panel.rule,
    )  # fmt: skip
    counts = tiles.panel_counts(panel)
    smooth = neighbour_mean(tiles.section, tiles.centres) if settings.smooth_labels else None
    objective = make_objective(settings.objective, counts, tiles.depth, tiles.section, in_training, smooth)
    log = Log(folder / "log.csv", run.report)
    network = new_network(settings, tiles, len(panel))
    places = np.flatnonzero(np.isin(tiles.unlabelled_section, sections))
    # The teacher must not know the validation's counts, or the first epochs would look too good.
    known = np.flatnonzero(in_training & ~in_validation)
    if settings.teach_patches and len(places):
        teach(network, tiles, run.features, run.unlabelled_features, objective, known, places,
              settings, log, folder / "teach.pt", run.device)  # fmt: skip

    def train(rows: Int, tested: Int, n_epochs: int, stage: str) -> M2ORT:
        student = copy.deepcopy(network)
        train_on_spots(student, tiles, objective, rows, tested, counts, n_epochs, stage,
                       settings, log, folder / f"{stage}.pt", run.device)  # fmt: skip
        return student

    if epochs is None and len(validation):
        train(known, np.flatnonzero(in_validation), settings.epochs, "select")
        epochs = agree_on(log.best_epoch("select"))
    # Without a validation, stop half way: on few spots the later epochs were seen to overfit.
    epochs = epochs or max(1, settings.epochs // 2)
    student = train(np.flatnonzero(in_training), np.empty(0, np.int64), epochs, "train")
    if is_main_process():
        draw_curves(log, folder / "curves.png")
    return student, objective, panel, epochs


def run_fold(run: Run, fold: Fold, folder: Path) -> dict[str, Any]:
    """Train without the fold's sections and score on them. A finished fold is read back from its folder."""
    done = folder / "scores.json"
    if done.exists():
        return dict(json.loads(done.read_text()))
    tiles = run.tiles
    sections = fold.train or sorted(set(tiles.section) - set(fold.test_sections))
    validation = choose_validation(tiles, sections) if fold.validation is None else fold.validation
    how_long = f"epochs chosen on {', '.join(validation)}" if validation else "no section left to choose epochs on"
    run.report(f"hold out {fold.kind} {fold.name}: train on {', '.join(sections)}, {how_long}")
    network, objective, panel, epochs = train_network(run, sections, validation, None, folder)
    test = np.isin(tiles.section, fold.test_sections)
    training = np.isin(tiles.section, sections)
    split = Split(tiles.panel_counts(panel), tiles.depth, tiles.section, tiles.patient, tiles.centres, training, test)
    predicted = objective.expression(predict_z(network, tiles, np.flatnonzero(test), run.device))
    scores = {
        "name": fold.name, "kind": fold.kind, "test": fold.test_sections, "train": sections,
        "validation": validation, "epochs": epochs, "panel": panel, **({"leak": fold.leak} if fold.leak else {}),
        **evaluate_split(predicted, split, run.features, objective),
    }  # fmt: skip
    if is_main_process():
        rows = {k: v[DEPTH_CONTROLLED] for k, v in scores["rows"].items()}
        run.report(f"held-out {fold.name}: " + ", ".join(f"{k} {v}" for k, v in rows.items()))
        beaten_by = better_baselines(scores)
        if beaten_by:
            run.report(f"held-out {fold.name}: the model has learnt nothing that {' and '.join(beaten_by)} had not")
        name = f"{folder.parent.stem}-{folder.name}"
        write_card_and_model(
            run, folder / "model.safetensors", name, network, objective, panel, sections, [scores], epochs
        )
        with atomic_path(done) as temporary:
            temporary.write_text(json.dumps(scores))
    return scores


def run_crossvalidation(
    run: Run, folds: Sequence[Fold], protocol: str | None, out: Path, folder: Path
) -> dict[str, Any]:
    """Score every fold, train on everything for the median of the folds' epochs, write the model; returns its card."""
    if not folds:
        run.report("nothing is held out: the model's card will not say how good it is")
    held_out = [run_fold(run, fold, folder / f"fold-{number}") for number, fold in enumerate(folds, 1)]
    for line in show_protocol(protocol, held_out) if protocol else show_crossvalidation(held_out):
        run.report(line)
    chosen = [scores["epochs"] for scores in held_out if scores["validation"]]
    sections = sorted(set(run.tiles.section))
    validation = [] if chosen else choose_validation(run.tiles, sections)
    run.report(f"train on everything: {', '.join(sections)}")
    network, objective, panel, epochs = train_network(
        run, sections, validation, median_low(chosen) if chosen else None, folder / "all"
    )
    return write_card_and_model(run, out, out.stem, network, objective, panel, sections, held_out, epochs)


def write_card_and_model(
    run: Run, path: Path, name: str, network: M2ORT, objective: Objective, panel: list[str],
    sections: Sequence[str], held_out: Sequence[dict[str, Any]], epochs: int,
) -> dict[str, Any]:  # fmt: skip
    rows = np.flatnonzero(np.isin(run.tiles.section, sections))
    expression = objective.expression(predict_z(network, run.tiles, rows, run.device))
    training = {
        **asdict(run.settings),
        "epochs_used": epochs,
        "licence": run.licence,
        "sections": list(sections),
        "patients": sorted(set(run.tiles.patient[rows].tolist())),
        "spots": len(rows),
        "unlabelled_patches": int(np.isin(run.tiles.unlabelled_section, sections).sum()),
    }
    card = make_card(name, run.tiles, panel, network, objective, expression, training, held_out)
    if is_main_process():
        write_model(path, card, network, objective, run.features[rows])
    return card


def read_features(tiles: Tiles, cache: Path, report: Report, threads: int) -> tuple[Float, Float]:
    """Colour and texture features of the spots and of the unlabelled places, kept in `cache`."""
    if not cache.exists():
        n, extra = len(tiles.spot), len(tiles.unlabelled_section)
        report(f"colour and texture features of {n} spots and {extra} unlabelled patches")
        spots = colour_texture_features((tiles.read_patches([i])[0] for i in range(n)), threads)
        unlabelled = colour_texture_features(
            (tiles.read_patches([i], unlabelled=True)[0] for i in range(extra)), threads
        )
        with atomic_path(cache) as temporary:
            np.savez(temporary, spots=spots, unlabelled=unlabelled)
    with np.load(cache) as saved:
        return saved["spots"], saved["unlabelled"]


def draw_curves(log: Log, path: Path) -> None:
    """A PNG of the loss and the validation score over the epochs of each stage."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for stage in dict.fromkeys(row["stage"] for row in log.rows):
        rows = [row for row in log.rows if row["stage"] == stage]
        left.plot([row["epoch"] for row in rows], [float(row["loss"]) for row in rows], "o-", label=stage)
        scored = [row for row in rows if row["validation"]]
        if scored:
            right.plot(
                [row["epoch"] for row in scored], [float(row["validation"]) for row in scored], "o-", label=stage
            )
    left.set(xlabel="epoch", ylabel="loss")
    right.set(xlabel="epoch", ylabel="validation depth-controlled correlation")
    left.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
