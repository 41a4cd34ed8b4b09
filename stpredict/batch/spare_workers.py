"""Which workers of a cluster help with slides that others are at, when no slide waits for a worker."""

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

#: So many spots have to be left for each worker that is at a slide: to open it and to build the engine takes time, too.
WORTH_IT = 2 * SHARD_SPOTS
#: A slide that so many helpers were lost at gets no more.
MAX_LOST = 3


@dataclass(frozen=True)
class Helpers:
    """Spots that slides have left; who helps with which; who did so before, which is not asked again; helpers lost."""

    left: dict[Job, int] = field(default_factory=dict)
    at_work: dict[Future[StpredictError | None], tuple[Job, str]] = field(default_factory=dict)
    asked: set[tuple[Job, str]] = field(default_factory=set)
    lost: Counter[Job] = field(default_factory=Counter)


def slide_for(helpers: Helpers, worker: str, slides: Collection[Job]) -> Job | None:
    """Of the slides that others are at, the one with the most left for each of them, if a worker shall help at all."""
    helping = Counter(job for job, _ in helpers.at_work.values())
    shares = {
        job: helpers.left.get(job, 0) / (2 + helping[job])
        for job in slides
        if helpers.lost[job] < MAX_LOST and (job, worker) not in helpers.asked
    }
    best = max(shares, key=lambda job: shares[job], default=None)
    return best if best and shares[best] >= WORTH_IT else None


def ended(helpers: Helpers, future: Future[StpredictError | None]) -> None:
    """Note that one helps no more. What was in its way is told, as its worker may have to be mended."""
    job, worker = helpers.at_work.pop(future)
    try:
        problem: Exception | None = future.result()
    except KilledWorker:
        helpers.lost[job] += 1
        return
    except Exception as error:  # noqa: BLE001 (whatever it is, the slide goes on)
        problem = error
    if problem:
        log("warning", f"{job.shown.name}: worker {worker} cannot help with it: {problem}", slide=str(job.shown))


def count_lost(helpers: Helpers, workers: Collection[str]) -> None:
    """Note which helpers are not among the workers any more."""
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
            with suppress(Exception):  # lost just now
                client.run(forget, future.key, workers=[worker], on_error="ignore")
