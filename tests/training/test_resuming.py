from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from stpredict.data.tiles import Tiles
from stpredict.networks import make_network
from stpredict.networks.attention import random_mask
from stpredict.networks.draws import Dropout, Share, draw, sharing
from stpredict.networks.m2ort import M2ORT, M2ORTConfig
from stpredict.statistics.objectives import make_objective
from stpredict.training import processes, states
from stpredict.training.fit import Course, Student, fit, plain_step, train_on_spots
from stpredict.training.log import Log
from stpredict.training.sampling import Stage
from stpredict.training.settings import Settings

CPU = torch.device("cpu")
ITEMS = np.arange(3, 24)
PX = 32
#: All that is drawn at random is in use: turns, stains, masks, dropout.
SETTINGS = Settings(batch_size=4, stain_jitter=0.1, learning_rate=1e-3, seed=3)
STAGE = Stage("train", ITEMS, 3, 1e-3)
#: The same, of which four groups, of 15, 3, 2 and 1 items, count alike.
BALANCED = replace(STAGE, groups=np.repeat([0, 1, 2, 3, 4], [3, 15, 3, 2, 1]))
STEPS = 6


class Killed(BaseException):
    """As a power cut: nothing is done about it."""


def read(index: np.ndarray) -> np.ndarray:
    return np.stack([np.random.default_rng(i).integers(0, 256, (PX, PX, 3)) for i in index]).astype(np.uint8)


def new_network() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"channels": 12, "depth": 2, "heads": 1, "head_dim": 12, "dropout": 0.2}
    network = make_network(M2ORTConfig(n_genes=3, patch_px=PX, **sizes))
    assert isinstance(network, M2ORT)
    return network


def wanted() -> Tensor:
    return torch.randn(int(ITEMS.max()) + 1, 3, generator=torch.Generator().manual_seed(1))


def train(
    folder: Path, at: int = -1, what: BaseException | signal.Signals = Killed(), stage: Stage = STAGE  # noqa: B008
) -> dict[str, Tensor]:  # fmt: skip
    """Train in a folder, in fp32, as bf16 rounds more; in this call's step number `at`, from 0, something happens."""
    folder.mkdir(exist_ok=True)
    network, targets, steps = new_network(), wanted(), iter(range(1000))
    learn = plain_step(lambda z, index: ((z - targets[index]) ** 2).mean())

    def step(model: nn.Module, patches: Tensor, items: np.ndarray) -> Tensor:
        if next(steps) == at:
            if isinstance(what, BaseException):
                raise what
            signal.raise_signal(what)
        return learn(model, patches, items)

    log = Log(folder / "log.csv", lambda _line: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "computes_bf16", lambda _device: False)
        for epoch, loss, seconds in fit(network, read, step, stage, Course(SETTINGS, log, folder, CPU)):
            log.add(stage.name, epoch, loss, seconds)
    return dict(network.state_dict())


@pytest.mark.parametrize("measured", [True, False])
def test_a_stage_that_is_done_keeps_the_scores_of_its_epochs(tmp_path: Path, measured: bool):
    """The score of the untaught network, which a later call logs first, took all others away."""
    rng, n = np.random.default_rng(0), int(ITEMS.max()) + 1
    counts, validation = rng.poisson(5.0, (n, 3)).astype(float), np.arange(3)
    if not measured:
        counts[validation] = np.nan
    depth, section = np.full(n, 50.0), np.array(["B"] * 3 + ["A"] * (n - 3), dtype=object)
    tiles = cast(Tiles, SimpleNamespace(section=section))
    objective = make_objective("residuals", counts, depth, section, section == "A")

    def call() -> Log:
        network = new_network()
        student = Student(
            network, plain_step(objective.loss), lambda rows: rng.normal(size=(len(rows), 3)), read, knows=True
        )
        course = Course(SETTINGS, Log(tmp_path / "log.csv", lambda _line: None), tmp_path, CPU)
        train_on_spots(student, tiles, objective, counts, STAGE, validation, course)
        return Log(tmp_path / "log.csv", print)

    first, again = call(), call()
    assert [row["epoch"] for row in first.rows] == [0, 1, 2, 3]
    assert again.rows == first.rows
    assert (again.best_epoch("train") is None) == (not measured)


def losses(folder: Path) -> list[str]:
    return [row["loss"] for row in Log(folder / "log.csv", print).rows]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    torch.save(train(folder), folder / "weights")
    return folder


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage whose groups count alike."""
    folder = tmp_path_factory.mktemp("balanced")
    torch.save(train(folder, stage=BALANCED), folder / "weights")
    return folder


def check_same(found: dict[str, Tensor], folder: Path, undisturbed: Path) -> None:
    for name, tensor in torch.load(undisturbed / "weights").items():
        # To the bit on most processors; some round differently from run to run. Other random numbers are off by 1e-3.
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-7, msg=name)
    assert losses(folder) == losses(undisturbed)


@pytest.mark.parametrize("at", [0, 1, 5, 6, 17])
def test_a_run_that_is_killed_in_any_step_ends_with_the_same_weights(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
):
    monkeypatch.setattr(states, "SAVE_EVERY_S", 0.0)  # after every step, so that none is done again
    with pytest.raises(Killed):
        train(tmp_path, at)
    if at:
        kept = torch.load(tmp_path / "train.pt", weights_only=True)
        assert (kept["epoch"], kept["step"]) == divmod(at, STEPS)
    check_same(train(tmp_path), tmp_path, undisturbed)


def test_one_that_is_killed_again_and_again_ends_with_the_same_weights(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(states, "SAVE_EVERY_S", 0.0)
    for _ in range(5):
        with pytest.raises(Killed):
            train(tmp_path, 2)
    check_same(train(tmp_path), tmp_path, undisturbed)


def test_a_killed_one_whose_groups_count_alike_ends_with_the_same_weights(
    undisturbed: Path, balanced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(states, "SAVE_EVERY_S", 0.0)
    with pytest.raises(Killed):
        train(tmp_path, 8, stage=BALANCED)
    check_same(train(tmp_path, stage=BALANCED), tmp_path, balanced)
    assert losses(balanced) != losses(undisturbed)


def test_between_states_that_are_kept_work_is_lost_and_the_weights_are_not(undisturbed: Path, tmp_path: Path):
    with pytest.raises(Killed):
        train(tmp_path, 8)
    kept = torch.load(tmp_path / "train.pt", weights_only=True)
    assert (kept["epoch"], kept["step"]) == (1, 0)  # within minutes only epochs are kept
    check_same(train(tmp_path), tmp_path, undisturbed)


def test_a_process_that_is_killed_leaves_a_state_to_go_on_with(undisturbed: Path, tmp_path: Path):
    start = (
        "import signal, sys, test_resuming as one; from pathlib import Path\n"
        "one.states.SAVE_EVERY_S = 0.0\n"
        "one.train(Path(sys.argv[1]), 8, signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", start, str(tmp_path)], env=beside_this_file(), capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    kept = torch.load(tmp_path / "train.pt", weights_only=True)
    assert (kept["epoch"], kept["step"]) == divmod(8, STEPS)
    check_same(train(tmp_path), tmp_path, undisturbed)


def beside_this_file() -> dict[str, str]:
    """The environment of a process that imports this file."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


@pytest.fixture
def terminating() -> Iterator[None]:
    """SIGTERM and SIGINT raise, as in commands, though this process may have been started to ignore them."""

    def terminate(*_: int | FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, terminate) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        assert signal.getsignal(number) is terminate  # whoever attended to it does again
        signal.signal(number, handler)


@pytest.mark.usefixtures("terminating")
@pytest.mark.parametrize(
    ("at", "number"), [(0, signal.SIGINT), (3, signal.SIGTERM), (5, signal.SIGTERM), (17, signal.SIGINT)]
)
def test_who_is_told_to_end_ends_the_step_and_keeps_it(
    undisturbed: Path, tmp_path: Path, at: int, number: signal.Signals
):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, at, number)
    kept = torch.load(tmp_path / "train.pt", weights_only=True)
    assert kept["epoch"] * STEPS + kept["step"] == at + 1
    check_same(train(tmp_path), tmp_path, undisturbed)


def test_a_state_of_older_versions_goes_on_after_its_epoch(tmp_path: Path):
    whole = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "old", STEPS)
    state = tmp_path / "old" / "train.pt"
    kept = torch.load(state, weights_only=True)
    torch.save({name: kept[name] for name in ("network", "optimizer", "schedule", "epoch")}, state)
    for name, tensor in train(tmp_path / "old").items():
        torch.testing.assert_close(tensor, whole[name], rtol=0, atol=1e-7)


@given(st.integers(1, 40), st.integers(1, 9))
def test_processes_divide_a_batch(n: int, world: int):
    shares = [Share(n, rank, world) for rank in range(world)]
    assert sorted(place for share in shares for place in share.counted) == list(range(n))
    assert all(share.own for share in shares)  # whoever had nothing would keep the others waiting
    assert all(share.own == share.counted for share in shares if share.counted)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_an_item_gets_the_same_random_numbers_in_any_process(n: int):
    rows = 3  # of each item, as tokens in one dimension with the items
    tensors = torch.randn(n, rows, 5)
    dropout = Dropout(0.4)

    def drawn(share: Share) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(5)
        with sharing(share):
            mine = tensors[share.own].flatten(0, 1)
            masks = draw(lambda n: random_mask((n, 1, 3, 3), 0.3, mine), len(share.own))
            return dropout(mine), masks, torch.rand(1)

    dropped, masked, after = drawn(Share(n))
    for world in (2, 3):
        for rank in range(world):
            share = Share(n, rank, world)
            mine = drawn(share)
            assert torch.equal(mine[0], dropped.reshape(n, rows, 5)[share.own].flatten(0, 1))
            assert torch.equal(mine[1], masked[share.own])
            assert torch.equal(mine[2], after)  # and the stream is as far in all


def test_two_processes_end_with_the_weights_of_one(undisturbed: Path, balanced: Path, tmp_path: Path):
    """With a last batch of one item, which is fewer than there are processes, and begun by one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = (
        "import sys, torch; from pathlib import Path; from torch import distributed\n"
        "import test_resuming as one\n"
        "distributed.init_process_group('gloo')\n"
        "assert len(one.ITEMS) % one.SETTINGS.batch_size == 1\n"
        "for name, stage in (('undisturbed', one.STAGE), ('balanced', one.BALANCED)):\n"
        "    found = one.train(Path(sys.argv[1]) / name, stage=stage)\n"
        "    torch.save(found, Path(sys.argv[1]) / name / f'found-{distributed.get_rank()}')\n"
        "distributed.destroy_process_group()\n"
    )
    with pytest.raises(Killed):
        train(tmp_path / "undisturbed", STEPS + 1)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", start, str(tmp_path)],
            env={**beside_this_file(), "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank),
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [worker.communicate(timeout=240) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    for alone, found in ((undisturbed, tmp_path / "undisturbed"), (balanced, tmp_path / "balanced")):
        weights = torch.load(alone / "weights")
        for rank in range(2):
            for name, tensor in torch.load(found / f"found-{rank}").items():
                torch.testing.assert_close(tensor, weights[name], rtol=0, atol=1e-5, msg=name)
        np.testing.assert_allclose(*(np.array(losses(one), float) for one in (found, alone)), atol=2e-5)
