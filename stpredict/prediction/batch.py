"""Predict many slides with one engine: carry on after one fails, leave alone what other processes are at."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stpredict.console import Report, log
from stpredict.data.panel import match_genes
from stpredict.engines import Engine, open_engine
from stpredict.engines.rate import spots_per_second
from stpredict.errors import ResultError, SlideError, StpredictError, UsageError
from stpredict.files import make_folder
from stpredict.prediction.jobs import Job
from stpredict.prediction.one_slide import (
    Prepared,
    Progress,
    Request,
    is_done,
    predict_slide,
    prepare_slide,
    requested_settings,
    sample_patches,
    warn_of_unpredicted_genes,
)
from stpredict.prediction.pipeline import one_ahead
from stpredict.slides.grid import choose_spots
from stpredict.slides.raster import make_raster
from stpredict.slides.slide import open_slide, resolve_mpp
from stpredict.weights import Model


@dataclass(frozen=True)
class Outcome:
    """What became of one slide. "elsewhere": another process is predicting it."""

    job: Job
    status: Literal["done", "up to date", "elsewhere", "failed"]
    n_spots: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    error: StpredictError | None = None


def predict_slides(
    jobs: Sequence[Job], model: Model, request: Request, report: Report, progress: Progress
) -> Iterator[Outcome]:
    """Predict slide after slide; one that fails costs only itself, one that others are at is tried again at the end.

    Raises UsageError, before anything is read, for what could not work for any slide.
    """
    check_request(model, request)
    for folder in sorted({job.result.parent for job in jobs if request.overwrite_before or not job.result.exists()}):
        make_folder(folder)
    warn_of_unpredicted_genes(model, request.genes, report)
    engine: Engine | None = None
    elsewhere: list[Job] = []
    with ExitStack() as at_the_end:

        def prepare(job: Job) -> Prepared | Literal["up to date", "elsewhere"]:
            prepared = prepare_slide(job, model, request)
            if isinstance(prepared, Prepared):
                at_the_end.callback(prepared.held.close)  # closed again where all went well, which does nothing
            return prepared

        for turn in (list(jobs), elsewhere):
            upcoming = at_the_end.enter_context(closing(one_ahead(prepare, turn)))
            for n_done, (job, preparing) in enumerate(upcoming):
                try:
                    prepared = preparing.result()
                    if prepared == "elsewhere" and turn is not elsewhere and len(jobs) > 1:
                        elsewhere.append(job)
                    elif isinstance(prepared, str):
                        yield Outcome(job, prepared)
                    else:
                        log("slide-started", **job.facts, spots=len(prepared.spots))
                        n_slides = len(turn) - n_done
                        with prepared.held:
                            engine = predict_slide(prepared, job, model, request, engine, n_slides, report, progress)
                        yield Outcome(job, "done", len(prepared.spots), prepared.clock.seconds)
                except Exception as error:  # noqa: BLE001 (told as this slide's, or raised again)
                    yield Outcome(job, "failed", error=_as_ours(error, job, alone=len(jobs) == 1))


def check_request(model: Model, request: Request) -> None:
    """Raise UsageError for what could not work for any slide."""
    match_genes(request.genes, model.panel)
    if len(set(request.genes)) < len(request.genes):
        raise UsageError("--genes names a gene more than once.")
    if request.mask and request.spots_file:
        raise UsageError("--mask chooses among the spots of a lattice; those of --spots are all predicted.")
    if not 0 <= request.min_tissue <= 1:
        raise UsageError(f"--min-tissue {request.min_tissue:g}: must lie between 0 and 1.")


@dataclass(frozen=True)
class Plan:
    """What predicting one slide would take: spots, seconds, bytes at most while it goes on; or why it would fail."""

    job: Job
    n_spots: int = 0
    seconds: float = 0.0
    n_bytes: int = 0
    error: StpredictError | None = None


def plan_slides(jobs: Sequence[Job], model: Model, request: Request, report: Report) -> Iterator[Plan]:
    """Look at each slide and write nothing. The engine's speed is measured on patches of the first.

    Raises UsageError for what could not work for any slide.
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
                raster = make_raster(slide, mpp, model.card["mpp"], request.allow_upsampling)
                _, spots, _ = choose_spots(slide, mpp, own.grid(model), request.engine.threads)
                if not rate:
                    sample = sample_patches(raster, spots, model, request.engine.threads)
                    n_patches = len(spots) * len(jobs) * request.patches_per_spot
                    engine = open_engine(model, request.engine, sample, report, n_patches, keep=False)
                    rate = spots_per_second(engine, sample) / request.patches_per_spot
            # Shards and the result, which is compressed but little, stand side by side at the end.
            values = len(spots) * n_genes * (2 if request.tta else 1)
            yield Plan(job, len(spots), len(spots) / rate, 2 * values * 4)
        except Exception as error:  # noqa: BLE001 (told as this slide's, or raised again)
            yield Plan(job, error=_as_ours(error, job, alone=len(jobs) == 1))


def _as_ours(error: Exception, job: Job, alone: bool) -> StpredictError:
    """An error of one slide as one sentence. Raises what a call cannot go on after, and UsageError for a lone slide."""
    name = job.slide.name
    ours: StpredictError
    if isinstance(error, StpredictError):
        ours = error
    elif isinstance(error, MemoryError):
        ours = SlideError(f"{name}: not enough memory.")
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
    if isinstance(ours, SlideError) and ours.remediable and alone:
        raise UsageError(str(ours)) from error
    return ours
