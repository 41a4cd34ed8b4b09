"""Train one network: teach it the ridge baseline on unlabelled tissue, then train it on measured spots."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from stpredict.arrays import Float, Int
from stpredict.data.tiles import Tiles
from stpredict.errors import UsageError
from stpredict.evaluation.baselines import fit_ridge
from stpredict.evaluation.described import MOST_TAUGHT, is_described
from stpredict.networks import BankNetwork, Network, architecture_config, has_bank, make_network, reads_sections
from stpredict.networks.draws import sharing
from stpredict.networks.head import Head
from stpredict.networks.patch_level import PatchNetwork
from stpredict.networks.triplex import Triplex
from stpredict.statistics import metrics
from stpredict.statistics.blocks import per_section, rows_of_sections
from stpredict.statistics.objectives import Objective
from stpredict.statistics.sampling import draw_evenly
from stpredict.training.augmentation import augment, jitter_stain
from stpredict.training.head_sums import Observations
from stpredict.training.held_signals import held_signals
from stpredict.training.log import Log
from stpredict.training.optimisers import make_optimiser, make_schedule
from stpredict.training.processes import in_bf16, sum_over_all, world_and_rank
from stpredict.training.progress import Pace, watching_steps
from stpredict.training.reading import read_ahead
from stpredict.training.sampling import Part, Stage, divide, draw_epoch, groups_to_balance
from stpredict.training.settings import Settings, teach_learning_rate
from stpredict.training.states import SAVE_BEFORE_SCORING_S, HasState, Place, State, random_state, set_random_state

#: The mean loss, from the network, patches and the indices of their items.
Step = Callable[[nn.Module, Tensor, Int], Tensor]
#: Standardised features and ridge predictions beyond this many spreads are artefacts that would dominate the teaching.
TAUGHT_LIMIT = 4.0


@dataclass(frozen=True)
class Course:
    """Shared by all stages of one network's training: the settings, its log, the folder of its states, its device.

    A process computes its share of a batch in `parts`, one after the other.
    """

    settings: Settings
    log: Log
    folder: Path
    device: torch.device
    parts: int = 1


@dataclass(frozen=True)
class Student:
    """A network that is trained on measured spots, the loss of a batch, and its raw output for spots.

    `read` gives the patches of some spots, or features in their place. The output is z, which an objective turns into
    expression; if `says_z` is false, it is expression. A student that `knows` something may be best before any epoch.
    """

    network: Network
    step: Step
    predict: Callable[[Int], Float]
    read: Callable[[Int], Any]
    says_z: bool = True
    knows: bool = False


def plain_step(loss: Callable[[Tensor, Tensor], Tensor]) -> Step:
    """The step for `fit` that takes the `loss` of a network's output for patches, and the indices of their items."""

    def step(model: nn.Module, patches: Tensor, items: Int) -> Tensor:
        with in_bf16(patches.device):
            z = model(patches)
        return loss(z.float(), torch.from_numpy(items))

    return step


@dataclass(frozen=True)
class Descent:
    """Gradient descent of a network's parameters. Each step adds the gradients of some losses."""

    network: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    clips_gradients: bool

    def begin(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def add(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        if self.clips_gradients:
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()


class Learning(nn.Module):
    """The loss of a network, as a module: processes wait for one another's gradients, whatever the step computes."""

    def __init__(self, network: nn.Module, step: Step) -> None:
        super().__init__()
        self.network, self.step = network, step

    def forward(self, patches: Tensor, items: Int) -> Tensor:
        return self.step(self.network, patches, items)


def losses_of(
    model: nn.Module, read: Callable[[Int], Any], stage: Stage, course: Course, batches: Sequence[tuple[Int, Int]]
) -> Iterator[tuple[int, Iterator[tuple[Tensor, float]]]]:
    """For each batch its number of items, and its parts of this process: their mean losses, and what these count.

    A part is computed when it is asked for, so that the memory of the one before can be free.
    """
    settings, device = course.settings, course.device
    divided = [divide(stage, *batch, course.parts, *world_and_rank()) for batch in batches]
    own = [(part.items, part.turns) for parts in divided for part in parts]
    coming = read_ahead(read, own, stage.varied, pin=device.type == "cuda")

    def compute(parts: Sequence[Part]) -> Iterator[tuple[Tensor, float]]:
        random = random_state(device)
        for number, part in enumerate(parts):
            items, given = next(coming)
            if number:  # each part draws the numbers of the whole batch
                set_random_state(random, device)
            with sharing(part.share), waiting(model, number + 1 == len(parts)):
                patches = given.to(device, non_blocking=True)
                if settings.stain_jitter and stage.varied:
                    patches = jitter_stain(patches, settings.stain_jitter)
                loss = model(patches, items)
            yield loss, part.weight

    for (items, _), parts in zip(batches, divided, strict=True):
        yield len(items), compute(parts)


def waiting(model: nn.Module, last: bool) -> AbstractContextManager[None]:
    """While a loss is computed: processes add their gradients up after the last part of a batch, not before."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()


@contextmanager
def in_memory(course: Course) -> Iterator[None]:
    """Raises UsageError if a GPU has too little memory for a part of a batch, and smaller parts are possible."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        architecture, parts = course.settings.architecture, 2 * course.parts
        at_once = -(-course.settings.batch_size // (course.parts * world_and_rank()[0]))
        if at_once == 1 or has_bank(architecture) or reads_sections(architecture):
            raise
        raise UsageError(
            f"{course.device}: has too little memory for {at_once} patches at once; the same call with --accumulate "
            f"{parts} computes each batch in {parts} parts, and goes on with this run."
        ) from error


def fit(
    network: nn.Module, read: Callable[[Int], Any], step: Step, stage: Stage, course: Course
) -> Iterator[tuple[int, float, float]]:
    """Train on the items of a `stage`; yield (epoch from 1, mean loss, seconds) after each epoch.

    The settings' seed, the epoch and the step determine what a step computes. The state is written to the course's
    folder every few minutes, after each epoch, and when a signal says to stop; a killed run goes on from there as if
    undisturbed. Under torchrun each process takes its share of every batch, and computes it in the course's parts.
    Together they compute what one process would at once, except that each batch norm sees one part.
    Raises UsageError if a GPU has too little memory for a batch that can be computed in more parts.
    """
    settings, device, epochs = course.settings, course.device, stage.epochs
    world, rank = world_and_rank()
    network.to(device)
    model: nn.Module = Learning(network, step)
    if world > 1:
        # Nobody reads what EGN's last bridge says of exemplars.
        model = DistributedDataParallel(model, find_unused_parameters=stage.compares)
    steps = stage.n_steps(settings.batch_size)
    optimizer = make_optimiser(network, settings.how, stage.learning_rate, settings.weight_decay)
    schedule = make_schedule(optimizer, settings.how, stage.learning_rate, steps, epochs)
    descent = Descent(network, optimizer, schedule, settings.how.clips_gradients)
    parts: dict[str, HasState] = {"network": network, "optimizer": optimizer, "schedule": schedule}
    state = State(course.folder / f"{stage.name}.pt", parts, device)
    done = state.restore()
    for epoch in range(done.epoch + 1, epochs + 1):
        started, total = time.monotonic() - done.seconds, torch.tensor(done.loss, dtype=torch.float64, device=device)
        batches = draw_epoch(stage, settings, epoch)
        n_items = sum(len(items) for items, _ in batches)
        torch.manual_seed(1_000_003 * settings.seed + 1_009 * epoch)
        state.restore_random(done)
        model.train()
        losses = losses_of(model, read, stage, course, batches[done.step :])
        pace = Pace(steps, done.step, steps * (epochs - epoch))
        what = f"{course.folder.name}: {stage.name} epoch {epoch} of {epochs}"
        with held_signals() as held, watching_steps(what, pace, course.log.report) as advance, in_memory(course):
            for n, computed in losses:
                descent.begin()
                for loss, weight in computed:
                    descent.add(loss * (world * weight))  # processes take the mean of it
                    total += sum_over_all(loss.detach().double() * weight) * n  # read, and so waited for, once an epoch
                descent.step()
                advance(n)
                if held.number is not None or state.is_due(SAVE_BEFORE_SCORING_S if pace.done == steps else None):
                    state.keep(Place(epoch - 1, pace.done, float(total), time.monotonic() - started))
                if held.number is not None and rank == 0:  # the others stop with the first, which writes the state
                    held.deliver()
        yield epoch, float(total) / n_items, time.monotonic() - started
        done = Place(epoch)
        state.keep(done)


def predict_z(
    network: Network, tiles: Tiles, index: Int, device: torch.device, batch_size: int = 64, turns: int = 1
) -> Float:
    """The network's raw output for some spots, in fp32, spots x genes: the mean of the first `turns` symmetries."""
    network.to(device).eval()
    out = []
    with torch.inference_mode():
        for start in range(0, len(index), batch_size):
            read = tiles.read_patches(index[start : start + batch_size])
            turned = (torch.from_numpy(augment(read, np.full(len(read), code))) for code in range(turns))
            out.append(sum(network(patches.to(device)).double() for patches in turned).cpu().numpy() / turns)
    return np.concatenate(out) if out else np.empty((0, network.config.n_genes))


def new_network(settings: Settings, patch_px: int, n_genes: int, **more: Any) -> Network:
    """A network with random weights. Raises UsageError if it does not take patches of this size."""
    torch.manual_seed(settings.seed)
    try:
        return make_network(architecture_config(settings.architecture, n_genes=n_genes, patch_px=patch_px, **more))
    except ValueError as error:
        raise UsageError(f"--arch {settings.architecture}: {error}.") from error


def empty_trunk(settings: Settings, patch_px: int) -> nn.Module:
    """The trunk of a network that has one, without memory for its tensors."""
    with torch.device("meta"):
        network = new_network(settings, patch_px, 1)
    if isinstance(network, PatchNetwork):
        return network.trunk
    assert isinstance(network, Triplex | BankNetwork)
    return network.first_trunk


def ridge_lessons(unlabelled_features: Float, observed: Observations) -> Float:
    """Ridge predictions at the unlabelled places, places x outputs, from colour and texture; fitted on those observed.

    The 52 features follow the genes as further outputs, so that nothing is lost that ridge could use. Unmeasured genes
    are 0. Of many spots it learns from as many as baselines do.
    """
    rows = observed.rows[is_described(observed.describe(observed.rows))]
    rows = rows[draw_evenly(observed.tiles.section[rows], MOST_TAUGHT)]
    ridge = fit_ridge(observed.describe(rows), observed.table[rows])
    return np.hstack([np.nan_to_num(ridge.predict(unlabelled_features)), unlabelled_features])


def teach_values(network: nn.Module, tiles: Tiles, wanted: Tensor, places: Int, course: Course) -> None:
    """Train a network to predict the `wanted` values at some `places`; there is a row for each unlabelled place."""
    settings = course.settings
    epochs, groups = (
        -(-settings.teach_patches // len(places)), groups_to_balance(tiles, settings.balance, tiles.unlabelled_section),
    )  # fmt: skip
    stage = Stage("teach", places, epochs, teach_learning_rate(settings, "ridge"), groups=groups)
    step = plain_step(lambda z, index: F.mse_loss(z, wanted[index].to(z.device)))
    read = partial(tiles.read_patches, unlabelled=True)
    for epoch, loss, seconds in fit(network, read, step, stage, course):
        course.log.add(stage.name, epoch, loss, seconds)


def teach(network: Network, tiles: Tiles, taught: Float, places: Int, course: Course) -> None:
    """Teach a network a teacher's predictions at the unlabelled `places`.

    `taught` has a row per place. Its first columns are the genes' z; further columns are taught beside them.
    """
    mean, spread = taught[places].mean(axis=0), taught[places].std(axis=0) + 1e-9
    wanted = torch.as_tensor(np.clip((taught - mean) / spread, -TAUGHT_LIMIT, TAUGHT_LIMIT), dtype=torch.float32)
    head, n_genes = network.head, network.config.n_genes
    assert isinstance(head, Head)
    network.head = Head(head.in_features, taught.shape[1], "identity")
    teach_values(network, tiles, wanted, places, course)
    scale, shift = (torch.as_tensor(x[:n_genes], dtype=torch.float32, device=course.device) for x in (spread, mean))
    with torch.no_grad():
        head = head.to(course.device)
        head.weight.copy_(network.head.weight[:n_genes] * scale[:, None])
        head.bias.copy_(network.head.bias[:n_genes] * scale + shift)
    network.head = head


def score_sections(
    student: Student, tiles: Tiles, objective: Objective, counts_of: Callable[[Int], Float], rows: Int
) -> Float:
    """The depth-controlled correlation of each gene in each section of one patient's spots, sections x genes."""
    predicted = student.predict(rows)
    expression = objective.expression(predicted) if student.says_z else predicted
    return per_section(
        lambda depth, p, x: metrics.correlation_per_gene(p, metrics.pearson_residuals(x, depth)),
        tiles.section[rows], objective.depth[rows], expression, counts_of(rows),
    )  # fmt: skip


def train_on_spots(
    student: Student, tiles: Tiles, objective: Objective, counts_of: Callable[[Int], Float], stage: Stage,
    validation: Int, course: Course,
) -> None:  # fmt: skip
    """Train on a `stage`'s spots. Log the score on spots `validation`, if any, after each epoch.

    `counts_of` gives the counts of spots, spots x genes. There is no score if the validation measured none of the
    genes. If the student knows something, its score before the first epoch is logged, too.
    """

    def score() -> float | None:
        if not len(validation):
            return None
        patients = rows_of_sections(tiles.kin[validation])
        found = [score_sections(student, tiles, objective, counts_of, validation[rows]) for rows in patients]
        per_gene = metrics.mean_of_known(np.concatenate(found))
        known = per_gene[np.isfinite(per_gene)]
        return float(known.mean()) if len(known) else None

    if student.knows and len(validation) and not course.log.has(stage.name):
        course.log.add(stage.name, 0, None, 0, score())
    if not stage.epochs:
        return
    for epoch, loss, seconds in fit(student.network, student.read, student.step, stage, course):
        course.log.add(stage.name, epoch, loss, seconds, score())
