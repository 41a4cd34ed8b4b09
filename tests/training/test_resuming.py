from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from stages_to_train import (
    CPU,
    N_GENES,
    N_SPOTS,
    SETTINGS,
    SMALL_PX,
    STAGE,
    STEPS,
    Killed,
    losses,
    new_m2ort,
    read,
    train,
)
from torch import Tensor

from stpredict.data.tiles import Tiles
from stpredict.statistics.objectives import make_objective
from stpredict.training import states
from stpredict.training.fit import Course, Student, plain_step, train_on_spots
from stpredict.training.log import Log


@pytest.mark.parametrize("measured", [True, False])
def test_a_stage_that_is_done_keeps_the_scores_of_its_epochs(tmp_path: Path, measured: bool):
    """The score of the untaught network, which a later call logs first, took all others away."""
    rng, n = np.random.default_rng(0), N_SPOTS
    counts, validation = rng.poisson(5.0, (n, N_GENES)).astype(float), np.arange(3)
    if not measured:
        counts[validation] = np.nan
    depth, section = np.full(n, 50.0), np.array(["B"] * 3 + ["A"] * (n - 3), dtype=object)
    tiles = cast(Tiles, SimpleNamespace(section=section, kin=section))
    objective = make_objective("residuals", counts, depth, section, section == "A")

    def call() -> Log:
        network, small = new_m2ort(), partial(read, px=SMALL_PX)
        student = Student(
            network, plain_step(objective.loss), lambda rows: rng.normal(size=(len(rows), 3)), small, knows=True
        )
        course = Course(SETTINGS, Log(tmp_path / "log.csv", lambda _line: None), tmp_path, CPU)
        train_on_spots(student, tiles, objective, counts.__getitem__, STAGE, validation, course)
        return Log(tmp_path / "log.csv", print)

    first, again = call(), call()
    assert [row["epoch"] for row in first.rows] == [0, 1, 2, 3]
    assert again.rows == first.rows
    assert (again.best_epoch("train") is None) == (not measured)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(folder)
    return folder


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage whose groups count alike."""
    folder = tmp_path_factory.mktemp("balanced")
    train(folder, "balanced")
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
        train(tmp_path, at=at)
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
            train(tmp_path, at=2)
    check_same(train(tmp_path), tmp_path, undisturbed)


def test_a_killed_one_whose_groups_count_alike_ends_with_the_same_weights(
    undisturbed: Path, balanced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(states, "SAVE_EVERY_S", 0.0)
    with pytest.raises(Killed):
        train(tmp_path, "balanced", 8)
    check_same(train(tmp_path, "balanced"), tmp_path, balanced)
    assert losses(balanced) != losses(undisturbed)


def test_between_states_that_are_kept_work_is_lost_and_the_weights_are_not(undisturbed: Path, tmp_path: Path):
    with pytest.raises(Killed):
        train(tmp_path, at=8)
    kept = torch.load(tmp_path / "train.pt", weights_only=True)
    assert (kept["epoch"], kept["step"]) == (1, 0)  # within minutes only epochs are kept
    check_same(train(tmp_path), tmp_path, undisturbed)


def test_a_process_that_is_killed_leaves_a_state_to_go_on_with(undisturbed: Path, tmp_path: Path):
    start = (
        "import signal, sys, stages_to_train as one; from pathlib import Path; from stpredict.training import states\n"
        "states.SAVE_EVERY_S = 0.0\n"
        "one.train(Path(sys.argv[1]), at=8, what=signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", start, str(tmp_path)], env=beside_this_file(), capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    kept = torch.load(tmp_path / "train.pt", weights_only=True)
    assert (kept["epoch"], kept["step"]) == divmod(8, STEPS)
    check_same(train(tmp_path), tmp_path, undisturbed)


def beside_this_file() -> dict[str, str]:
    """The environment of a process that imports what lies beside this file."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


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
        train(tmp_path, at=at, what=number)
    kept = torch.load(tmp_path / "train.pt", weights_only=True)
    assert kept["epoch"] * STEPS + kept["step"] == at + 1
    check_same(train(tmp_path), tmp_path, undisturbed)


def test_a_state_of_older_versions_goes_on_after_its_epoch(tmp_path: Path):
    whole = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "old", at=STEPS)
    state = tmp_path / "old" / "train.pt"
    kept = torch.load(state, weights_only=True)
    torch.save({name: kept[name] for name in ("network", "optimizer", "schedule", "epoch")}, state)
    for name, tensor in train(tmp_path / "old").items():
        torch.testing.assert_close(tensor, whole[name], rtol=0, atol=1e-7)
