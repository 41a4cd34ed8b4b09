"""The jobs of a comparison, each a system, a held-out part and a seed: claim one, do it once, read its outcome back.

Each job has a folder for its outcome, so that calls on many machines can share a comparison's folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stpredict.comparison.preparation import JOBS, Prepared
from stpredict.comparison.request import BASELINES, folder_name
from stpredict.comparison.work import carry_out
from stpredict.console import Report
from stpredict.errors import StpredictError, first_line
from stpredict.prediction.leases import is_held, take_lease
from stpredict.storage.files import atomic_path
from stpredict.training.folds import Fold

SCORES, FAILURE = "scores.json", "failure.json"

Status = Literal["done", "failed", "elsewhere", "waiting"]


@dataclass(frozen=True)
class Job:
    """One system with one part held out and one seed, and the folder for its outcome."""

    system: str
    fold: Fold
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.system}, {self.fold.kind} {self.fold.name}, seed {self.seed}"

    @property
    def lease(self) -> Path:
        return self.folder.with_suffix(".lease")

    def scores(self) -> dict[str, Any] | None:
        """Its outcome; None if it is not done."""
        path = self.folder / SCORES
        return dict(json.loads(path.read_text())) if path.exists() else None

    def failure(self) -> str | None:
        """Why its last try failed; None if it did not."""
        path = self.folder / FAILURE
        return str(json.loads(path.read_text())["reason"]) if path.exists() else None

    def status(self) -> Status:
        if (self.folder / SCORES).exists():
            return "done"
        if is_held(self.lease):
            return "elsewhere"
        return "failed" if (self.folder / FAILURE).exists() else "waiting"


def all_jobs(prepared: Prepared) -> list[Job]:
    """Every job: the baselines' first, then each system once before any has a second seed."""
    request, folder = prepared.request, prepared.request.out / JOBS
    wanted = [(BASELINES, 0), *((system, seed) for seed in range(request.seeds) for system in request.systems)]

    def place(system: str, number: int, seed: int) -> Path:
        return folder / folder_name(request, system) / f"part-{number}-seed-{seed}"

    return [
        Job(system, fold, seed, place(system, number, seed))
        for system, seed in wanted
        for number, fold in enumerate(prepared.folds, 1)
    ]


def do_all(prepared: Prepared, jobs: Sequence[Job], report: Report) -> None:
    """Do one after the other all jobs that are not done and that no other call does. If one fails, go on."""
    tried: set[str] = set()
    while waiting := [job for job in jobs if job.name not in tried and job.status() in ("waiting", "failed")]:
        tried.add(waiting[0].name)
        do(prepared, waiting[0], report)


def do(prepared: Prepared, job: Job, report: Report) -> None:
    """Do a job, unless it is done or another call does it. If it fails, tell the reason and write it to its folder."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    lease = take_lease(job.lease)
    if lease is None:
        return
    try:
        if job.scores() is None:
            job.folder.mkdir(exist_ok=True)
            (job.folder / FAILURE).unlink(missing_ok=True)
            report(f"{job.name}:")
            scores = carry_out(prepared, job.system, job.fold, job.seed, job.folder, report)
            _write(job.folder / SCORES, scores)
    except Exception as error:
        if os.environ.get("STPREDICT_DEBUG"):
            raise
        reason = reason_of(error)
        report(f"stpredict: {job.name}: {reason}")
        _write(job.folder / FAILURE, {"reason": reason})
    finally:
        lease.release()


def reason_of(error: Exception) -> str:
    """Why a job failed, in a sentence."""
    if isinstance(error, StpredictError):
        return str(error)
    return f"unexpected {type(error).__name__}: {first_line(error)} (stpredict --debug says where)."


def left(jobs: Sequence[Job]) -> Iterator[Job]:
    """The jobs that are neither done nor known to fail."""
    return (job for job in jobs if job.status() in ("waiting", "elsewhere"))


def _write(path: Path, content: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content))
