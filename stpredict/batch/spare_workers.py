"""Choose workers of a cluster to help with other workers' slides when no slide waits for a worker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field

from distributed import Client, Future, KilledWorker

from stpredict.batch.worker import forget
from stpredict.console import log
from stpredict.errors import StpredictError
from stpredict.prediction.job import Job
from stpredict.prediction.shards import SHARD_SPOTS

#: Help is worth it if so many spots are left per worker at a slide: opening it and building an engine take time.
WORTH_IT = 2 * SHARD_SPOTS
#: After the loss of so many helpers, a slide gets no more.
MAX_LOST = 3


@dataclass(frozen=True)
class Helpers:
    """Spots left of slides; helpers at work; workers asked before, who are not asked again; lost helpers."""

    left: dict[Job, int] = field(default_factory=dict)
    at_work: dict[Future[StpredictError | None], tuple[Job, str]] = field(default_factory=dict)
    asked: set[tuple[Job, str]] = field(default_factory=set)
    lost: Counter[Job] = field(default_factory=Counter)


def slide_for(helpers: Helpers, worker: str, slides: Collection[Job]) -> Job | None:
    """Of other workers' slides, the one with most spots left per worker; None if help is not worth it."""
    helping = Counter(job for job, _ in helpers.at_work.values())
    shares = {
        job: helpers.left.get(job, 0) / (2 + helping[job])
        for job in slides
        if helpers.lost[job] < MAX_LOST and (job, worker) not in helpers.asked
    }
    best = max(shares, key=lambda job: shares[job], default=None)
    return best if best and shares[best] >= WORTH_IT else None


def ended(helpers: Helpers, future: Future[StpredictError | None]) -> None:
    """Note that a helper ended. An error is reported, because the worker may need mending."""
    job, worker = helpers.at_work.pop(future)
    try:
        problem: Exception | None = future.result()
    except KilledWorker:
        helpers.lost[job] += 1
        return
    except Exception as error:  # noqa: BLE001 (the slide goes on in any case)
        problem = error
    if problem:
        log("warning", f"{job.shown.name}: worker {worker} cannot help with it: {problem}", slide=str(job.shown))


def count_lost(helpers: Helpers, workers: Collection[str]) -> None:
    """Note helpers that are no longer among the workers."""
    for future, (job, worker) in list(helpers.at_work.items()):
        if worker not in workers:
            del helpers.at_work[future]
            future.cancel()
            helpers.lost[job] += 1


def let_go(helpers: Helpers, job: Job, client: Client) -> None:
    """End all help with a slide."""
    for future, (helped, worker) in list(helpers.at_work.items()):
        if helped == job:
            del helpers.at_work[future]
            future.cancel()
            with suppress(Exception):  # the worker was lost just now
                client.run(forget, future.key, workers=[worker], on_error="ignore")
