"""Small stages of training, one for each way in which networks learn from a batch, on made-up patches and counts."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from patch_networks import TINY
from torch import Tensor, nn

from stpredict.data.tiles import Tiles
from stpredict.networks import make_network
from stpredict.networks.bleep import Bleep, BleepConfig
from stpredict.networks.egn import Egn, EgnConfig
from stpredict.networks.istar import IStar, IStarConfig
from stpredict.networks.m2ort import M2ORT, M2ORTConfig
from stpredict.networks.patch_level import PatchConfig
from stpredict.networks.triplex import N_NEIGHBOURS, VIEWS, Triplex, TriplexConfig, View
from stpredict.prediction.surroundings import Surroundings
from stpredict.statistics.objectives import Objective, make_objective
from stpredict.training import processes
from stpredict.training.encoded import encode_spots
from stpredict.training.fit import Course, Step, fit, plain_step
from stpredict.training.hierarchy import superpixel_step
from stpredict.training.log import Log
from stpredict.training.retrieval import Measurements, bank_step
from stpredict.training.sampling import Stage
from stpredict.training.settings import Settings
from stpredict.training.triplex import freeze_trunk, triplex_step

CPU = torch.device("cpu")
N_SPOTS, N_GENES = 24, 3
ITEMS = np.arange(3, N_SPOTS)
PX, SMALL_PX = 64, 32
#: All that is drawn at random is in use: turns, stains, masks, dropout.
SETTINGS = Settings(batch_size=4, stain_jitter=0.1, learning_rate=1e-3, seed=3)
STAGE = Stage("train", ITEMS, 3, 1e-3)
#: The same, of which four groups, of 15, 3, 2 and 1 items, count alike.
BALANCED = replace(STAGE, groups=np.repeat([0, 1, 2, 3, 4], [3, 15, 3, 2, 1]))
STEPS = 6
SECTION = np.repeat(np.array(["A", "B", "C"], dtype=object), [10, 9, 5])
TILES = cast(Tiles, SimpleNamespace(section=SECTION))


FEATURES = np.random.default_rng(2).normal(size=(N_SPOTS, 4)) * 100


class Killed(BaseException):
    """As a power cut: nothing is done about it."""


def read(index: np.ndarray, px: int = PX) -> np.ndarray:
    return np.stack([np.random.default_rng(i).integers(0, 256, (px, px, 3)) for i in index]).astype(np.uint8)


def values(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Lesson:
    """What `fit` takes."""

    network: nn.Module
    step: Step
    stage: Stage = STAGE
    read: Callable[[np.ndarray], Any] = read


def new_m2ort() -> M2ORT:
    torch.manual_seed(0)
    sizes = {"channels": 12, "depth": 2, "heads": 1, "head_dim": 12, "dropout": 0.2}
    network = make_network(M2ORTConfig(n_genes=N_GENES, patch_px=SMALL_PX, **sizes))
    assert isinstance(network, M2ORT)
    return network


def of_m2ort(stage: Stage = STAGE) -> Lesson:
    targets = values(N_SPOTS, N_GENES)
    learn = plain_step(lambda z, index: ((z - targets[index]) ** 2).mean())
    return Lesson(new_m2ort(), learn, stage, partial(read, px=SMALL_PX))


def new_objective(gaps: bool) -> Objective:
    """With `gaps`, section C did not measure two of the genes."""
    counts = np.random.default_rng(0).poisson(5.0, (N_SPOTS, N_GENES)).astype(float)
    if gaps:
        counts[np.ix_(SECTION == "C", [0, 2])] = np.nan
    return make_objective("residuals", counts, np.full(N_SPOTS, 50.0), SECTION, np.ones(N_SPOTS, dtype=bool))


def once(objective: Objective, **more: Any) -> Stage:
    return replace(STAGE, epochs=1, values=np.isfinite(objective.targets).sum(axis=1), **more)


def of_trunk(name: str) -> Lesson:
    """A trunk with batch norms, or with dropout, and masked genes."""
    torch.manual_seed(0)
    sizes = {key: value for key, value in TINY[name].items() if key != "network"}
    objective = new_objective(gaps=True)
    network = make_network(PatchConfig(N_GENES, patch_px=PX, **sizes))
    return Lesson(network, plain_step(objective.loss), once(objective))


def of_triplex(reads: tuple[View, ...] = VIEWS) -> Lesson:
    torch.manual_seed(0)
    network = Triplex(TriplexConfig(
        N_GENES, channels=8, fusion_heads=2, global_depth=2, global_heads=2, neighbour_depth=1, neighbour_heads=2,
        trunk_width=2, patch_px=PX, reads=reads,
    ))  # fmt: skip
    freeze_trunk(network)
    known = {}
    for number, name in enumerate(("A", "B", "C")):
        n = int((name == SECTION).sum())
        around = values(n, N_NEIGHBOURS, network.n_described).half().numpy() + number
        absent = np.random.default_rng(number).random((n, N_NEIGHBOURS)) < 0.2
        cells = np.stack(np.divmod(np.arange(n), 4), axis=1)
        known[name] = SimpleNamespace(
            own=around[:, 0].copy, around=SimpleNamespace(cells=cells),
            neighbours=lambda spots, around=around, absent=absent: (around[spots], absent[spots]),
        )  # fmt: skip
    objective = new_objective(gaps=True)
    step = triplex_step(network, cast(Mapping[str, Surroundings], known), TILES, objective, True, CPU)
    return Lesson(network, step, once(objective))


def of_bank(kind: type[Bleep] | type[Egn]) -> Lesson:
    torch.manual_seed(0)
    trunk = {"trunk": "resnet18", "trunk_width": 2, "patch_px": PX}
    network: Bleep | Egn = Bleep(BleepConfig(N_GENES, nearest=2, projection=8, **trunk))
    if kind is Egn:
        network = Egn(EgnConfig(
            N_GENES, exemplars=2, channels=16, depth=2, heads=2, mlp_dim=16, bridge_heads=2, bridge_dim=4, **trunk
        ))  # fmt: skip
    objective = new_objective(gaps=False)
    measured = Measurements(objective.targets, objective.targets, SECTION, ITEMS, 0, values(N_SPOTS, 16))
    return Lesson(network, bank_step(network, measured, objective, CPU), once(objective, compares=True))


def of_istar() -> Lesson:
    torch.manual_seed(0)
    network = IStar(IStarConfig(
        tile_width=12, tile_depth=1, tile_heads=2, region_width=12, region_depth=1, region_heads=2, n_genes=N_GENES,
        hidden=8, layers=2, states=2,
    ))  # fmt: skip
    objective = new_objective(gaps=True)
    superpixels = values(N_SPOTS, 5, network.frozen.n_superpixel).numpy()
    return Lesson(network, superpixel_step(network, objective), once(objective, varied=False), superpixels.__getitem__)


LESSONS: dict[str, Callable[[], Lesson]] = {
    "m2ort": of_m2ort,
    "balanced": partial(of_m2ort, BALANCED),
    "stnet": partial(of_trunk, "stnet"),
    "deepspace": partial(of_trunk, "deepspace"),
    "triplex": of_triplex,
    "triplex-around": partial(of_triplex, ("neighbour", "global")),
    "bleep": partial(of_bank, Bleep),
    "egn": partial(of_bank, Egn),
    "istar": of_istar,
}


def train(
    folder: Path, name: str = "m2ort", at: int = -1, what: BaseException | signal.Signals | None = None, parts: int = 1
) -> dict[str, Tensor]:
    """Train in a folder, in fp32, as bf16 rounds more; in this call's step number `at`, from 0, something happens.

    Without a `what`, it is killed.
    """
    folder.mkdir(exist_ok=True, parents=True)
    lesson, steps = LESSONS[name](), iter(range(1000))

    def step(model: nn.Module, patches: Tensor, items: np.ndarray) -> Tensor:
        if next(steps) == at:
            if isinstance(what, signal.Signals):
                signal.raise_signal(what)
            else:
                raise what or Killed
        return lesson.step(model, patches, items)

    log, stage = Log(folder / "log.csv", lambda _line: None), lesson.stage
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "computes_bf16", lambda _device: False)
        for epoch, loss, seconds in fit(
            lesson.network, lesson.read, step, stage, Course(SETTINGS, log, folder, CPU, parts)
        ):
            log.add(stage.name, epoch, loss, seconds)
    weights = dict(lesson.network.state_dict())
    torch.save(weights, folder / "weights")
    return weights


def encode(cache: Path, at: int = -1) -> list[int]:
    """Encode all spots; the rows that this call describes. It is killed in section number `at`, from 0."""
    described: list[int] = []
    sections = iter(range(3))

    def describe(rows: np.ndarray) -> np.ndarray:
        if next(sections) == at:
            raise Killed
        described.extend(rows.tolist())
        return FEATURES[rows]

    encode_spots(TILES, describe, cache)
    return described


def losses(folder: Path) -> list[str]:
    return [row["loss"] for row in Log(folder / "log.csv", print).rows]
