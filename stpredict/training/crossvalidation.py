"""Hold parts out, train, score, then train on everything and write the model with its card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np

from stpredict.arrays import Float32
from stpredict.data.tiles import Measured, Tiles
from stpredict.data.tissue import places_of
from stpredict.errors import some, some_of
from stpredict.evaluation.described import is_described
from stpredict.evaluation.splits import DEPTH_CONTROLLED, Split, evaluate_split
from stpredict.model.card import better_baselines, make_card, write_model
from stpredict.model.reference import make_feature_reference, parts_left_out
from stpredict.model.show import show_crossvalidation
from stpredict.networks import (
    FITTED,
    BankNetwork,
    describe_bank,
)
from stpredict.statistics.conformal import describe_intervals
from stpredict.statistics.metrics import log_cpm
from stpredict.statistics.moments import BLOCK
from stpredict.statistics.normalisation import NORMALISATIONS
from stpredict.statistics.sampling import draw_evenly
from stpredict.storage.files import atomic_path
from stpredict.training.anonymous import numbered, without_names
from stpredict.training.at_once import with_sums
from stpredict.training.folds import Fold, choose_validation, nothing_to_score, split_of
from stpredict.training.intervals import ERRORS, calibrate, save_errors
from stpredict.training.jobs import MODEL, SCORES, do_all, named
from stpredict.training.one_network import express_and_read, express_held_out, train_network
from stpredict.training.panels import choose_genes, n_genes_measured
from stpredict.training.processes import is_main_process, wait_for_all
from stpredict.training.programmes import N_PROGRAMMES
from stpredict.training.protocols import show_protocol
from stpredict.training.retrieval import finds_exemplars
from stpredict.training.run import Run, Trained
from stpredict.training.settings import Settings
from stpredict.training.tissue import tissue_taught
from stpredict.training.triplex import SURROUNDINGS

#: Spots of which a card tells how expression is spread, and a model file what usual patches are like.
MOST_READ = 20_000


def run_fold(run: Run, fold: Fold, folder: Path) -> dict[str, Any]:
    """Train without the fold's sections and score on them. A finished fold is read back from its folder."""
    done = folder / SCORES
    if done.exists():
        return dict(json.loads(done.read_text()))
    tiles = run.tiles
    sections, validation = sections_of(tiles, run.settings, fold)
    what = "penalty" if run.settings.head else "epochs"
    name = some_of(fold.name)
    how = f", {what} chosen on {some(validation)}" if validation else ""
    run.report(f"hold out {fold.kind} {name}: train on {some(sections)}{how}")
    trained = train_network(run, sections, validation, None, folder)
    panel, objective = trained.panel, trained.objective
    split, index = split_of(tiles, fold, sections, panel, objective.depth, run.settings, is_described(run.features))
    test, held_out = split.test, np.isin(tiles.section, fold.test_sections) & (n_genes_measured(tiles, panel) > 0)
    predicted = express_held_out(run, trained, index[test])
    scores = {
        "name": fold.name, "kind": fold.kind, "test": fold.test_sections, "train": sections,
        "validation": validation, "epochs": trained.epochs, "panel": panel,
        "min_depth": run.settings.min_depth,
        "spots_left_out": int(held_out.sum() - test.sum()),
        **({"leak": fold.leak} if fold.leak and run.settings.validates else {}),
        **tiles.coarse(fold.test_sections),
        **evaluate_split(predicted, split, run.features[index], objective.at(index)),
    }  # fmt: skip
    if is_main_process():
        save_errors(folder / ERRORS, errors_of(predicted, split), split.patient[test], panel)
        rows = {k: v[DEPTH_CONTROLLED] for k, v in scores["rows"].items()}
        told = ", ".join(f"{row} {'-' if score is None else score}" for row, score in rows.items())
        run.report(f"held-out {name}: {told}")
        beaten_by = better_baselines(scores)
        if beaten_by:
            run.report(f"held-out {name}: the model has learnt nothing that these had not: {', '.join(beaten_by)}")
        write_trained(run, trained, folder / MODEL, f"{folder.parent.stem}-{folder.name}", [scores])
        with atomic_path(done) as temporary:
            temporary.write_text(json.dumps(scores))
    clear_surroundings(folder)
    return scores


def errors_of(predicted: Float32, split: Split) -> Float32:
    """|predicted - measured| of a split's held-out spots, spots x genes; it takes the place of `predicted`."""
    tested = np.flatnonzero(split.test)
    for start in range(0, len(tested), BLOCK):
        rows = tested[start : start + BLOCK]
        predicted[start : start + BLOCK] -= log_cpm(split.counts[rows], split.depth[rows], split.per)
    return np.abs(predicted, out=predicted)


def demand_measured(run: Run, folds: Sequence[Fold]) -> None:
    """Raises UsageError before anything is trained if a part's sections measured no gene of the panel it is tested on.

    That panel is the one that the part's training sections choose.
    """
    tiles = run.tiles
    if tiles.measured is None:
        return
    for fold in folds:
        panel = choose_genes(tiles, run.panel, sections_of(tiles, run.settings, fold)[0], run.settings.seed)
        if not tiles.measured_by(fold.test_sections, panel).any():
            raise nothing_to_score(fold, len(panel))


def sections_of(found: Tiles | Measured, settings: Settings, fold: Fold) -> tuple[list[str], list[str]]:
    """The sections that a fold trains on, and those among them that choose the epochs or a penalty, if any do."""
    sections = fold.train or sorted(set(found.section.tolist()) - set(fold.test_sections))
    if not settings.validates:
        return sections, []
    chosen = choose_validation(found, sections) if fold.validation is None else fold.validation
    left = [name for name in sections if name not in chosen]
    return sections, chosen if finds_exemplars(settings.architecture, found, left) else []


def run_crossvalidation(
    run: Run, folds: Sequence[Fold], protocol: str | None, out: Path, folder: Path
) -> dict[str, Any]:
    """Score every fold, train on everything for the median of the folds' epochs, write the model; returns its card.

    It waits for folds that other calls train.
    """
    if not folds:
        run.report("nothing is held out: the model's card will not say how good it is")
    jobs = {folder / name: fold for name, fold in named(folds).items()}
    sections = sorted(set(run.tiles.section))
    to_train = [fold for path, fold in jobs.items() if not (path / SCORES).exists()]
    run = with_sums(run, [*(sections_of(run.tiles, run.settings, fold)[0] for fold in to_train), sections])
    held_out = do_all(jobs, partial(run_fold, run), run.report)
    unit = NORMALISATIONS[run.settings.normalisation].unit
    told = show_crossvalidation(held_out)
    if protocol:
        told = show_protocol(protocol, held_out, unit, run.settings.recipe)
    for line in told:
        run.report(line)
    trained_by_epochs = run.settings.architecture not in FITTED
    chosen = [scores["epochs"] for scores in held_out if scores["validation"]] if trained_by_epochs else []
    validation = choose_validation(run.tiles, sections) if run.settings.validates and not chosen else []
    run.report(f"train on everything: {some(sections)}")
    trained = train_network(run, sections, validation, median_low(chosen) if chosen else None, folder / "all")
    intervals: list[dict[str, Any]] = []
    by_patient = {number: fold for number, fold in enumerate(folds, 1) if fold.kind == "patient" and not fold.leak}
    if not NORMALISATIONS[run.settings.normalisation].of_panel:  # else each fold's panel has its own unit
        intervals = calibrate([folder / f"fold-{number}" / ERRORS for number in by_patient], trained.panel)
        tested = np.isin(run.tiles.section, [name for fold in by_patient.values() for name in fold.test_sections])
        for line in describe_intervals(intervals, len(set(run.tiles.kin[tested])), unit):
            run.report(line)
    card = write_trained(run, trained, out, out.stem, held_out, intervals)
    clear_surroundings(folder, folder / "all")
    return card


def clear_surroundings(*folders: Path) -> None:
    """Remove the surroundings of spots from folders when all processes that train together are done with them."""
    wait_for_all()
    for folder in folders if is_main_process() else ():
        shutil.rmtree(folder / SURROUNDINGS, ignore_errors=True)


def write_trained(
    run: Run, trained: Trained, path: Path, name: str, held_out: Sequence[dict[str, Any]],
    intervals: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:  # fmt: skip
    """Write the model with its card, which is returned."""
    rows = np.flatnonzero(np.isin(run.tiles.section, trained.sections) & (trained.objective.depth > 0))
    described = np.intersect1d(rows, is_described(run.features))
    drawn = described[draw_evenly(run.tiles.section[described], MOST_READ)]
    expression, read = express_and_read(run, trained, drawn)
    training = {
        **trained_how(run.settings, trained),
        "licence": run.licence,
        "sections": list(trained.sections),
        "patients": sorted(set(run.tiles.patient[rows].tolist())),
        "spots": len(rows),
        "unlabelled_patches": len(places_of(run.tiles, trained.sections)),
        **(tissue_taught(run.tiles, trained.sections) if run.settings.learns_from_tissue else {}),
        **run.tiles.coarse(trained.sections),
        **({"patch_format": f"JPEG of quality {quality}"} if (quality := run.tiles.jpeg_quality) else {}),
        **counted_only(run.tiles, trained.counts_from),
        **({"bank": describe_bank(trained.network)} if isinstance(trained.network, BankNetwork) else {}),
    }
    card = make_card(name, run.tiles, trained.panel, trained.network, trained.objective, expression, training, held_out,
                     intervals)  # fmt: skip
    del expression
    if run.anonymous:
        card = without_names(card, numbered(run.tiles))
    if is_main_process():
        part = parts_left_out(run.tiles.kin[drawn], run.tiles.section[drawn])
        reference = make_feature_reference(read, part)
        write_model(path, card, trained.network, trained.objective, run.features[drawn], part, reference)
    return card


def counted_only(tiles: Tiles, counts_from: Sequence[str]) -> dict[str, list[str]]:
    """For the card, the sections without images that showed how genes vary together, and their patients."""
    if tiles.counts_only is None:
        return {}
    used = np.isin(tiles.counts_only.section, counts_from)
    kinds = {"sections": tiles.counts_only.section, "patients": tiles.counts_only.patient}
    return {f"counts_only_{kind}": sorted(set(labels[used].tolist())) for kind, labels in kinds.items()}


def trained_how(settings: Settings, trained: Trained) -> dict[str, Any]:
    """For the card, the settings that had an effect."""
    everything = {key: value for key, value in asdict(settings).items() if value is not None and key != "min_depth"}
    for name, known in (("encoder", settings.encoder), ("teacher", settings.teacher)):
        if known and not known.stain:
            del everything[name]["stain"]
    if settings.architecture not in FITTED:
        along = {"gene_programmes": N_PROGRAMMES} if settings.taught_densely else {}
        return {**everything, "epochs_used": trained.epochs, **along}
    mattered = (
        "architecture", "objective", "normalisation", "smooth_labels", "seed", "encoder", "encoder_weights",
        "region_weights", "head",
    )  # fmt: skip
    kept = {key: value for key, value in everything.items() if key in mattered}
    return {**kept, **({"gene_programmes": N_PROGRAMMES} if trained.penalty is None else {"penalty": trained.penalty})}
