"""Predict slides on the workers of a dask scheduler: one slide for each process, which keeps its engine for the next.

Workers without a slide help with the slides of others, shard by shard.
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
#: A slide that another process holds is tried again until a lost worker's lease must have lapsed.
RETRY_EVERY_S = 5.0
GIVE_UP_AFTER_S = LAPSED_S + RENEW_S
#: Workers that a slide may lose. dask's scheduler has the same limit, but counts anew for a slide that is tried again.
MAX_LOSSES = 3
#: Shared file systems may take so long to show one machine a file that another wrote.
VISIBLE_AFTER_S = 60.0


@dataclass(frozen=True)
class Call:
    """A running call: its slides, its scheduler, its name for workers, their messages, and the workers that help."""

    jobs: list[Job]
    work: Work
    client: Client
    name: str
    events: SimpleQueue[tuple[Any, ...]]
    helpers: Helpers = field(default_factory=Helpers)


def predict_on_cluster(
    jobs: Sequence[Job], work: Work, address: str, progress: SlideProgress
) -> Generator[Outcome, None, None]:
    """Let the workers of a scheduler predict slides, each one at a time. Other workers take over for lost ones.

    Raises UsageError if there is no scheduler, if a worker has another version, model or folder, or for a call that no
    slide could satisfy.
    """
    with connected(address) as client:
        call = Call(list(jobs), _with_whole_paths(work), client, f"stpredict-{secrets.token_hex(8)}", SimpleQueue())
        client.subscribe_topic(call.name, lambda event: call.events.put(pickle.loads(event[1])))
        if not client.nthreads():
            report(f"{address}: has no workers yet; waiting for some")
        try:
            yield from find_the_guilty(jobs, partial(_on_workers, call=call, progress=progress))
        except BaseException:
            with suppress(Exception):  # the call ends, even if the workers cannot be told
                client.run(forget_call, call.name, on_error="ignore")
            raise


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """A client of the scheduler. Raises UsageError if no scheduler answers, StpredictError if it goes away."""
    try:
        asyncio.run(_knock(address))  # a client without a scheduler prints a traceback when it is collected
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
    """Raises OSError if nobody answers at the address, or another error if it is no address."""
    comm = await connect(address, timeout=CONNECT_S, **Security().get_connection_args("client"))
    await comm.close()


def _on_workers(jobs: Sequence[Job], call: Call, progress: SlideProgress) -> Generator[Outcome | Death, None, None]:
    """Give slides, or parts of other workers' slides, to idle workers, until the outcome of each slide is known."""
    helpers = call.helpers
    due = dict.fromkeys(jobs, 0.0)  # when each slide may be tried
    running: dict[Future[Outcome], tuple[Job, str]] = {}
    losses: Counter[Job] = Counter()
    found: dict[Job, float] = {}  # when another process was first found to hold a slide
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
                    log("warning", f"{job.shown.name}: its worker was lost; another one goes on with it")
                    losses[job] += 1
                    found.pop(job, None)  # the lost worker's lease may have yet to lapse
                somebodys = outcome is not None and outcome.status == "elsewhere"
                if somebodys and losses[job] <= MAX_LOSSES and now < found.setdefault(job, now) + GIVE_UP_AFTER_S:
                    due[job] = now + RETRY_EVERY_S
                    continue
                let_go(helpers, job, call.client)
                if outcome is None or (somebodys and losses[job] > MAX_LOSSES):
                    helpers.lost[job] = MAX_LOST  # no help: it is tried alone
                    yield Death(job, "was lost with its worker, again and again")
                else:
                    yield outcome


def _submit(call: Call, job: Job, worker: str, helping: bool = False) -> Future[Any]:
    """Give a slide to a worker. If that is lost, the scheduler gives the slide to another, unless `helping`."""
    mask = job.mask and job.mask.absolute()
    there = replace(job, slide=job.slide.absolute(), result=job.result.absolute(), mask=mask)
    key = f"{call.name}-{secrets.token_hex(8)}"
    message = pickle.dumps((call.name, key if helping else call.jobs.index(job), there, call.work))
    future = call.client.submit(
        task_of("stpredict.batch.worker"), stpredict.__version__, "help_with_one" if helping else "predict_one",
        message, key=key, pure=False, workers=[worker], allow_other_workers=not helping,
    )  # fmt: skip
    future.add_done_callback(lambda done: call.events.put(("ended", done)))
    return future


def _with_whole_paths(work: Work) -> Work:
    """The work with absolute paths, because each worker has its own working folder."""
    request = work.request
    mask, spots = request.mask and request.mask.absolute(), request.spots_file and request.spots_file.absolute()
    return replace(work, model=work.model.absolute(), request=replace(request, mask=mask, spots_file=spots))


def task_of(module: str) -> Callable[[str, str, bytes], Any]:
    """A task for workers: call a function of `module` by its name, with a message, if their version is the given one.

    The task travels by value. So a worker that lacks this program, or has another version, can raise ImportError.
    """

    def carry_out(version: str, task: str, message: bytes) -> Any:
        try:
            from importlib import import_module

            import stpredict as there
            from stpredict.machine import leave_removed_folder

            leave_removed_folder()
            worker = import_module(module)
        except ImportError as error:
            raise ImportError(f"stpredict {version} is needed on each worker ({error})") from error
        if there.__version__ != version:
            raise ImportError(f"stpredict {version} is needed on each worker, one has {there.__version__}")
        return getattr(worker, task)(message)

    return carry_out


def _outcome(future: Future[Outcome], job: Job, worker: str) -> Outcome | None:
    """The outcome of a slide; None if it lost its workers. Raises UsageError if workers are not fit for the call."""
    try:
        outcome = replace(future.result(), job=job)
    except KilledWorker:
        return None
    except ImportError as error:
        raise UsageError(f"--cluster: {error}.") from error
    _demand_visible(outcome, worker)
    return outcome


def _demand_visible(outcome: Outcome, worker: str) -> None:
    """Raises UsageError if this machine does not see the result that a worker wrote."""
    deadline = time.monotonic() + VISIBLE_AFTER_S
    while outcome.status in ("done", "up to date") and not outcome.job.result.exists():
        if time.monotonic() > deadline:
            raise UsageError(f"{outcome.job.result}: written by {worker}, but it cannot be seen here; {SHARE_FOLDERS}")
        time.sleep(LOOK_EVERY_S)


def _as_called(facts: dict[str, Any], job: Job) -> dict[str, Any]:
    """The facts of an event with the slide's paths as the user gave them."""
    return {name: job.facts.get(name, value) for name, value in facts.items()}


def _some(events: SimpleQueue[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """The events so far, after waiting a moment for the first."""
    with suppress(Empty):
        yield events.get(timeout=LOOK_EVERY_S)
        while True:
            yield events.get_nowait()
