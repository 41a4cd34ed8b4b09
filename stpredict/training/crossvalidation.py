"""From a data set to a model file: hold parts out, train, score, then train on everything and write the card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np
import torch
from torch import nn

from stpredict.data.bins import Bins
from stpredict.data.dataset import read_dataset
from stpredict.data.panel import check_rule
from stpredict.data.tiles import Measured, Tiles, read_tiles
from stpredict.evaluation.splits import DEPTH_CONTROLLED, Split, evaluate_split
from stpredict.model.card import better_baselines, make_card, show_crossvalidation, write_model
from stpredict.model.file import load_model
from stpredict.model.reference import make_feature_reference, parts_left_out
from stpredict.networks import FITTED, architecture_views, check_architecture, reads_slides
from stpredict.networks.encoder import Encoded, EncoderConfig
from stpredict.networks.encoder_files import count_features, open_encoder
from stpredict.networks.trunk_files import read_trunk
from stpredict.statistics.conformal import describe_intervals
from stpredict.statistics.metrics import log_cpm
from stpredict.statistics.normalisation import NORMALISATIONS, check_normalisation
from stpredict.statistics.objectives import check_objective
from stpredict.storage.files import atomic_path
from stpredict.training.fit import (
    Report,
    empty_trunk,
    is_main_process,
    pick_device,
    process_group,
    wait_for_all,
)
from stpredict.training.folds import Fold, check_split, choose_validation, plan_folds
from stpredict.training.heads import describe_patches
from stpredict.training.intervals import ERRORS, calibrate, save_errors
from stpredict.training.one_network import Panel, Run, Trained, predict_and_read, predict_rows, train_network
from stpredict.training.preparation import (
    ENCODED,
    FEATURES,
    check_slides_at_hand,
    fingerprint,
    is_finished,
    patch_px_of,
    prepare_run,
    read_features,
    run_folder,
    tiles_of,
)
from stpredict.training.programmes import N_PROGRAMMES
from stpredict.training.protocols import find_protocol, show_protocol
from stpredict.training.settings import EncoderSettings, Settings, TrainingRequest
from stpredict.training.triplex import SURROUNDINGS


def train_model(request: TrainingRequest, panel: Panel, report: Report) -> dict[str, Any]:
    """Train a model from a data set or a tiles file, by way of the folder MODEL.run; returns its card.

    A killed run goes on where it was. Under torchrun every process calls this.
    Raises what `prepare_run` does, and UsageError for settings that are none.
    """
    dataset, out, settings, threads = request.dataset, request.out, request.settings, request.threads
    check_architecture(settings.architecture)
    views = architecture_views(settings.architecture)
    in_slides = reads_slides(settings.architecture)
    if in_slides:
        check_slides_at_hand(settings.architecture, dataset)
    weights = None
    if request.encoder_weights:
        weights = read_trunk(
            request.encoder_weights, empty_trunk(settings, patch_px_of(dataset)), settings.architecture
        )
    opened = None
    if request.encoder and settings.encoder:
        opened = open_encoder(request.encoder, patch_px_of(dataset), settings.encoder.vit)
    check_objective(settings.objective, settings.smooth_labels)
    check_normalisation(settings.normalisation)
    check_rule(panel.rule)
    check_split(request.folds)
    place = pick_device(request.device)

    def plan(found: Tiles | Measured) -> list[Fold]:
        if request.protocol:
            return find_protocol(request.protocol).folds(found, settings.seed)
        return plan_folds(found, request.folds, request.hold_out)

    folder, wanted = run_folder(out), recorded(request, panel)
    if not request.overwrite and is_finished(folder, out, wanted):
        report(f"{out}: up to date")
        return dict(load_model(out).card)
    with process_group(request.device):
        if is_main_process():
            prepare_run(request, wanted, panel, plan, opened, views, report)
        wait_for_all()
        tiles = read_tiles(tiles_of(dataset, out))
        features, unlabelled_features = read_features(tiles, settings, folder / FEATURES, report, threads)
        torch.set_num_threads(threads)
        run = Run(
            tiles, features, unlabelled_features, panel, settings, request.licence, place, report,
            sections=read_dataset(dataset, Bins(request.bin_um)) if in_slides else (), weights=weights,
        )  # fmt: skip
        if opened and settings.encoder:
            run = with_encoder(run, opened, settings.encoder, folder / ENCODED)
        return run_crossvalidation(run, plan(tiles), request.protocol, out, folder)


def recorded(request: TrainingRequest, panel: Panel) -> dict[str, Any]:
    """All that decides what comes of a run; a run goes on only with what it was begun with."""
    settings, counts_only = request.settings, request.counts_only
    wanted = {
        **asdict(settings), **settings.renewed(), "panel": asdict(panel), "folds": request.protocol or request.folds,
        "hold_out": list(request.hold_out), "mpp": request.mpp, "unlabelled": request.unlabelled,
        "licence": request.licence, "dataset": request.dataset.name, "files": fingerprint(request.dataset),
        "counts_only": counts_only and [counts_only.name, fingerprint(counts_only)],
    }  # fmt: skip
    if request.bin_um is not None:  # a run that was begun without it is the same as ever
        wanted["bin_um"] = request.bin_um
    return dict(json.loads(json.dumps(wanted)))


def with_encoder(run: Run, encoder: nn.Module, known: EncoderSettings, cache: Path) -> Run:
    """The run with an encoder and what that says of each spot, kept in `cache`; the encoder runs once per spot.

    Raises ModelFileError if it does not take patches of this size.
    """
    width = count_features(encoder, run.tiles.patch_px, known.file)
    network = Encoded(
        EncoderConfig(1, width, known.file, known.sha256, known.mean, known.std, run.tiles.patch_px, vit=known.vit)
    )
    network.encoder = encoder
    network.to(run.device)
    if not cache.exists() and is_main_process():
        run.report(f"{known.file}: {width} features of {len(run.tiles.spot)} spots")
        described = describe_patches(network, run.tiles, np.arange(len(run.tiles.spot)), run.device)
        with atomic_path(cache) as temporary, temporary.open("wb") as file:
            np.save(file, described)
    wait_for_all()
    return replace(run, encoder=network, encoded=np.load(cache))


def run_fold(run: Run, fold: Fold, folder: Path) -> dict[str, Any]:
    """Train without the fold's sections and score on them. A finished fold is read back from its folder."""
    done = folder / "scores.json"
    if done.exists():
        return dict(json.loads(done.read_text()))
    tiles = run.tiles
    sections = fold.train or sorted(set(tiles.section) - set(fold.test_sections))
    validates = run.settings.validates
    chosen = choose_validation(tiles, sections) if fold.validation is None else fold.validation
    validation = chosen if validates else []
    what = "penalty" if run.settings.head else "epochs"
    how = f", {what} chosen on {', '.join(validation)}" if validation else ""
    run.report(f"hold out {fold.kind} {fold.name}: train on {', '.join(sections)}{how}")
    trained = train_network(run, sections, validation, None, folder)
    panel, objective = trained.panel, trained.objective
    training = np.isin(tiles.section, sections) & (objective.depth > 0)
    held_out = np.isin(tiles.section, fold.test_sections)
    test = held_out & (objective.depth > 0) & (tiles.depth >= run.settings.min_depth)
    split = Split(
        tiles.panel_counts(panel), objective.depth, tiles.section, tiles.kin, tiles.centres, training, test,
        NORMALISATIONS[run.settings.normalisation].per,
    )  # fmt: skip
    predicted = objective.expression(predict_rows(run, trained, np.flatnonzero(test)))
    scores = {
        "name": fold.name, "kind": fold.kind, "test": fold.test_sections, "train": sections,
        "validation": validation, "epochs": trained.epochs, "panel": panel,
        "min_depth": run.settings.min_depth, "spots_left_out": int((held_out & ~test).sum()),
        **({"leak": fold.leak} if fold.leak and validates else {}),
        **evaluate_split(predicted, split, run.features, objective),
    }  # fmt: skip
    if is_main_process():
        missed = abs(predicted - log_cpm(split.counts[test], split.depth[test], split.per))
        save_errors(folder / ERRORS, missed, tiles.kin[test], panel)
        rows = {k: v[DEPTH_CONTROLLED] for k, v in scores["rows"].items()}
        run.report(f"held-out {fold.name}: " + ", ".join(f"{k} {v}" for k, v in rows.items()))
        beaten_by = better_baselines(scores)
        if beaten_by:
            run.report(f"held-out {fold.name}: the model has learnt nothing that {' and '.join(beaten_by)} had not")
        write_trained(run, trained, folder / "model.safetensors", f"{folder.parent.stem}-{folder.name}", [scores])
        with atomic_path(done) as temporary:
            temporary.write_text(json.dumps(scores))
        shutil.rmtree(folder / SURROUNDINGS, ignore_errors=True)
    return scores


def run_crossvalidation(
    run: Run, folds: Sequence[Fold], protocol: str | None, out: Path, folder: Path
) -> dict[str, Any]:
    """Score every fold, train on everything for the median of the folds' epochs, write the model; returns its card."""
    if not folds:
        run.report("nothing is held out: the model's card will not say how good it is")
    held_out = [run_fold(run, fold, folder / f"fold-{number}") for number, fold in enumerate(folds, 1)]
    unit = NORMALISATIONS[run.settings.normalisation].unit
    for line in show_protocol(protocol, held_out, unit) if protocol else show_crossvalidation(held_out):
        run.report(line)
    chosen = [scores["epochs"] for scores in held_out if scores["validation"] and scores["epochs"]]
    sections = sorted(set(run.tiles.section))
    validation = choose_validation(run.tiles, sections) if run.settings.validates and not chosen else []
    run.report(f"train on everything: {', '.join(sections)}")
    trained = train_network(run, sections, validation, median_low(chosen) if chosen else None, folder / "all")
    intervals: list[dict[str, Any]] = []
    by_patient = {number: fold for number, fold in enumerate(folds, 1) if fold.kind == "patient" and not fold.leak}
    if not NORMALISATIONS[run.settings.normalisation].of_panel:  # else each fold's panel makes a unit of its own
        intervals = calibrate([folder / f"fold-{number}" / ERRORS for number in by_patient], trained.panel)
        tested = np.isin(run.tiles.section, [name for fold in by_patient.values() for name in fold.test_sections])
        for line in describe_intervals(intervals, len(set(run.tiles.kin[tested])), unit):
            run.report(line)
    card = write_trained(run, trained, out, out.stem, held_out, intervals)
    for made in (folder, folder / "all"):
        shutil.rmtree(made / SURROUNDINGS, ignore_errors=True)
    return card


def write_trained(
    run: Run, trained: Trained, path: Path, name: str, held_out: Sequence[dict[str, Any]],
    intervals: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:  # fmt: skip
    """Write the model with its card, which is returned."""
    rows = np.flatnonzero(np.isin(run.tiles.section, trained.sections) & (trained.objective.depth > 0))
    z, read = predict_and_read(run, trained, rows)
    expression = trained.objective.expression(z)
    training = {
        **trained_how(run.settings, trained),
        "licence": run.licence,
        "sections": list(trained.sections),
        "patients": sorted(set(run.tiles.patient[rows].tolist())),
        "spots": len(rows),
        "unlabelled_patches": int(np.isin(run.tiles.unlabelled_section, trained.sections).sum()),
        **counted_only(run.tiles, trained.counts_from),
    }
    card = make_card(name, run.tiles, trained.panel, trained.network, trained.objective, expression, training, held_out,
                     intervals)  # fmt: skip
    if is_main_process():
        part = parts_left_out(run.tiles.kin[rows], run.tiles.section[rows])
        reference = make_feature_reference(read, part)
        write_model(path, card, trained.network, trained.objective, run.features[rows], part, reference)
    return card


def counted_only(tiles: Tiles, counts_from: Sequence[str]) -> dict[str, list[str]]:
    """The sections without images that told how genes vary together, and their patients, for the card."""
    if tiles.counts_only is None:
        return {}
    used = np.isin(tiles.counts_only.section, counts_from)
    kinds = {"sections": tiles.counts_only.section, "patients": tiles.counts_only.patient}
    return {f"counts_only_{kind}": sorted(set(labels[used].tolist())) for kind, labels in kinds.items()}


def trained_how(settings: Settings, trained: Trained) -> dict[str, Any]:
    """The settings that mattered, for the card."""
    everything = {key: value for key, value in asdict(settings).items() if value is not None and key != "min_depth"}
    if settings.architecture not in FITTED:
        return {**everything, "epochs_used": trained.epochs}
    mattered = ("architecture", "objective", "normalisation", "smooth_labels", "seed", "encoder", "head")
    kept = {key: value for key, value in everything.items() if key in mattered}
    return {**kept, **({"gene_programmes": N_PROGRAMMES} if trained.penalty is None else {"penalty": trained.penalty})}
