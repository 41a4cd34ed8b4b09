"""A comparison's jobs on the workers of a dask scheduler, one at a time on each."""

from __future__ import annotations

import pickle
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from distributed import Client, Future, KilledWorker

import stpredict
from stpredict.batch.cluster import GIVE_UP_AFTER_S, RETRY_EVERY_S, connected, task_of
from stpredict.comparison.jobs import Job, do
from stpredict.comparison.preparation import Prepared
from stpredict.console import Report, report
from stpredict.errors import UsageError

LOOK_EVERY_S = 0.5
SHARE_FOLDERS = "workers need the data set and the comparison's folder under the same paths as here."


def do_all_on_cluster(prepared: Prepared, jobs: Sequence[Job], address: str, tell: Report) -> None:
    """Have workers do the jobs that are not done. If a job loses its worker, another takes it once its lease lapses.

    Raises UsageError if there is no scheduler, or a worker has another version or does not see the folders.
    """
    there = _with_whole_paths(prepared)
    due = {job.name: 0.0 for job in jobs if job.status() in ("waiting", "failed")}
    by_name, tried = {job.name: job for job in jobs}, dict.fromkeys(due, 0.0)
    running: dict[Future[Any], str] = {}
    with connected(address) as client:
        if not client.nthreads():
            tell(f"{address}: has no workers yet; waiting for some")
        at_work: dict[str, str] = {}
        while due or running:
            idle = sorted(client.nthreads().keys() - set(at_work.values()))
            ready = [name for name, when in due.items() if when <= time.monotonic()]
            for name, worker in zip(ready, idle, strict=False):
                del due[name]
                tell(f"{name}: on {worker}")
                running[_submit(client, there, by_name[name], worker)] = name
                at_work[name] = worker
            for future in [one for one in running if one.done()]:
                name, now = running.pop(future), time.monotonic()
                worker = at_work.pop(name)
                if worker not in client.nthreads():
                    tell(f"{name}: its worker was lost; another one goes on with it")
                _demand_fit(future, worker)
                tried[name] = tried[name] or now
                if by_name[name].status() not in ("done", "failed") and now < tried[name] + GIVE_UP_AFTER_S:
                    due[name] = now + RETRY_EVERY_S
            time.sleep(LOOK_EVERY_S)


def do_one(message: bytes) -> None:
    """On a worker: do a job. Raises UsageError if it does not see the comparison's folder or data set."""
    prepared, job = pickle.loads(message)
    request = prepared.request
    if not request.out.is_dir() or not request.dataset.exists():
        raise UsageError(f"--cluster: {request.out} or {request.dataset} is not there; {SHARE_FOLDERS}")
    do(prepared, job, report)


def _submit(client: Client, prepared: Prepared, job: Job, worker: str) -> Future[Any]:
    """Give a job to a worker. If this worker is lost, the scheduler gives the job to another."""
    message = pickle.dumps((prepared, replace(job, folder=job.folder.absolute())))
    return client.submit(
        task_of("stpredict.comparison.cluster"), stpredict.__version__, "do_one", message, pure=False,
        workers=[worker], allow_other_workers=True,
    )  # fmt: skip


def _demand_fit(future: Future[Any], worker: str) -> None:
    """Raises UsageError if a worker was not fit for the call. A lost worker raises nothing."""
    try:
        future.result()
    except KilledWorker:
        return
    except ImportError as error:
        raise UsageError(f"--cluster: {worker}: {error}.") from error


def _with_whole_paths(prepared: Prepared) -> Prepared:
    """The comparison with absolute paths, as each worker runs in a folder of its own."""
    request = prepared.request
    weights, of_regions = (
        {system: path.absolute() for system, path in files.items()}
        for files in (request.weights, request.region_weights)
    )
    whole = replace(
        request, dataset=request.dataset.absolute(), out=request.out.absolute(), weights=weights,
        region_weights=of_regions,
    )  # fmt: skip
    return replace(prepared, request=whole)
