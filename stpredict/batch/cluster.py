"""Slides on the workers of a dask scheduler: one to each process, which keeps its engine for the next.

Workers for which there is no slide help with those of others, shard by shard.
"""

from __future__ import annotations

import asyncio
import pickle
import secrets
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from distributed import Client, Future, KilledWorker
from distributed.comm.core import connect
from distributed.security import Security

import stpredict
from stpredict.batch.jobs import Outcome
from stpredict.batch.processes import Death, Work, find_the_guilty
from stpredict.batch.spare_workers import MAX_LOST, Helpers, count_lost, ended, let_go, slide_for
from stpredict.batch.worker import SHARE_FOLDERS, forget_call
from stpredict.console import log, report
from stpredict.errors import StpredictError, UsageError
from stpredict.prediction.job import Job
from stpredict.prediction.leases import LAPSED_S, RENEW_S
from stpredict.prediction.request import SlideProgress

CONNECT_S = 10
#: How long to wait for events before looking for new workers.
LOOK_EVERY_S = 1.0
#: A slide that somebody is at is tried again, as that may be a worker that was lost, until its lease must have lapsed.
RETRY_EVERY_S = 5.0
GIVE_UP_AFTER_S = LAPSED_S + RENEW_S
#: A slide may lose so many workers, as dask's scheduler has it, too. It begins to count anew for a slide tried again.
MAX_LOSSES = 3
#: Shared file systems may take so long to show on one machine what was written on another.
VISIBLE_AFTER_S = 60.0


@dataclass(frozen=True)
class Call:
    """A call at work: its slides, its scheduler, the name workers know it by, what they tell, who helps with what."""

    jobs: list[Job]
    work: Work
    client: Client
    name: str
    events: SimpleQueue[tuple[Any, ...]]
    helpers: Helpers = field(default_factory=Helpers)


def predict_on_cluster(
    jobs: Sequence[Job], work: Work, address: str, progress: SlideProgress
) -> Generator[Outcome, None, None]:
    """Have the workers of a scheduler predict slides, as many at a time as there are. Others go on for those lost.

    Raises UsageError where there is no scheduler, a worker has another version, model or folder, or the call could not
    work for any slide.
    """
    with _connected(address) as client:
        call = Call(list(jobs), _with_whole_paths(work), client, f"stpredict-{secrets.token_hex(8)}", SimpleQueue())
        client.subscribe_topic(call.name, lambda event: call.events.put(pickle.loads(event[1])))
        if not client.nthreads():
            report(f"{address}: has no workers yet; waiting for some")
        try:
            yield from find_the_guilty(jobs, partial(_on_workers, call=call, progress=progress))
        except BaseException:
            with suppress(Exception):  # whatever is in the way of telling the workers, the call ends
                client.run(forget_call, call.name, on_error="ignore")
            raise


@contextmanager
def _connected(address: str) -> Iterator[Client]:
    try:
        asyncio.run(_knock(address))  # a client that finds nobody would leave a traceback when it is collected
        client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise UsageError(f"--cluster {address}: no dask scheduler answers there.") from error
    with client:
        try:
            yield client
        except (OSError, CancelledError) as error:
            if client.status == "running":
                raise
            raise StpredictError(
                f"--cluster {address}: the scheduler is gone; the same command goes on where it stopped."
            ) from error


async def _knock(address: str) -> None:
    """Raises OSError, or another error for an address that cannot be one, unless somebody answers there."""
    comm = await connect(address, timeout=CONNECT_S, **Security().get_connection_args("client"))
    await comm.close()


def _on_workers(jobs: Sequence[Job], call: Call, progress: SlideProgress) -> Generator[Outcome | Death, None, None]:
    """Give slides, or parts of others' slides, to workers that have none until it is known what became of each."""
    helpers = call.helpers
    due = dict.fromkeys(jobs, 0.0)  # when each may be tried
    running: dict[Future[Outcome], tuple[Job, str]] = {}
    losses: Counter[Job] = Counter()
    found: dict[Job, float] = {}  # when slides were first found to be somebody's
    while due or running:
        ready = [job for job, when in due.items() if when <= time.monotonic()]
        workers = call.client.nthreads().keys()
        count_lost(helpers, workers)
        idle = sorted(workers - {worker for _, worker in (*running.values(), *helpers.at_work.values())})
        for job, worker in zip(ready, idle, strict=False):
            del due[job]
            running[_submit(call, job, worker)] = job, worker
        for worker in idle[len(ready) :]:
            if in_need := slide_for(helpers, worker, [job for job, _ in running.values()]):
                helpers.asked.add((in_need, worker))
                helpers.at_work[_submit(call, in_need, worker, helping=True)] = in_need, worker
        for kind, *content in _some(call.events):
            if kind == "progress":
                number, done, total = content
                helpers.left[call.jobs[number]] = total - done
                progress(call.jobs[number], done, total)
            elif kind == "log":
                number, event, line, facts = content
                log(event, line, **_as_called(facts, call.jobs[number]))
            elif content[0] in helpers.at_work:
                ended(helpers, content[0])
            elif content[0] in running:
                job, worker = running.pop(content[0])
                outcome, now = _outcome(content[0], job, worker), time.monotonic()
                if worker not in call.client.nthreads():
                    log("warning", f"{job.shown.name}: its worker was lost, and another one was given it")
                    losses[job] += 1
                    found.pop(job, None)  # the lease may be that worker's, and has yet to lapse
                somebodys = outcome is not None and outcome.status == "elsewhere"
                if somebodys and losses[job] <= MAX_LOSSES and now < found.setdefault(job, now) + GIVE_UP_AFTER_S:
                    due[job] = now + RETRY_EVERY_S
                    continue
                let_go(helpers, job, call.client)
                if outcome is None or (somebodys and losses[job] > MAX_LOSSES):
                    helpers.lost[job] = MAX_LOST  # it is tried alone
                    yield Death(job, "was lost with its worker, again and again")
                else:
                    yield outcome


def _submit(call: Call, job: Job, worker: str, helping: bool = False) -> Future[Any]:
    """Give a slide to a worker; the scheduler gives it to another one should that be lost, but not if it is to help."""
    mask = job.mask and job.mask.absolute()
    there = replace(job, slide=job.slide.absolute(), result=job.result.absolute(), mask=mask)
    key = f"{call.name}-{secrets.token_hex(8)}"
    message = pickle.dumps((call.name, key if helping else call.jobs.index(job), there, call.work))
    future = call.client.submit(
        _task(), stpredict.__version__, "help_with_one" if helping else "predict_one", message, key=key, pure=False,
        workers=[worker], allow_other_workers=not helping,
    )  # fmt: skip
    future.add_done_callback(lambda done: call.events.put(("ended", done)))
    return future


def _with_whole_paths(work: Work) -> Work:
    """Workers stand in folders of their own."""
    request = work.request
    mask, spots = request.mask and request.mask.absolute(), request.spots_file and request.spots_file.absolute()
    return replace(work, model=work.model.absolute(), request=replace(request, mask=mask, spots_file=spots))


def _task() -> Callable[[str, str, bytes], Any]:
    """What a worker is to do. It travels by value, so that one without this program, or with another, can say so."""

    def carry_out(version: str, task: str, message: bytes) -> Any:
        try:
            import stpredict as there
            from stpredict.batch import worker
        except ImportError as error:
            raise ImportError(f"stpredict {version} is needed on each worker ({error})") from error
        if there.__version__ != version:
            raise ImportError(f"stpredict {version} is needed on each worker, one has {there.__version__}")
        return getattr(worker, task)(message)

    return carry_out


def _outcome(future: Future[Outcome], job: Job, worker: str) -> Outcome | None:
    """What became of a slide; None if it lost its workers. Raises UsageError where workers are not fit for the call."""
    try:
        outcome = replace(future.result(), job=job)
    except KilledWorker:
        return None
    except ImportError as error:
        raise UsageError(f"--cluster: {error}.") from error
    _demand_visible(outcome, worker)
    return outcome


def _demand_visible(outcome: Outcome, worker: str) -> None:
    """Raises UsageError if a worker wrote a result where this machine does not see it."""
    deadline = time.monotonic() + VISIBLE_AFTER_S
    while outcome.status in ("done", "up to date") and not outcome.job.result.exists():
        if time.monotonic() > deadline:
            raise UsageError(f"{outcome.job.result}: written by {worker}, but not to be seen here; {SHARE_FOLDERS}")
        time.sleep(LOOK_EVERY_S)


def _as_called(facts: dict[str, Any], job: Job) -> dict[str, Any]:
    """The facts of an event with the slide's paths as the user gave them."""
    return {name: job.facts.get(name, value) for name, value in facts.items()}


def _some(events: SimpleQueue[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """What has happened, after waiting a moment for something to happen."""
    with suppress(Empty):
        yield events.get(timeout=LOOK_EVERY_S)
        while True:
            yield events.get_nowait()
