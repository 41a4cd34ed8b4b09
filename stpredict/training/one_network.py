"""Train one network on some sections, and choose its genes: what each fold and the final model need."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from stpredict.arrays import Bool, Float, Int
from stpredict.data.panel import choose_panel
from stpredict.data.section import Section
from stpredict.data.tiles import Tiles
from stpredict.networks import FITTED, Network
from stpredict.networks.dictionary import Dictionary
from stpredict.networks.encoder import Encoded
from stpredict.networks.patch_level import PatchNetwork
from stpredict.networks.triplex import Triplex
from stpredict.prediction.surroundings import Surroundings
from stpredict.statistics.normalisation import NORMALISATIONS
from stpredict.statistics.objectives import Objective, make_objective
from stpredict.statistics.spatial import neighbour_mean
from stpredict.storage.files import atomic_path
from stpredict.training.dictionary import learn_windows
from stpredict.training.fit import (
    Course,
    Log,
    Report,
    Stage,
    Student,
    agree_on,
    is_main_process,
    new_network,
    plain_step,
    predict_z,
    ridge_lessons,
    teach,
    train_on_spots,
)
from stpredict.training.heads import describe_patches, fit_ridge_head, write_head
from stpredict.training.linear_head import choose_penalty, fit_linear
from stpredict.training.settings import Settings
from stpredict.training.triplex import predict_triplex, prepare_triplex, triplex_step


@dataclass(frozen=True)
class Panel:
    """How to choose the genes: a list, or a rule of data/panel.py with a size and required genes."""

    genes: Sequence[str] = ()
    size: int | None = None
    required: Sequence[str] = ()
    rule: str = "variance"


@dataclass(frozen=True)
class Trained:
    """A network whose head predicts z, and what it was trained with and on."""

    network: Network
    objective: Objective
    panel: list[str]
    sections: Sequence[str]
    epochs: int  # 0 of a network that is fitted at once
    penalty: float | None = None  # of a linear head
    counts_from: Sequence[str] = ()  # the sections that told how genes vary together, where one is fitted so
    surroundings: Mapping[str, Surroundings] = field(default_factory=dict)  # of a network that is told of them


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
    encoder: Encoded | None = None  # as yet of one gene, its head not fitted
    encoded: Float | None = None  # what it says of each spot, spots x features
    sections: Sequence[Section] = ()  # of a network that looks at slides beyond the spots' patches
    weights: Mapping[str, torch.Tensor] | None = None  # that its trunk begins with


def train_network(
    run: Run, sections: Sequence[str], validation: Sequence[str], epochs: int | None, folder: Path
) -> Trained:
    """Choose the panel of `sections` and train on them: a dictionary at once, other networks epoch by epoch."""
    tiles, settings = run.tiles, run.settings
    folder.mkdir(parents=True, exist_ok=True)
    in_training = np.isin(tiles.section, sections)
    panel = list(dict.fromkeys([*run.panel.genes, *run.panel.required])) if run.panel.genes else choose_panel(
        tiles.counts[np.flatnonzero(in_training)].toarray(), tiles.section[in_training], tiles.genes,
        run.panel.size, run.panel.required, settings.seed, run.panel.rule,
    )  # fmt: skip
    counts = tiles.panel_counts(panel)
    smooth = neighbour_mean(tiles.section, tiles.centres) if settings.smooth_labels else None
    normalisation = NORMALISATIONS[settings.normalisation]
    depth = normalisation.depth(counts, tiles.depth)
    if uncounted := int((in_training & (depth == 0)).sum()):
        run.report(f"{uncounted} spots without counts in the panel are left out")
        in_training &= depth > 0
    objective = make_objective(settings.objective, counts, depth, tiles.section, in_training, smooth, normalisation.per)
    if settings.architecture in FITTED:
        return fit_at_once(run, sections, validation, objective, panel, in_training)
    student, epochs, surroundings = train_epochs(run, sections, validation, objective, counts, epochs, folder)
    return Trained(student, objective, panel, sections, epochs, surroundings=surroundings)


def fit_at_once(
    run: Run, sections: Sequence[str], validation: Sequence[str], objective: Objective, panel: list[str],
    in_training: Bool,
) -> Trained:  # fmt: skip
    """Fit the head of a network that describes patches, a linear one's penalty chosen on `validation`."""
    tiles, settings = run.tiles, run.settings
    network = new_described_network(run, sections, len(panel))

    def describe(rows: Int) -> Float:
        return describe_patches(network, tiles, rows, run.device) if run.encoded is None else run.encoded[rows]

    rows = np.flatnonzero(in_training)
    features = describe(rows)
    if settings.head != "linear":
        normalisation = NORMALISATIONS[settings.normalisation]
        counts_from = fit_ridge_head(network, features, rows, tiles, panel, objective, normalisation)
        return Trained(network, objective, panel, sections, 0, counts_from=counts_from)
    unseen = np.flatnonzero(np.isin(tiles.section, validation) & ~in_training & (objective.depth > 0))
    every = np.concatenate([rows, unseen])  # in a paper's protocol the validation is not part of the training
    all_features = np.concatenate([features, describe(unseen)]) if len(unseen) else features
    tested = np.isin(tiles.section[every], validation)
    penalty = choose_penalty(all_features, every, tested, objective, run.device)
    write_head(network, fit_linear(features, rows, objective, penalty, run.device))
    return Trained(network, objective, panel, sections, 0, penalty=penalty)


def new_described_network(run: Run, sections: Sequence[str], n_genes: int) -> Dictionary | Encoded:
    """A network that describes patches, its head yet to be fitted: the run's encoder, or a dictionary of `sections`."""
    if run.encoder is None:
        return learn_windows(run.tiles, sections, n_genes, run.settings.seed)
    network = Encoded(replace(run.encoder.config, n_genes=n_genes)).to(run.device)
    network.encoder = run.encoder.encoder
    return network


def predict_rows(run: Run, trained: Trained, rows: Int) -> Float:
    """The network's raw output for some spots, in fp32, spots x genes."""
    network = trained.network
    if isinstance(network, Triplex):
        return predict_triplex(network, trained.surroundings, run.tiles, rows, run.device)
    if run.encoded is None or not isinstance(network, Encoded):
        return predict_z(network, run.tiles, rows, run.device)
    with torch.inference_mode():
        features = torch.as_tensor(run.encoded[rows], dtype=torch.float32, device=run.device)
        return network.read(features).double().cpu().numpy()


def predict_and_read(run: Run, trained: Trained, rows: Int) -> tuple[Float, Float]:
    """As `predict_rows`, and what the network's head reads, spots x features."""
    head = trained.network.head
    head.beside = nn.Identity()
    both = predict_rows(run, trained, rows)
    head.beside = None
    return both[:, : head.out_features], both[:, head.out_features :]


def train_epochs(
    run: Run, sections: Sequence[str], validation: Sequence[str], objective: Objective, counts: Float,
    epochs: int | None, folder: Path,
) -> tuple[Network, int, dict[str, Surroundings]]:  # fmt: skip
    """Teach, choose the number of epochs on `validation` unless `epochs` is given, and train on all of `sections`.

    `counts` are spots x genes of the panel. Returns the network, the number of epochs, and what surroundings it knows.
    """
    tiles, settings = run.tiles, run.settings
    counted = objective.depth > 0
    in_training, in_validation = (np.isin(tiles.section, names) & counted for names in (sections, validation))
    course = Course(settings, Log(folder / "log.csv", run.report), folder, run.device)
    network = new_network(settings, tiles.patch_px, counts.shape[1])
    places = np.flatnonzero(np.isin(tiles.unlabelled_section, sections))
    # The teacher must not know the validation's counts, or the first epochs would look too good.
    known = np.flatnonzero(in_training & ~in_validation)
    surroundings: dict[str, Surroundings] = {}
    if isinstance(network, Triplex):
        surroundings = prepare_triplex(
            network, run.weights, run.sections, sections, tiles, run.unlabelled_features, course
        )
    elif isinstance(network, PatchNetwork) and run.weights is not None:
        network.trunk.load_state_dict(run.weights)
    elif settings.teach_patches and len(places):
        taught = ridge_lessons(run.features, run.unlabelled_features, objective, known)
        teach(network, tiles, taught, places, course)

    def train(name: str, rows: Int, tested: Int, n_epochs: int) -> Network:
        student = copy.deepcopy(network)
        step, predict = plain_step(objective.loss), partial(predict_z, student, tiles, device=run.device)
        if isinstance(student, Triplex):
            detach = settings.fusion_teacher == "detached"
            step = triplex_step(student, surroundings, tiles, objective, detach, run.device)
            predict = partial(predict_triplex, student, surroundings, tiles, device=run.device)
        stage = Stage(name, rows, n_epochs, settings.learning_rate)
        train_on_spots(Student(student, step, predict), tiles, objective, counts, stage, tested, course)
        return student

    if epochs is None and len(validation):
        train("select", known, np.flatnonzero(in_validation), settings.epochs)
        epochs = agree_on(course.log.best_epoch("select"))
    # Without a validation, stop half way: on few spots the later epochs were seen to overfit.
    epochs = epochs or max(1, settings.epochs // 2)
    student = train("train", np.flatnonzero(in_training), np.empty(0, np.int64), epochs)
    if is_main_process():
        draw_curves(course.log, folder / "curves.png")
    return student, epochs, surroundings


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
