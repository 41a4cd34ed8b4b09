"""The rows of accuracy.py that are trained by gradient descent: recipes of a small M2ORT, and whole systems."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accuracy_splits import Cut, Part, open_data, open_tiles
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stpredict.arrays import Float, Int
from stpredict.data.dataset import read_dataset
from stpredict.networks import FLAGSHIP, architecture_views, reads_slides
from stpredict.networks.m2ort import M2ORT, M2ORTConfig
from stpredict.statistics.normalisation import NORMALISATIONS
from stpredict.statistics.objectives import make_objective
from stpredict.statistics.spatial import neighbour_mean
from stpredict.training.crossvalidation import write_trained
from stpredict.training.dictionary import learn_windows
from stpredict.training.fit import (
    TAUGHT_LIMIT,
    Course,
    Student,
    new_network,
    plain_step,
    predict_z,
    ridge_lessons,
    teach,
    teach_values,
    train_on_spots,
)
from stpredict.training.head_sums import Observations
from stpredict.training.heads import describe_patches, fit_map, write_head
from stpredict.training.log import Log
from stpredict.training.one_network import predict_rows, train_network
from stpredict.training.panels import Panel
from stpredict.training.programmes import fit_programmes
from stpredict.training.run import Run
from stpredict.training.sampling import Stage
from stpredict.training.settings import Settings
from stpredict.training.triplex import teach_trunk

CPU = torch.device("cpu")
#: A seventh of M2ORT-Small's computation, and less than `stpredict train` spends on that, which is 25,000 patches to be
#: taught on and epochs that are chosen. All its rows have the same.
SIZES: dict[str, Any] = {"channels": 64, "depth": 3, "heads": 2, "head_dim": 32}
TEACH_PATCHES, EPOCHS = 2000, 2
#: What the systems are trained with, all alike: what two cores bear for three networks, two splits and three seeds.
#: Small batches, as they make more of few patches.
SYSTEM_UNLABELLED, SYSTEM_EPOCHS, SYSTEM_BATCH = 1000, 1, 16


@dataclass(frozen=True)
class Recipe:
    """How a small M2ORT is trained. With `fitted_head` its head is fitted along gene programmes in the end."""

    words: str
    teacher: Literal["nobody", "ridge", "dictionary", "ensemble", "visual words"] = "ridge"
    epochs: int = EPOCHS
    objective: str = "residuals"
    sizes: dict[str, Any] = field(default_factory=dict)
    stain_jitter: float = Settings.stain_jitter
    smooth_labels: bool = False
    fitted_head: bool = False


RECIPES = {
    "m2ort": Recipe("not taught", teacher="nobody"),
    "m2ort-taught": Recipe("taught by ridge on the 52 features"),
    "m2ort-dictionary": Recipe("taught by the dictionary with programmes of all counts", teacher="dictionary"),
    "m2ort-distilled": Recipe("taught by the mean of three such dictionaries", teacher="ensemble"),
    "m2ort-words": Recipe(
        "self-supervised: taught which windows of the dictionary are in a patch; its head fitted along programmes",
        teacher="visual words",
        epochs=0,
        fitted_head=True,
    ),
    "m2ort-head": Recipe("taught by ridge; its head fitted along programmes of all counts", fitted_head=True),
    "m2ort-poisson": Recipe("taught by ridge; Poisson likelihood", objective="poisson"),
    "m2ort-nb": Recipe("taught by ridge; negative binomial likelihood", objective="nb"),
    "m2ort-mse": Recipe("taught by ridge; squared error on ln(1 + CPM)", objective="standardised-mse"),
    "m2ort-smooth": Recipe("taught by ridge; training labels smoothed over neighbours", smooth_labels=True),
    "m2ort-unvaried": Recipe("taught by ridge; stains not varied", stain_jitter=0.0),
    "m2ort-cross": Recipe("taught by ridge; mixing across levels", sizes={"mixing": "cross_level"}),
    "m2ort-deep": Recipe("taught by ridge; twice as deep", sizes={"depth": 6}),
}
SYSTEMS = {
    "m2ort-small": "M2ORT-Small, taught by ridge on the 52 features",
    "m2ost": "M2OST, taught by ridge on the 52 features",
    "triplex": "TRIPLEX, its ResNet18 taught the 52 features",
}
#: Tokens of half the side, for patches of a quarter of the side.
QUICK = f"{FLAGSHIP}:token_px=8"
#: Taught densely as `stpredict train` does by default, and what is other about a row, with patches of its own where
#: there is a cut. No epoch on spots follows.
DENSE: dict[str, tuple[str, str, Cut | None]] = {
    "m2ort-dense": (FLAGSHIP, "M2ORT-Small with two encoders, taught densely, as `stpredict train` does", None),
    "m2ort-dense-six": (FLAGSHIP.replace("depth=2:", ""), "the same with all six encoders", None),
    "m2ort-dense-pixels": (
        FLAGSHIP.replace(":pixels=density", ""),
        "`m2ort-dense`, pixels normalised as published",
        None,
    ),
    "m2ort-half": (FLAGSHIP, "`m2ort-dense` at half the resolution: 112 px of 1.38 um, 49 tokens", Cut(1.38, 112)),
    "m2ort-quick": (QUICK, "`m2ort-dense` at a quarter of it: 56 px of 2.8 um, 49 tokens of 8 px", Cut(2.8, 56)),
}


def train_student(row: str, part: Part, seed: int) -> Float:
    """Expression of the tested spots by a small M2ORT that is trained as RECIPES say."""
    recipe, tiles = RECIPES[row], part.tiles
    settings = Settings(teach_patches=TEACH_PATCHES, seed=seed, stain_jitter=recipe.stain_jitter)
    rows, tested = np.flatnonzero(part.train), np.flatnonzero(part.test)
    smooth = neighbour_mean(tiles.section, tiles.centres) if recipe.smooth_labels else None
    objective = make_objective(recipe.objective, part.counts, tiles.depth, tiles.section, part.train, smooth)
    folder = part.scratch / f"{row}-{seed}"
    folder.mkdir(exist_ok=True)
    log = Log(folder / "log.csv", lambda line: print(f"{row}: {line}", flush=True))
    course = Course(settings, log, folder, CPU)
    torch.manual_seed(seed)
    network = M2ORT(M2ORTConfig(len(part.panel), **(SIZES | recipe.sizes)))
    places = np.flatnonzero(np.isin(tiles.unlabelled_section, part.sections))
    places = np.random.default_rng(seed).choice(places, min(TEACH_PATCHES, len(places)), replace=False)
    if recipe.teacher == "visual words":
        teach_words(network, part, places, course)
    elif recipe.teacher != "nobody":
        lessons = ridge_lessons(
            part.unlabelled_colour, Observations(objective.targets, tiles, part.panel, rows, part.colour.__getitem__)
        )
        if recipe.teacher != "ridge":
            seeds = range(3) if recipe.teacher == "ensemble" else [seed]
            said = [dictionary_lessons(part, rows, places, each) for each in seeds]
            lessons[places, : len(part.panel)] = np.mean(said, axis=0)
        teach(network, tiles, lessons, places, course)
    if recipe.epochs:
        student = Student(
            network, plain_step(objective.loss), partial(predict_z, network, tiles, device=CPU), tiles.read_patches
        )
        stage = Stage("train", rows, recipe.epochs, settings.learning_rate)
        train_on_spots(student, tiles, objective, part.counts.__getitem__, stage, np.empty(0, np.int64), course)
    if not recipe.fitted_head:
        return objective.expression(predict_z(network, tiles, tested, CPU))
    network.eval()
    scale = objective.residual_scale
    known, asked = (describe_patches(network, tiles, each, CPU) for each in (rows, tested))
    z = fit_programmes(known, objective.targets[rows] / scale, part.covariances["all"]).predict(asked) * scale
    return objective.expression(z)


def dictionary_lessons(part: Part, rows: Int, places: Int, seed: int) -> Float:
    """What the dictionary, fitted on spots `rows`, predicts at unlabelled `places`, places x genes."""
    network = learn_windows(part.tiles, part.sections, len(part.panel), seed)
    total = NORMALISATIONS["total"]
    found, _ = fit_map(part.described(seed)[rows], rows, part.tiles, part.panel, part.objective, total)
    write_head(network, found)
    return np.concatenate([each.double().numpy() for each in say(network, part, places)])


def say(said: Callable[[Tensor], Tensor], part: Part, places: Int) -> Iterator[Tensor]:
    """What a dictionary, or a part of it, says of unlabelled patches, one after the other."""
    with torch.inference_mode():
        for place in places:
            yield said(torch.from_numpy(part.tiles.read_patches([place], unlabelled=True)))


def teach_words(network: M2ORT, part: Part, places: Int, course: Course) -> None:
    """Teach a network, without any counts, how near a patch's windows are to each of the dictionary's, which never saw
    any either.

    The patch is turned and its stains are varied, what it is taught is of the patch as it was (Gidaris et al. 2020,
    CVPR, "Learning representations by predicting bags of visual words").
    """
    dictionary = learn_windows(part.tiles, part.sections, len(part.panel), course.settings.seed)
    words = torch.cat(list(say(dictionary.features, part, places))).float()
    wanted = torch.zeros(len(part.tiles.unlabelled_section), words.shape[1])
    wanted[places] = ((words - words.mean(0)) / (words.std(0) + 1e-9)).clip(-TAUGHT_LIMIT, TAUGHT_LIMIT)
    head = network.head
    network.head = nn.Linear(head.in_features, words.shape[1])
    teach_values(network, part.tiles, wanted, places, course)
    network.head = head


def train_system(row: str, part: Part, seed: int, shared: Path) -> Float:
    """Expression of the tested spots by a system that is trained as `stpredict train` does, but briefly.

    The model of the first seed is kept in the scratch folder. TRIPLEX's frozen ResNet18 is taught once for all seeds.
    """
    folder = part.scratch / "systems" / f"{row}-{seed}"
    settings = Settings(row, teach_patches=1, batch_size=SYSTEM_BATCH, seed=seed)  # each unlabelled patch once
    data = open_data(shared, part.scratch.parent, architecture_views(row), SYSTEM_UNLABELLED)
    run = Run(*data, Panel(), settings, "not to be passed on", CPU, lambda line: print(f"{row}: {line}", flush=True))
    if reads_slides(row):
        run = replace(run, sections=read_dataset(shared / "data" / "her2st"), weights=taught_trunk(run, part))
    trained = train_network(run, part.sections, (), SYSTEM_EPOCHS, folder)
    assert trained.panel == part.panel
    if seed == 0:
        write_trained(run, trained, folder / "model.safetensors", f"{row}-{part.scratch.name}", ())
    return trained.objective.expression(predict_rows(run, trained, np.flatnonzero(part.test)))


def teach_dense(row: str, part: Part, seed: int, shared: Path) -> Float:
    """Expression of the tested spots by a network that is taught densely, its head fitted along programmes."""
    architecture, _, cut = DENSE[row]
    settings = Settings(architecture, seed=seed)
    tiles = part.tiles if cut is None else open_tiles(shared, part.scratch.parent, cut=cut)

    def report(line: str) -> None:
        print(f"{row}: {line}", flush=True)

    run = Run(tiles, part.colour, part.unlabelled_colour, Panel(), settings, "not to be passed on", CPU, report)
    trained = train_network(run, part.sections, (), 0, part.scratch / "dense" / f"{row}-{seed}")
    assert trained.panel == part.panel
    return trained.objective.expression(predict_rows(run, trained, np.flatnonzero(part.test)))


def taught_trunk(run: Run, part: Part) -> dict[str, Tensor]:
    """A ResNet18 that was taught the 52 features of the training sections' unlabelled patches."""
    path = part.scratch / "systems" / "trunk.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        settings = replace(run.settings, seed=0)
        network = new_network(settings, run.tiles.patch_px, len(part.panel))
        places = np.flatnonzero(np.isin(run.tiles.unlabelled_section, part.sections))
        course = Course(settings, Log(path.with_suffix(".csv"), run.report), path.parent, CPU)
        teach_trunk(network, run.tiles, run.unlabelled_features, places, course)
        save_file(network.trunk.state_dict(), path)
    return load_file(path)
