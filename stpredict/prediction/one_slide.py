"""Predict one slide: its spots, its expression, its result. Reads top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np

from stpredict.arrays import Bool, Float32, UInt8
from stpredict.console import Report, log
from stpredict.data.panel import match_genes
from stpredict.engines.engine import Engine, EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.errors import ResultError, StpredictError, counted
from stpredict.model.card import card_without_genes
from stpredict.model.file import Model
from stpredict.model.narrowing import narrow
from stpredict.prediction.doubts import unlike_training
from stpredict.prediction.job import Job
from stpredict.prediction.pipeline import finish_shards, predict_shards
from stpredict.prediction.preparation import Prepared, from_finer_level, tell_notes
from stpredict.prediction.provenance import describe_genes, describe_prediction, display_range
from stpredict.prediction.quality import flags_in_words, judge_spots
from stpredict.prediction.relative import blank_unmeasured, measured_in_training, standard_of
from stpredict.prediction.request import Request
from stpredict.prediction.shards import (
    Shards,
    pin_engine,
    pinned_engine,
)
from stpredict.prediction.surroundings import first_pass
from stpredict.result.file import UNUSUAL, chunk_spots
from stpredict.result.writing import Content, write_result
from stpredict.slides.levels import on_readable_levels
from stpredict.slides.overview import make_thumbnail

#: If turns of a patch differ by less, in the unit of expression, the cause is rounding.
INVARIANT_BELOW = 1e-4

Progress = Callable[[int, int], None]


def predict_slide(
    prepared: Prepared, job: Job, model: Model, request: Request, engine: Engine | None, n_slides: int, report: Report,
    progress: Progress,
) -> Engine | None:  # fmt: skip
    """Predict the first of `n_slides` slides. Returns the engine, for the others.

    If a level turns out to be damaged, the slide is predicted anew from a finer one. So the level of a result does not
    depend on where a call was interrupted. Raises SlideError, ResultError or EngineError.
    """

    def predict() -> Engine | None:
        one = prepared
        if prepared.slide.unreadable - set(prepared.shards.left_out):
            one = from_finer_level(prepared, job, model, request)
        return _predict(one, job, model, request, engine, n_slides, report, progress)

    return on_readable_levels(prepared.slide, predict)


def _predict(
    prepared: Prepared, job: Job, model: Model, request: Request, engine: Engine | None, n_slides: int, report: Report,
    progress: Progress,
) -> Engine | None:  # fmt: skip
    slide, spots, shards, clock = prepared.slide, prepared.spots, prepared.shards, prepared.clock
    threads = request.engine.threads
    running, computed = narrow(model, prepared.settings["genes"])
    with clock.stage("engine"):
        pinned = pinned_engine(shards)
        if pinned is None:
            n_patches = len(spots) * n_slides * request.patches_per_spot
            used = engine = engine or open_engine(running, request.engine, prepared.sample, report, n_patches)
        else:
            used = open_pinned_engine(running, request.engine, pinned, prepared.sample, report)
        pin_engine(shards, *used.pin)
    wanted: Iterable[int] = shards.claimed()
    if used.two_passes:
        with clock.stage("surroundings"):
            used, progress = first_pass(
                used, used.two_passes, running, shards, wanted := shards.missing(), prepared.raster, spots.centres,
                prepared.mpp, threads, progress, spots.pitch_um,
            )  # fmt: skip
    with clock.stage("reading_and_inference"):
        predict = partial(
            predict_shards, shards=shards, raster=prepared.raster, spots=spots, model=running, columns=computed,
            engine=used, threads=threads,
        )  # fmt: skip
        mine, waits = predict(wanted, progress=progress)
        finish_shards(shards, mine, predict, progress)
    clock.seconds.update(waits.by_cause())
    quality = judge_spots(shards.measures())
    if flags := flags_in_words(quality.counts, len(spots), but=UNUSUAL if unlike_training(quality.account) else None):
        log("warning", f"{job.shown.name}: of {counted(len(spots), 'spot')} {flags}", slide=str(job.shown))
    unstable = request.tta and shards.largest_spread() > INVARIANT_BELOW
    if request.tta and not unstable:
        said = f"{model.name} predicts the same for each flip and rotation of a patch, so --tta says nothing of it."
        log("warning", f"{job.shown.name}: {said}", slide=str(job.shown))
    with clock.stage("thumbnail"):
        thumbnail, thumbnail_downsample = make_thumbnail(slide, prepared.tissue.overview, threads)
    tell_notes(slide, job)
    columns = np.array(match_genes(prepared.settings["genes"], model.panel))
    provenance = {
        **used.description(),
        **describe_prediction(prepared, job, model, request),
        **quality.account,
        "display_range": display_range(model, columns),
        "card": card_without_genes(model.card),
    }
    if doubt := unlike_training(provenance):  # other doubts were reported among the notes
        log("warning", f"{job.shown.name}: {doubt}", slide=str(job.shown))
    measured = measured_in_training(model)
    rows = partial(expression_rows, shards, None if measured is None else measured[columns])
    standard = standard_of(model, columns, rows()) if request.relative else None
    if standard:
        provenance["relative"] = {"of": standard.of, "meaning": standard.meaning}
    with clock.stage("result"):
        content = Content(
            job.name, spots, {"tissue_fraction": prepared.fraction.astype(np.float32), **quality.columns},
            describe_genes(model, columns), rows(), provenance, clock.seconds, thumbnail,
            thumbnail_downsample, model.read_diameter_um(spots.pitch_um) / prepared.mpp.x,
            rows(spread=True) if unstable else None,
            (standard.relative(rows()), standard.meaning) if standard else None,
        )  # fmt: skip
        write_result(job.result, content)
        shards.remove()
    return engine


def expression_rows(shards: Shards, measured: Bool | None, spread: bool = False) -> Iterator[Float32]:
    """The expression in shards, or its `spread`, in blocks in the order of the spots; NaN for genes not `measured`."""
    return blank_unmeasured(shards.rows(chunk_spots(shards.n_genes), spread=spread), measured)


def open_pinned_engine(
    model: Model, request: EngineRequest, pinned: tuple[str, str, str | None], sample: UInt8, report: Report
) -> Engine:
    """The engine that an interrupted prediction began with. Raises ResultError if it cannot run here."""
    name, precision, calibration = pinned
    used = f"the interrupted prediction used {name} {precision}"
    try:
        again = EngineRequest(name, precision, request.device, request.batch_size, request.threads)
        engine = open_engine(model, again, sample, report)
    except StpredictError as error:
        raise ResultError(f"{used}: {error} --overwrite begins anew.") from error
    if engine.calibration != calibration:
        raise ResultError(f"{used}, calibrated on other patches or for another processor; --overwrite begins anew.")
    return engine
