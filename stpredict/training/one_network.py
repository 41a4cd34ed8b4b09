"""Train one network on some sections, and choose its genes, for each fold and for the final model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from stpredict.arrays import Float, Float32, Int, Labels
from stpredict.data.coverage import about_panel, demand_genes, demand_spots
from stpredict.data.tissue import places_of
from stpredict.data.whole_depth import depth_of_shares
from stpredict.errors import counted
from stpredict.networks import FITTED, BankNetwork, Network, SectionNetwork, has_bank, reads_sections, says_z
from stpredict.networks.encoder import Encoded
from stpredict.networks.hipt import Hipt
from stpredict.networks.istar import IStar
from stpredict.networks.patch_level import PatchNetwork
from stpredict.networks.triplex import Triplex
from stpredict.prediction.surroundings import Surroundings
from stpredict.slides.symmetry import SYMMETRIES
from stpredict.statistics.losses import TargetError
from stpredict.statistics.moments import BLOCK
from stpredict.statistics.normalisation import NORMALISATIONS
from stpredict.statistics.objectives import Objective, make_objective
from stpredict.statistics.spatial import neighbour_mean
from stpredict.statistics.targets import Averaged, Kept, LogShares, in_memory
from stpredict.training.at_once import fit_at_once, fit_by_sums, shares_sums
from stpredict.training.curves import draw_curves
from stpredict.training.dense import HasTokens, read_lessons, teach_densely
from stpredict.training.dictionary import learn_windows
from stpredict.training.fit import (
    Course,
    Student,
    new_network,
    plain_step,
    predict_z,
    ridge_lessons,
    teach,
    train_on_spots,
)
from stpredict.training.head_sums import Observations, are_many
from stpredict.training.heads import describe_patches, fit_map, write_taught_head
from stpredict.training.hierarchy import predict_from_superpixels, superpixel_step, with_genes
from stpredict.training.log import Log
from stpredict.training.panel_counts import PanelCounts, kept_in
from stpredict.training.panels import choose_genes, n_genes_measured, refuse_gaps
from stpredict.training.processes import agree_on, is_main_process
from stpredict.training.retrieval import Measurements, bank_step, fill_bank, predict_apart, prepare_bank
from stpredict.training.run import Run, Trained
from stpredict.training.sampling import Stage, groups_to_balance
from stpredict.training.teachers import DictionaryTeacher, EncoderTeacher, Teacher
from stpredict.training.triplex import predict_triplex, prepare_triplex, triplex_step
from stpredict.training.whole_sections import (
    cells_of_sections,
    check_memory,
    positions_of,
    predict_in_own_sections,
    read_middle,
    section_step,
)


def train_network(
    run: Run, sections: Sequence[str], validation: Sequence[str], epochs: int | None, folder: Path
) -> Trained:
    """Choose the panel of `sections` and train on them: a dictionary at once, other networks epoch by epoch."""
    tiles, settings = run.tiles, run.settings
    folder.mkdir(parents=True, exist_ok=True)
    in_training = np.isin(tiles.section, sections)
    panel = choose_genes(tiles, run.panel, sections, settings.seed)
    normalisation = NORMALISATIONS[settings.normalisation]
    whose = sorted(set(tiles.section.tolist())) if normalisation.of_panel else sections
    refuse_gaps(settings, int((~tiles.measured_by(whose, panel)).any(axis=0).sum()))
    depth = depth_of_shares(tiles, panel, normalisation, sections)
    run.report(about_panel(tiles.measured_by(sections, panel)))
    if left := len({*run.panel.genes, *run.panel.required} - set(panel)):
        run.report(f"{counted(left, 'gene')} that you name left out: none of these sections measured them")
    if not run.panel.genes:
        demand_genes(len(panel), min(tiles.most_genes, run.panel.size or tiles.most_genes), "the panel has")
    demand_spots(depth[in_training], tiles.depth[in_training] > 0, "the panel")
    if uncounted := int((in_training & (depth == 0)).sum()):
        run.report(f"{uncounted} spots without counts in the panel are left out")
        in_training &= depth > 0
    if shares_sums(settings, int(in_training.sum())):
        return fit_by_sums(run, sections, panel, depth, in_training)
    smooth = neighbour_mean(tiles.section, tiles.centres) if settings.smooth_labels else None
    many = are_many(len(tiles.spot))
    counts, keep = (PanelCounts(tiles, panel), kept_in(folder)) if many else (tiles.panel_counts(panel), in_memory)
    objective = make_objective(
        settings.objective, counts, depth, tiles.section, in_training, smooth, normalisation.per, keep
    )
    if settings.architecture in FITTED:
        return fit_at_once(run, sections, validation, objective, panel, in_training)
    measured = None
    if has_bank(settings.architecture):
        loss, observed = objective.loss, LogShares(counts, depth, normalisation.per)
        measured = Measurements(
            loss.targets if isinstance(loss, TargetError) else Kept(objective.targets, keep),
            Kept(observed if smooth is None else Averaged(observed, smooth), keep),
            tiles.kin, np.flatnonzero(in_training), settings.seed,
        )  # fmt: skip
    return train_epochs(run, sections, validation, Trial(objective, panel, measured), epochs, folder)


def express_held_out(run: Run, trained: Trained, rows: Int) -> Float32:
    """Expression of spots to be scored, spots x genes, predicted as the network's recipe says."""
    turns = SYMMETRIES if run.settings.how.test_time_mean else 1
    expression = np.empty((len(rows), len(trained.panel)), np.float32)
    for some in _at_once(run, trained, len(rows)):
        expression[some] = trained.expression(predict_rows(run, trained, rows[some], turns))
    return expression


def _at_once(run: Run, trained: Trained, n: int) -> list[slice]:
    """Parts of `n` spots that are predicted together.

    What a head makes of features that are there takes no time, but memory if it is of all spots at once.
    """
    step = BLOCK if run.encoded is not None and isinstance(trained.network, Encoded | Hipt) else max(n, 1)
    return [slice(start, start + step) for start in range(0, max(n, 1), step)]


def predict_rows(run: Run, trained: Trained, rows: Int, turns: int = 1) -> Float:
    """The network's raw output for some spots, in fp32, spots x genes.

    If the network sees patches alone, it is the mean over the patches' first `turns` flips and rotations.
    """
    network = trained.network
    if isinstance(network, BankNetwork) and trained.measured is not None:
        return predict_apart(network, trained.measured, run.tiles, rows, run.device, keep=True)
    if isinstance(network, Triplex) and network.config.reads_slide:
        return predict_triplex(network, trained.surroundings, run.tiles, rows, run.device)
    if isinstance(network, SectionNetwork):
        return predict_in_own_sections(network, run.tiles, cells_of_sections(run.sections, run.tiles), rows, run.device)
    if isinstance(network, IStar) and run.encoded is not None:
        return predict_from_superpixels(network, run.encoded, rows, run.device)
    if run.encoded is None or not isinstance(network, Encoded | Hipt):
        return predict_z(network, run.tiles, rows, run.device, turns=turns)
    with torch.inference_mode():
        features = torch.as_tensor(run.encoded[rows], dtype=torch.float32, device=run.device)
        return network.read(features).double().cpu().numpy()


def express_and_read(run: Run, trained: Trained, rows: Int) -> tuple[Float, Float]:
    """Expression of some spots, spots x genes, and the features that the network's head reads, spots x features."""
    head = trained.network.head
    expression, read = np.empty((len(rows), head.out_features)), np.empty((0, 0))
    head.beside = nn.Identity()
    for some in _at_once(run, trained, len(rows)):
        both = predict_rows(run, trained, rows[some])
        if not some.start:
            read = np.empty((len(rows), both.shape[1] - head.out_features))
        expression[some], read[some] = trained.expression(both[:, : head.out_features]), both[:, head.out_features :]
    head.beside = None
    return expression, read


@dataclass(frozen=True)
class Trial:
    """The task of a network: the objective, the panel, and the source of its bank, if it has one."""

    objective: Objective
    panel: list[str]
    measured: Measurements | None


def train_epochs(
    run: Run, sections: Sequence[str], validation: Sequence[str], trial: Trial, epochs: int | None, folder: Path
) -> Trained:
    """Teach, choose the number of epochs on `validation` unless `epochs` is given, and train on all of `sections`.

    If a network was taught densely, its head is fitted first, and it may be best before any epoch on spots.
    """
    tiles, settings, objective, measured = run.tiles, run.settings, trial.objective, trial.measured
    counted = objective.depth > 0
    in_training, in_validation = (np.isin(tiles.section, names) & counted for names in (sections, validation))
    course = Course(settings, Log(folder / "log.csv", run.report), folder, run.device, run.accumulate)
    cells = cells_of_sections(run.sections, tiles) if reads_sections(settings.architecture) else None
    more = {} if cells is None else positions_of(cells, in_training)
    network: Network
    if isinstance(run.encoder, IStar):
        torch.manual_seed(settings.seed)
        network = with_genes(run.encoder, len(trial.panel))
    else:
        network = new_network(settings, tiles.patch_px, len(trial.panel), **more)
    if isinstance(network, SectionNetwork):
        check_memory(network, tiles, in_training, run.device)
    places = places_of(tiles, sections)
    # The teacher must not know the validation's counts, or the first epochs would look too good.
    known = np.flatnonzero(in_training & ~in_validation)
    surroundings: dict[str, Surroundings] = {}
    lessons: nn.Linear | None = None
    counts_from: list[str] = []
    if isinstance(network, Triplex):
        surroundings = prepare_triplex(
            network,
            run.weights,
            run.sections,
            sections,
            tiles,
            run.unlabelled_features,
            partial(teacher_of, run, sections, places),
            course,
        )
    elif isinstance(network, BankNetwork) and measured:
        measured = prepare_bank(network, run.weights, measured, tiles, run.unlabelled_features, places, course)
    elif isinstance(network, PatchNetwork) and run.weights is not None:
        network.trunk.load_state_dict(run.weights)
    elif settings.teach_patches and len(places) and cells is None and run.encoder is None:
        if isinstance(network, HasTokens) and settings.taught_densely:
            lessons = teach_densely(network, teacher_of(run, sections, places), tiles, places, course)
        else:
            colours = run.features.__getitem__
            observed = Observations(objective.targets, tiles, trial.panel, known, colours)
            taught = ridge_lessons(run.unlabelled_features, observed)
            teach(network, tiles, taught, places, course)

    def train(name: str, rows: Int, tested: Int, n_epochs: int) -> Network:
        own = measured and measured.of(rows, tiles)
        student, together, varied = as_student(run, copy.deepcopy(network), trial, own, surroundings, cells)
        if lessons is not None and isinstance(student.network, HasTokens):
            said = read_lessons(lessons, describe_patches(student.network, tiles, rows, run.device))
            normalisation = NORMALISATIONS[settings.normalisation]
            found, counts_from[:] = fit_map(said, rows, tiles, trial.panel, objective, normalisation)
            write_taught_head(student.network, lessons, found)
            student = replace(student, knows=True)
        n_measured = n_genes_measured(tiles, trial.panel)
        groups = groups_to_balance(tiles, settings.balance, tiles.section)
        stage = Stage(
            name, rows, n_epochs, settings.learning_rate, together, varied, n_measured, groups,
            isinstance(network, BankNetwork),
        )  # fmt: skip
        train_on_spots(student, tiles, objective, partial(tiles.panel_counts, trial.panel), stage, tested, course)
        return student.network

    if epochs is None and len(validation):
        train("select", known, np.flatnonzero(in_validation), settings.epochs)
        epochs = agree_on(course.log.best_epoch("select"))
    if settings.how.keeps == "last":
        epochs = settings.epochs
    elif epochs is None:
        epochs = settings.unvalidated_epochs(lessons is not None)
    student = train("train", np.flatnonzero(in_training), np.empty(0, np.int64), epochs)
    if is_main_process():
        draw_curves(course.log, folder / "curves.png")
    if isinstance(student, BankNetwork) and measured:
        measured = measured.of(measured.rows, tiles)
        fill_bank(student, measured, measured.rows)
    return Trained(
        student, objective, trial.panel, sections, epochs, counts_from=counts_from, surroundings=surroundings,
        measured=measured if isinstance(student, BankNetwork) else None,
    )  # fmt: skip


def teacher_of(run: Run, sections: Sequence[str], places: Int) -> Teacher:
    """The user's encoder, or a dictionary of the training sections; it teaches on the unlabelled `places`."""
    seed = run.settings.seed
    if run.teacher is not None:
        return EncoderTeacher(run.teacher, run.tiles, places, seed, run.report)
    return DictionaryTeacher(learn_windows(run.tiles, sections, 1, seed))


def as_student(
    run: Run, network: Network, trial: Trial, measured: Measurements | None, surroundings: Mapping[str, Surroundings],
    cells: Int | None,
) -> tuple[Student, Labels | None, bool]:  # fmt: skip
    """How a network is trained on measured spots: the student, and `together` and `varied` of its `Stage`."""
    tiles, device, objective = run.tiles, run.device, trial.objective
    if isinstance(network, BankNetwork) and measured:
        step = bank_step(network.to(device), measured, objective, device)
        predict = partial(predict_apart, network, measured, tiles, device=device)
        return Student(network, step, predict, tiles.read_patches, says_z(network)), None, True
    if isinstance(network, Triplex) and network.config.reads_slide:
        step = triplex_step(
            network, surroundings, tiles, objective, run.settings.fusion_teacher == "detached", device
        )  # fmt: skip
        predict = partial(predict_triplex, network, surroundings, tiles, device=device)
        return Student(network, step, predict, tiles.read_patches), None, True
    if isinstance(network, SectionNetwork) and cells is not None:
        step = section_step(network, cells, objective, partial(tiles.panel_counts, trial.panel), device)
        predict = partial(predict_in_own_sections, network, tiles, cells, device=device)
        return (
            Student(network, step, predict, partial(read_middle, tiles, network.config.image_px)),
            tiles.section,
            True,
        )
    if isinstance(network, IStar) and run.encoded is not None:
        predict = partial(predict_from_superpixels, network, run.encoded, device=device)
        return Student(network, superpixel_step(network, objective), predict, run.encoded.__getitem__), None, False
    predict = partial(predict_z, network, tiles, device=device)
    return Student(network, plain_step(objective.loss), predict, tiles.read_patches), None, True
