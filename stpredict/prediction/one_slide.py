"""Predict one slide: its spots, its expression, its result. Reads top to bottom."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stpredict.arrays import Float, UInt8
from stpredict.cards import card_without_genes
from stpredict.console import Report, log
from stpredict.data.panel import match_genes
from stpredict.engines import Engine, EngineRequest, open_engine
from stpredict.errors import MaskError, ResultError, StpredictError, UsageError
from stpredict.machine import give_back_memory
from stpredict.prediction.jobs import Job
from stpredict.prediction.leases import take_lease
from stpredict.prediction.out_of_distribution import UNUSUAL_FROM
from stpredict.prediction.pipeline import finish_shards, predict_shards
from stpredict.prediction.provenance import describe_genes, describe_prediction, display_range
from stpredict.prediction.quality import flags_in_words, judge_spots
from stpredict.prediction.request import Request
from stpredict.prediction.shards import (
    Shards,
    describe_difference,
    join_shards,
    open_shards,
    pin_engine,
    pinned_engine,
)
from stpredict.prediction.surroundings import first_pass
from stpredict.result import CHUNK_SPOTS, UNUSUAL, read_provenance, write_result
from stpredict.slides.grid import choose_spots
from stpredict.slides.lattice import Spots
from stpredict.slides.overview import make_thumbnail
from stpredict.slides.raster import Raster, block_order, make_raster, read_patches
from stpredict.slides.slide import Mpp, Slide, open_slide, resolve_mpp
from stpredict.slides.symmetry import SYMMETRIES
from stpredict.slides.tissue import Tissue
from stpredict.weights import Model

#: Patches that are compared with the training patches and used to check the engine.
N_SAMPLE = 64
#: Turns of a patch that differ by less, in the unit of expression, differ by rounding.
INVARIANT_BELOW = 1e-4

Progress = Callable[[int, int], None]


class Clock:
    """Seconds per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 3)


@dataclass(frozen=True)
class Prepared:
    """A slide that is ours to predict: open, its spots chosen, its shards found. `held` closes it, ends the lease."""

    held: ExitStack
    slide: Slide
    mpp: Mpp
    settings: dict[str, Any]
    raster: Raster
    tissue: Tissue
    spots: Spots
    fraction: Float
    shards: Shards
    sample: UInt8
    clock: Clock


def is_done(job: Job, settings: dict[str, Any], overwrite_before: float) -> bool:
    """Is the slide's result there already? Results older than `overwrite_before` (seconds since 1970) do not count.

    Raises ResultError if one of other settings stands there and is not to be overwritten.
    """
    if not job.result.exists() or job.result.stat().st_mtime < overwrite_before:
        return False
    found = read_provenance(job.result)["settings"]
    if found != settings and not overwrite_before:
        difference = describe_difference(found, settings)
        raise ResultError(f"{job.result.name}: exists with other settings ({difference}); --overwrite replaces it.")
    return bool(found == settings)


def prepare_slide(
    job: Job, model: Model, request: Request, helping: bool = False
) -> Prepared | Literal["up to date", "elsewhere"]:
    """Open a slide and choose its spots, unless its result is there or another process is at it.

    With `helping`, only if another one is at it with these settings, and without a lease.
    Raises SlideError or ResultError.
    """
    clock, request = Clock(), request.of(job)
    with ExitStack() as stack:
        stack.callback(give_back_memory)  # when the slide is closed
        slide = stack.enter_context(open_slide(job.slide))
        mpp = resolve_mpp(slide, request.mpp)
        settings = requested_settings(slide, mpp, model, request)
        if is_done(job, settings, request.overwrite_before):
            return "up to date"
        if not helping:
            job.result.parent.mkdir(parents=True, exist_ok=True)  # which a call that was refused may have removed
            lease = take_lease(job.lease)
            if lease is None:
                return "elsewhere"
            stack.callback(lease.release)
            if is_done(job, settings, request.overwrite_before):  # by whoever held the lease until now
                return "up to date"
        raster = make_raster(slide, mpp, model.card["mpp"], request.allow_upsampling)
        with clock.stage("tissue_and_spots"):
            tissue, spots, fraction = choose_spots(slide, mpp, request.grid(model), request.engine.threads)
        order = block_order(raster, raster.origins(spots.centres, model.card["patch_px"]))
        folder = job.result.with_name(job.result.name + ".parts")
        of = folder, order, spots.centres, len(settings["genes"]), settings
        shards = join_shards(*of) if helping else open_shards(*of, request.overwrite_before)
        if shards is None:
            return "elsewhere"
        with clock.stage("sample"):
            sample = sample_patches(raster, spots, model, request.engine.threads)
        held = stack.pop_all()
    return Prepared(held, slide, mpp, settings, raster, tissue, spots, fraction, shards, sample, clock)


def predict_slide(
    prepared: Prepared, job: Job, model: Model, request: Request, engine: Engine | None, n_slides: int, report: Report,
    progress: Progress,
) -> Engine | None:  # fmt: skip
    """Predict the first of `n_slides` slides. Returns the engine, for the others.

    Raises SlideError, ResultError or EngineError.
    """
    slide, spots, shards, clock = prepared.slide, prepared.spots, prepared.shards, prepared.clock
    threads = request.engine.threads
    with clock.stage("engine"):
        pinned = pinned_engine(shards)
        if pinned is None:
            n_patches = len(spots) * n_slides * request.patches_per_spot
            used = engine = engine or open_engine(model, request.engine, prepared.sample, report, n_patches)
        else:
            used = open_pinned_engine(model, request.engine, pinned, prepared.sample, report)
        pin_engine(shards, *used.pin)
    columns = np.array(match_genes(prepared.settings["genes"], model.panel))
    wanted: Iterable[int] = shards.claimed()
    if used.two_passes:
        with clock.stage("surroundings"):
            used, progress = first_pass(
                used, used.two_passes, model, shards, wanted := shards.missing(), prepared.raster, spots.centres,
                prepared.mpp, threads, progress,
            )  # fmt: skip
    with clock.stage("reading_and_inference"):
        predict = partial(
            predict_shards, shards=shards, raster=prepared.raster, spots=spots, model=model, columns=columns,
            engine=used, threads=threads,
        )  # fmt: skip
        mine, waits = predict(wanted, progress=progress)
        finish_shards(shards, mine, predict, progress)
    clock.seconds.update(waits.by_cause())
    quality = judge_spots(shards.measures())
    unusual = quality.account["unusual_patches"]
    if unusual > UNUSUAL_FROM:
        warning = f"{unusual:.0%} of patches look unlike those the model was trained on; expect little."
        log("warning", f"{job.shown.name}: {warning}", slide=str(job.shown))
    if flags := flags_in_words(quality.counts, len(spots), but=UNUSUAL if unusual > UNUSUAL_FROM else None):
        log("warning", f"{job.shown.name}: of {len(spots):,} spots {flags}", slide=str(job.shown))
    unstable = request.tta and shards.largest_spread() > INVARIANT_BELOW
    if request.tta and not unstable:
        said = f"{model.name} predicts the same for each flip and rotation of a patch, so --tta says nothing of it."
        log("warning", f"{job.shown.name}: {said}", slide=str(job.shown))
    provenance = {
        **used.description(),
        **describe_prediction(prepared, job, model, request),
        **quality.account,
        "display_range": display_range(model, columns),
        "card": card_without_genes(model.card),
    }
    with clock.stage("result"):
        thumbnail, thumbnail_downsample = make_thumbnail(slide, prepared.tissue.overview, threads)
        write_result(
            job.result, job.name, spots, {"tissue_fraction": prepared.fraction.astype(np.float32), **quality.columns},
            describe_genes(model, columns), shards.rows(CHUNK_SPOTS), provenance, clock.seconds, thumbnail,
            thumbnail_downsample, model.card["spot_diameter_um"] / prepared.mpp.x,
            shards.rows(CHUNK_SPOTS, spread=True) if unstable else None,
        )  # fmt: skip
        shards.remove()
    return engine


def requested_settings(slide: Slide, mpp: Mpp, model: Model, request: Request) -> dict[str, Any]:
    """All that decides what the result holds; two predictions with equal settings agree."""
    masked = {"mask": [digest_of(request.mask, MaskError), request.mask_origin]} if request.mask else {}
    return {
        "slide": slide.fingerprint(),
        "model": model.sha256,
        "genes": list(request.genes) or model.panel,
        "mpp": list(mpp),
        "pitch_um": request.grid(model).pitch_um,
        "layout": "given" if request.spots_file else request.layout,
        "spots": digest_of(request.spots_file, UsageError) if request.spots_file else None,
        "min_tissue": None if request.spots_file else request.min_tissue,
        **masked,
        **({"tta": SYMMETRIES} if request.tta else {}),
        "engine": request.engine.name,
        "precision": request.engine.precision,
    }


def digest_of(path: Path, failure: type[StpredictError]) -> str:
    """sha256 of a file that the user named. Raises the `failure` if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise failure(f"{path}: cannot be read ({error.strerror}).") from error


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


def sample_patches(raster: Raster, spots: Spots, model: Model, threads: int) -> UInt8:
    """Up to 64 patches, as the model takes them, spread evenly over the spots."""
    index = np.unique(np.linspace(0, len(spots) - 1, N_SAMPLE).round().astype(np.int64))
    with closing(read_patches(raster, spots.centres[index], model.card["patch_px"], threads, model.views)) as blocks:
        return np.stack([patch for _, block in blocks for patch in block])
