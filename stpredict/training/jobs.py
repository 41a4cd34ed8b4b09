"""The held-out parts of a run as jobs: calls on many machines claim them, do each once, and read its outcome back.

A part has the name of its folder within the run's: fold-1, fold-2 and so on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stpredict.console import Report
from stpredict.errors import UsageError, some, some_of
from stpredict.prediction.leases import WAIT_S, take_lease
from stpredict.training.folds import Fold
from stpredict.training.processes import agree_on, is_main_process

#: In the folder of a part, once it is done.
SCORES, MODEL = "scores.json", "model.safetensors"
Scores = dict[str, Any]
#: A function that trains without a part and tests on it, in the part's folder, or reads the outcome back.
Do = Callable[[Fold, Path], Scores]


def named(folds: Sequence[Fold]) -> dict[str, Fold]:
    """Parts by the names of their folders."""
    return {f"fold-{number}": fold for number, fold in enumerate(folds, 1)}


def demand_named(only: Sequence[str], folds: Sequence[Fold]) -> None:
    """Raises UsageError if `--only` has a name that no part has."""
    known = named(folds)
    for name in only:
        if name not in known:
            there = ", ".join(f"{each} ({some_of(fold.name)})" for each, fold in known.items())
            raise UsageError(f"--only {name}: no part of this call, which holds out {there or 'none'}.")


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether a job, whose results go into `folder`, is this call's and no other's within this context.

    All processes that train together get the same answer.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lease = take_lease(folder.with_suffix(".lease")) if is_main_process() else None
    try:
        yield bool(agree_on(int(lease is not None)))
    finally:
        if lease:
            lease.release()


def do_one(folder: Path, fold: Fold, do: Do) -> Scores | None:
    """The outcome of a part, which is trained and tested if need be; None if another call does it."""
    if agree_on(int((folder / SCORES).exists())):
        return do(fold, folder)
    with claimed(folder) as mine:
        return do(fold, folder) if mine else None


def do_all(jobs: Mapping[Path, Fold], do: Do, report: Report) -> list[Scores]:
    """The outcomes of all parts: first do those that no other call does, then wait for the others."""
    found: dict[Path, Scores] = {}
    told = False
    while True:
        for folder, fold in jobs.items():
            if folder not in found and (scores := do_one(folder, fold, do)) is not None:
                found[folder] = scores
        waiting = [folder.name for folder in jobs if folder not in found]
        if not waiting:
            return [found[folder] for folder in jobs]
        if not told:
            report(f"{some(waiting)}: other calls are training here; waiting for them")
        told = True
        time.sleep(WAIT_S)
