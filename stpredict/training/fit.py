"""Train one network: teach it the ridge baseline on unlabelled tissue, then train it on measured spots."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.color import rgb_from_hed
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from stpredict.arrays import Float, Int, UInt8
from stpredict.data.tiles import Tiles
from stpredict.errors import UsageError
from stpredict.evaluation.baselines import fit_ridge
from stpredict.machine import multiplies_bf16
from stpredict.networks import Network, architecture_config, make_network
from stpredict.networks.head import Head
from stpredict.networks.patch_level import PatchNetwork
from stpredict.networks.triplex import Triplex
from stpredict.slides.symmetry import SYMMETRIES, turn
from stpredict.statistics import metrics
from stpredict.statistics.objectives import Objective
from stpredict.storage.files import atomic_path
from stpredict.training.settings import Settings

Report = Callable[[str], None]
#: From the network, patches and which items they are of, the mean loss.
Step = Callable[[nn.Module, Tensor, Int], Tensor]
LOG_COLUMNS = ("stage", "epoch", "loss", "validation", "seconds")
#: Standardised features and ridge predictions beyond this many spreads are artefacts; they would rule the teaching.
TAUGHT_LIMIT = 4.0
#: For a process that waits while the first one cuts patches.
LONGEST_WAIT = timedelta(hours=24)


@dataclass
class Log:
    """The training log of one network: a CSV file, rewritten whole after each epoch."""

    path: Path
    report: Report
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.path.exists():
            with self.path.open(newline="") as file:
                self.rows = [{**row, "epoch": int(row["epoch"])} for row in csv.DictReader(file)]

    def add(self, stage: str, epoch: int, loss: float, seconds: float, validation: float | None = None) -> None:
        self.rows = [row for row in self.rows if row["stage"] != stage or row["epoch"] < epoch]
        shown = "" if validation is None else f"{validation:.4f}"
        self.rows.append(dict(zip(LOG_COLUMNS, (stage, epoch, f"{loss:.5f}", shown, f"{seconds:.0f}"), strict=True)))
        score = f", validation depth-controlled correlation {shown}" if shown else ""
        self.report(f"{stage} epoch {epoch}: loss {loss:.4f}{score} ({seconds:.0f} s)")
        if is_main_process():
            with atomic_path(self.path) as temporary, temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, LOG_COLUMNS)
                writer.writeheader()
                writer.writerows(self.rows)

    def best_epoch(self, stage: str) -> int | None:
        """The epoch with the best validation score."""
        scored = [
            (float(row["validation"]), -row["epoch"])
            for row in self.rows
            if row["stage"] == stage and row["validation"]
        ]
        return -max(scored)[1] if scored else None


@dataclass(frozen=True)
class Course:
    """What all stages of one network's training share: how it is trained, its log, its states' folder, its device."""

    settings: Settings
    log: Log
    folder: Path
    device: torch.device


@dataclass(frozen=True)
class Stage:
    """A stage of training: the items that it trains on, how often, and the peak of its learning rate."""

    name: str
    items: Int
    epochs: int
    learning_rate: float


@dataclass(frozen=True)
class Student:
    """A network that is trained on measured spots, the loss of a batch, and its raw output for spots."""

    network: Network
    step: Step
    predict: Callable[[Int], Float]


def is_main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the other processes that torchrun started, if it did."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        on_gpu = pick_device(device).type == "cuda"
        if on_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=LONGEST_WAIT)
    try:
        yield
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def wait_for_all() -> None:
    if distributed.is_initialized():
        distributed.barrier()


def agree_on(value: int | None) -> int | None:
    """What the first process says, in all of them."""
    values = [value]
    if distributed.is_initialized():
        distributed.broadcast_object_list(values)
    return values[0]


def pick_device(name: str = "auto") -> torch.device:
    """Raises UsageError for a device that is not there."""
    if name != "auto":
        if name.split(":")[0] not in ("cpu", "cuda") or (name != "cpu" and not torch.cuda.is_available()):
            raise UsageError(
                f"--device {name}: not a device of this machine; choose cpu, or cuda where there is a GPU."
            )
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def computes_bf16(device: torch.device) -> bool:
    """Whether bf16 is more than imitated there; where it is not, fp32 trains two to three times as fast."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return multiplies_bf16()


def augment(patches: UInt8, symmetry: Int) -> UInt8:
    """Turn each patch, all its views alike, into one of the eight flips and rotations of the square, 0 to 7."""
    return np.stack([turn(patch, code) for patch, code in zip(patches, symmetry, strict=True)])


def jitter_stain(patches: Tensor, spread: float) -> Tensor:
    """Vary the stains of uint8 patches: each one's haematoxylin, eosin and rest are scaled at random, in all its views.

    After Tellez et al. 2018, IEEE Transactions on Medical Imaging 37:2126, with `spread` the standard deviation of
    the factors. Laboratories and scanners differ in just this, and a few sections do not show how much.
    """
    stains = torch.tensor(rgb_from_hed, dtype=torch.float32, device=patches.device)
    density = -torch.log((patches.float() + 1) / 256)
    concentration = density @ torch.linalg.inv(stains)
    factors = 1 + spread * torch.randn(len(patches), *[1] * (patches.ndim - 2), 3, device=patches.device)
    varied = 256 * torch.exp(-(concentration * factors) @ stains) - 1
    return varied.clamp(0, 255).round().to(torch.uint8)


def in_bf16(device: torch.device) -> torch.autocast:
    """Computes what may be in bf16, where the device has it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=computes_bf16(device))


def plain_step(loss: Callable[[Tensor, Tensor], Tensor]) -> Step:
    """The loss of what a network says of patches, for `fit`; `loss` takes that and the indices of the items."""

    def step(model: nn.Module, patches: Tensor, items: Int) -> Tensor:
        with in_bf16(patches.device):
            z = model(patches)
        return loss(z.float(), torch.from_numpy(items))

    return step


def fit(
    network: nn.Module, read: Callable[[Int], UInt8], step: Step, stage: Stage, course: Course
) -> Iterator[tuple[int, float, float]]:
    """Train on the items of a `stage`; yield (epoch from 1, mean loss, seconds) after each epoch.

    The state after each epoch is kept in the course's folder, from which a killed run resumes as if undisturbed.
    Under torchrun each process takes its share of every batch.
    """
    settings, device, index, epochs = course.settings, course.device, stage.items, stage.epochs
    state = course.folder / f"{stage.name}.pt"
    world, rank = (distributed.get_world_size(), distributed.get_rank()) if distributed.is_initialized() else (1, 0)
    network.to(device)
    model: nn.Module = DistributedDataParallel(network) if world > 1 else network
    optimizer = torch.optim.AdamW(network.parameters(), stage.learning_rate, weight_decay=settings.weight_decay)
    steps = -(-len(index) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, stage.learning_rate, total_steps=steps * epochs)
    done = 0
    if state.exists():
        saved = torch.load(state, map_location=device, weights_only=True)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        done = saved["epoch"]
    for epoch in range(done + 1, epochs + 1):
        started, total = time.monotonic(), 0.0
        rng = np.random.default_rng((settings.seed, epoch))
        torch.manual_seed(1_000_003 * settings.seed + 1_009 * epoch + rank)
        model.train()
        order, symmetry = rng.permutation(index), rng.integers(0, SYMMETRIES, len(index))
        # A last batch with fewer spots than processes would leave one of them waiting for ever.
        for start in range(0, len(order) - world + 1, settings.batch_size):
            mine = slice(start + rank, min(start + settings.batch_size, len(order)), world)
            items = order[mine]
            patches = torch.from_numpy(augment(read(items), symmetry[mine])).to(device)
            patches = jitter_stain(patches, settings.stain_jitter)
            batch_loss = step(model, patches, items)
            optimizer.zero_grad(set_to_none=True)
            batch_loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(batch_loss.detach()) * len(items)
        yield epoch, total / (len(order) / world), time.monotonic() - started
        if rank == 0:
            saved = {
                "network": network.state_dict(), "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(), "epoch": epoch,
            }  # fmt: skip
            with atomic_path(state) as temporary:
                torch.save(saved, temporary)


def predict_z(network: Network, tiles: Tiles, index: Int, device: torch.device, batch_size: int = 64) -> Float:
    """The network's raw output for some spots, in fp32, spots x genes."""
    network.to(device).eval()
    out = []
    with torch.inference_mode():
        for start in range(0, len(index), batch_size):
            patches = torch.from_numpy(tiles.read_patches(index[start : start + batch_size])).to(device)
            out.append(network(patches).double().cpu().numpy())
    return np.concatenate(out) if out else np.empty((0, network.config.n_genes))


def new_network(settings: Settings, patch_px: int, n_genes: int) -> Network:
    """A network with random weights. Raises UsageError if it does not take patches of this size."""
    torch.manual_seed(settings.seed)
    try:
        return make_network(architecture_config(settings.architecture, n_genes=n_genes, patch_px=patch_px))
    except ValueError as error:
        raise UsageError(f"--arch {settings.architecture}: {error}.") from error


def empty_trunk(settings: Settings, patch_px: int) -> nn.Module:
    """The trunk of a network that has one, without memory for its tensors."""
    with torch.device("meta"):
        network = new_network(settings, patch_px, 1)
    assert isinstance(network, Triplex | PatchNetwork)
    return network.trunk


def ridge_lessons(features: Float, unlabelled_features: Float, objective: Objective, rows: Int) -> Float:
    """What ridge on colour and texture, fitted on spots `rows`, predicts at the unlabelled places, places x outputs.

    The 52 features themselves follow the genes, so that nothing ridge could use is lost.
    """
    ridge = fit_ridge(features[rows], objective.targets[rows])
    predicted = ridge.predict(unlabelled_features).reshape(len(unlabelled_features), -1)  # flat for one gene
    return np.hstack([predicted, unlabelled_features])


def teach_values(network: nn.Module, tiles: Tiles, wanted: Tensor, places: Int, course: Course) -> None:
    """Train a network to say the `wanted` values, a row per unlabelled place, at some `places`."""
    settings = course.settings
    stage = Stage("teach", places, -(-settings.teach_patches // len(places)), settings.teach_learning_rate)
    step = plain_step(lambda z, index: F.mse_loss(z, wanted[index].to(z.device)))
    read = partial(tiles.read_patches, unlabelled=True)
    for epoch, loss, seconds in fit(network, read, step, stage, course):
        course.log.add(stage.name, epoch, loss, seconds)


def teach(network: Network, tiles: Tiles, taught: Float, places: Int, course: Course) -> None:
    """Teach a network what a teacher predicts at the unlabelled `places`.

    `taught` has a row per place and first a column per gene, z; further columns are taught beside them.
    """
    mean, spread = taught[places].mean(axis=0), taught[places].std(axis=0) + 1e-9
    wanted = torch.as_tensor(np.clip((taught - mean) / spread, -TAUGHT_LIMIT, TAUGHT_LIMIT), dtype=torch.float32)
    head, n_genes = network.head, network.config.n_genes
    network.head = Head(head.in_features, taught.shape[1], "identity")
    teach_values(network, tiles, wanted, places, course)
    scale, shift = (torch.as_tensor(x[:n_genes], dtype=torch.float32, device=course.device) for x in (spread, mean))
    with torch.no_grad():
        head = head.to(course.device)
        head.weight.copy_(network.head.weight[:n_genes] * scale[:, None])
        head.bias.copy_(network.head.bias[:n_genes] * scale + shift)
    network.head = head


def train_on_spots(
    student: Student, tiles: Tiles, objective: Objective, panel_counts: Float, stage: Stage, validation: Int,
    course: Course,
) -> None:  # fmt: skip
    """Train on the measured spots of a `stage`; after each epoch log the score on the spots `validation`, if any."""
    for epoch, loss, seconds in fit(student.network, tiles.read_patches, student.step, stage, course):
        score = None
        if len(validation):
            expression = objective.expression(student.predict(validation))
            per_gene = metrics.depth_controlled_correlation(
                expression, panel_counts[validation], objective.depth[validation], tiles.section[validation]
            )
            score = float(np.nanmean(per_gene))
        course.log.add(stage.name, epoch, loss, seconds, score)
