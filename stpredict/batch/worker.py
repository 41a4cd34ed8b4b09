"""Run on a worker of a dask cluster: predict a slide, or help with one, with the engine of the slide before."""

from __future__ import annotations

import asyncio
import pickle
import platform
import threading
import time
from dataclasses import replace

from distributed import get_worker

from stpredict.batch.jobs import Outcome
from stpredict.batch.processes import Work, model_of
from stpredict.batch.shared_slide import help_slide
from stpredict.batch.slides import Warm, as_ours, predict_each
from stpredict.console import report, telling
from stpredict.engines.engine import EngineRequest
from stpredict.errors import SlideError, SlideNotFoundError, StpredictError
from stpredict.prediction.job import Job
from stpredict.search_path import working_folder_left_out

SHARE_FOLDERS = "slides, model and output need paths that are the same on all machines."
#: Shortest time between two reports of a worker's progress.
PROGRESS_EVERY_S = 1.0
#: How long a worker may take to let go of a slide when asked to; it does so after a batch of patches.
LET_GO_S = 10.0

#: An engine uses all threads of a worker, and its log goes to one call, so a worker predicts one slide at a time.
_one_at_a_time = threading.Lock()
_forgotten: set[str] = set()
#: The call for which a slide is being predicted here.
_predicting: set[str] = set()
_kept: dict[tuple[str, EngineRequest], Warm] = {}


class Forgotten(BaseException):
    """The call that wanted a slide, or help with one, has ended."""


def forget(name: str) -> None:
    """Let go, at the next batch of patches, of a call's slides, or of the slide that is helped with under this name."""
    _forgotten.add(name)


async def forget_call(name: str) -> None:
    """Let go of the slides of a call, and wait until that is done, so that another call can have them at once."""
    forget(name)
    deadline = time.monotonic() + LET_GO_S
    while name in _predicting and time.monotonic() < deadline:
        await asyncio.sleep(0.05)


def predict_one(message: bytes) -> Outcome:
    """Predict a slide and report its progress to the call that wants it.

    Raises StpredictError, with this machine's name, for a call that no slide could satisfy.
    """
    call, number, job, work = pickle.loads(message)
    worker = get_worker()
    last = 0.0

    def send(kind: str, *content: object) -> None:
        if call in _forgotten:
            raise Forgotten
        worker.log_event(call, pickle.dumps((kind, number, *content)))  # names may not be valid text

    def tell(event: str, line: str | None, facts: dict[str, object]) -> None:
        send("log", event, line, facts)

    def progress(_job: Job, done: int, total: int) -> None:
        nonlocal last
        if call in _forgotten:
            raise Forgotten
        if not 0 < done < total or time.monotonic() - last >= PROGRESS_EVERY_S:
            last = time.monotonic()
            send("progress", done, total)

    where = f"{platform.node()} ({worker.address})"
    with _one_at_a_time, working_folder_left_out(), telling(tell):
        _predicting.add(call)
        try:
            if not job.result.parent.is_dir():
                raise SlideError(f"{job.result.parent}: no such folder; {SHARE_FOLDERS}")
            work = with_threads(work, worker.state.nthreads)
            warm = kept_warm(work)
            (outcome,) = predict_each([job], warm, work.request, work.n_slides, report, progress)
        except StpredictError as error:
            error.args = (f"worker {where}: {error}",)
            raise
        finally:
            _predicting.discard(call)
    if isinstance(outcome.error, SlideNotFoundError):
        return replace(outcome, error=SlideError(f"{outcome.error} That was on worker {where}; {SHARE_FOLDERS}"))
    return outcome


def help_with_one(message: bytes) -> StpredictError | None:
    """Help with a slide that another worker predicts and reports. Returns the error that prevented it, if any."""
    call, name, job, work = pickle.loads(message)
    nthreads = get_worker().state.nthreads

    def progress(_done: int, _total: int) -> None:
        if not _forgotten.isdisjoint((call, name)):
            raise Forgotten

    with _one_at_a_time, working_folder_left_out(), telling(lambda *_: None):
        try:
            progress(0, 0)
            work = with_threads(work, nthreads)
            help_slide(job, kept_warm(work), work.request, progress)
        except Forgotten:
            return None
        except Exception as error:  # noqa: BLE001 (the call reports it, and the slide goes on)
            return as_ours(error, job, alone=False)
    return None


def with_threads(work: Work, nthreads: int) -> Work:
    """The work with this worker's number of threads, unless a number was requested."""
    engine = replace(work.request.engine, threads=work.request.engine.threads or nthreads)
    return replace(work, request=replace(work.request, engine=engine))


def kept_warm(work: Work) -> Warm:
    """The model, and the engine if the slide before had the same model and engine request. Raises ModelFileError."""
    key = work.sha256, work.request.engine
    if key not in _kept:
        model = model_of(work)
        _kept.clear()  # the engine of another model would only take memory
        _kept[key] = Warm(model)
    return _kept[key]
