"""Predict many slides with one engine: go on after one fails, skip slides that other processes are predicting."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from stpredict.batch.jobs import Outcome
from stpredict.console import Report, log
from stpredict.engines.engine import Engine
from stpredict.engines.opening import open_engine
from stpredict.engines.rate import spots_per_second
from stpredict.errors import ResultError, SlideError, StpredictError, UsageError, lacks_memory
from stpredict.model.file import Model
from stpredict.model.narrowing import narrow
from stpredict.prediction.job import Job
from stpredict.prediction.one_slide import predict_slide
from stpredict.prediction.pipeline import one_ahead
from stpredict.prediction.preparation import (
    Prepared,
    choose_level,
    is_done,
    prepare_slide,
    requested_settings,
    tell_notes,
)
from stpredict.prediction.request import (
    Request,
    SlideProgress,
    check_request,
    folders_of_results,
    warn_of_unpredicted_genes,
)
from stpredict.prediction.surroundings import around_spots
from stpredict.slides.grid import choose_spots
from stpredict.slides.overview import thumbnail_size
from stpredict.slides.raster import make_raster
from stpredict.slides.slide import open_slide, resolve_mpp

#: Errors of a full disk, an exceeded quota, and the limit of a file's size.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass
class Warm:
    """What a process keeps between slides: the model, its engine if there is one, that of a slide it helped with."""

    model: Model
    engine: Engine | None = None
    pinned: Engine | None = None


def predict_slides(
    jobs: Sequence[Job], model: Model, request: Request, report: Report, progress: SlideProgress
) -> Iterator[Outcome]:
    """Predict slide after slide in this process.

    Raises UsageError, before anything is read, for a call that no slide could satisfy.
    """
    check_request(model, request)
    with folders_of_results(jobs, request):
        judge = partial(warn_of_unpredicted_genes, model, request.genes, report)
        yield from predict_each(jobs, Warm(model), request, len(jobs), report, progress, judge)


def predict_each(
    jobs: Sequence[Job],
    warm: Warm,
    request: Request,
    n_slides: int,
    report: Report,
    progress: SlideProgress,
    before_first: Callable[[], None] | None = None,
) -> Iterator[Outcome]:
    """Predict some of `n_slides` slides. One that fails costs only itself; one that others hold is tried again later.

    `before_first` is called once the first slide is ready to be predicted. Raises UsageError for a call that no slide
    could satisfy; and if there is only one slide, for an error of it that the user can mend.
    """
    elsewhere: list[Job] = []
    with ExitStack() as at_the_end:

        def prepare(job: Job) -> Prepared | Literal["up to date", "elsewhere"]:
            progress(job, 0, 0)
            prepared = prepare_slide(job, warm.model, request)
            if isinstance(prepared, Prepared):
                at_the_end.callback(prepared.held.close)  # after a success this closes it again, which does nothing
            return prepared

        for turn in (list(jobs), elsewhere):
            upcoming = at_the_end.enter_context(closing(one_ahead(prepare, turn)))
            for n_done, (job, preparing) in enumerate(upcoming):
                try:
                    prepared = preparing.result()
                    if before_first:
                        before_first()
                        before_first = None
                    if prepared == "elsewhere" and turn is not elsewhere and len(jobs) > 1:
                        elsewhere.append(job)
                    elif isinstance(prepared, str):
                        yield Outcome(job, prepared)
                    else:
                        log("slide-started", **job.facts, spots=len(prepared.spots))
                        with prepared.held:
                            warm.engine = predict_slide(
                                prepared, job, warm.model, request, warm.engine, max(1, n_slides - n_done), report,
                                partial(progress, job),
                            )  # fmt: skip
                        yield Outcome(job, "done", len(prepared.spots), prepared.clock.seconds)
                except Exception as error:  # noqa: BLE001 (reported as this slide's, or raised again)
                    if isinstance(error, OSError) and _done_by_another(preparing, job, request):
                        yield Outcome(job, "up to date")
                    else:
                        yield Outcome(job, "failed", error=as_ours(error, job, alone=n_slides == 1))


def _done_by_another(
    preparing: Future[Prepared | Literal["up to date", "elsewhere"]], job: Job, request: Request
) -> bool:
    """Has another call finished the slide meanwhile, for instance while this one was suspended?"""
    with suppress(OSError, StpredictError):
        prepared = preparing.result()
        return (
            isinstance(prepared, Prepared)
            and not prepared.shards.under_way()
            and is_done(job, prepared.settings, request.overwrite_before)
        )
    return False


@dataclass(frozen=True)
class Plan:
    """The cost of predicting one slide: spots, seconds, bytes on disk at most; or why it would fail."""

    job: Job
    n_spots: int = 0
    seconds: float = 0.0
    n_bytes: int = 0
    error: StpredictError | None = None


def plan_slides(jobs: Sequence[Job], model: Model, request: Request, report: Report) -> Iterator[Plan]:
    """Look at each slide and write nothing. The engine's speed is measured on patches of the first.

    Raises UsageError for a call that no slide could satisfy.
    """
    check_request(model, request)
    rate = 0.0
    n_genes = len(request.genes) or len(model.panel)
    for job in jobs:
        try:
            own = request.of(job)
            with open_slide(job.slide) as slide:
                mpp = resolve_mpp(slide, own.mpp)
                if is_done(job, requested_settings(slide, mpp, model, own), own.overwrite_before):
                    yield Plan(job)
                    continue
                tell_notes(slide, job)
                raster = make_raster(slide, mpp, model.card["mpp"], request.allow_upsampling)
                _, spots, _ = choose_spots(slide, mpp, own.grid(model), request.engine.threads)
                tell_notes(slide, job)
                if not rate:
                    raster, sample = choose_level(slide, mpp, spots, model, request)
                    n_patches = len(spots) * len(jobs) * request.patches_per_spot
                    running, _ = narrow(model, request.genes or model.panel)
                    engine = open_engine(running, request.engine, sample, report, n_patches, keep=False)
                    rate = spots_per_second(engine, sample) / request.patches_per_spot
                # At the end, the shards and the result, which compresses little, are both on disk.
                values = len(spots) * n_genes * (1 + request.tta + request.relative)
                seconds, n_bytes = len(spots) / rate, 2 * values * 4 + 3 * math.prod(thumbnail_size(slide))
                if passes := engine.two_passes:
                    n_around = len(around_spots(model, passes, raster, spots.centres, mpp).centres)
                    seconds *= (n_around + len(spots)) / (2 * len(spots))  # the rate counts two patches per spot
                    n_bytes += n_around * passes.width * passes.stored().itemsize
                tell_notes(slide, job)
            yield Plan(job, len(spots), seconds, n_bytes)
        except Exception as error:  # noqa: BLE001 (reported as this slide's, or raised again)
            yield Plan(job, error=as_ours(error, job, alone=len(jobs) == 1))


def as_ours(error: Exception, job: Job, alone: bool) -> StpredictError:
    """An error of one slide as one sentence. Raises errors that end the call, and UsageError if the slide is alone."""
    name = job.slide.name
    ours: StpredictError
    if isinstance(error, StpredictError):
        ours = error
    elif lacks_memory(error):
        ours = SlideError(f"{name}: not enough memory.")
    elif isinstance(error, OSError) and error.errno in NO_ROOM:
        ours = ResultError(f"{error.filename or job.result}: cannot be written ({error.strerror}).")
    elif isinstance(error, OSError):
        where = f" ({Path(error.filename).name})" if error.filename else ""
        ours = ResultError(f"{name}: {error.strerror or error}{where}.")
    elif os.environ.get("STPREDICT_DEBUG"):
        raise error
    else:
        ours = SlideError(f"{name}: unexpected {type(error).__name__}: {error} (stpredict --debug says where).")
    job.hide_names(ours)
    if isinstance(ours, UsageError):
        raise ours
    if ours.remediable and alone:
        raise UsageError(str(ours)) from error
    return ours
