"""Make a slide ready: open it, choose its spots, find what is predicted of it already."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stpredict.arrays import Float, UInt8
from stpredict.console import log
from stpredict.errors import MaskError, ResultError, StpredictError, UsageError
from stpredict.machine import give_back_memory
from stpredict.model.file import Model
from stpredict.prediction.job import Job
from stpredict.prediction.leases import take_lease
from stpredict.prediction.request import Request
from stpredict.prediction.shards import (
    Shards,
    describe_difference,
    join_shards,
    open_shards,
)
from stpredict.result.file import read_provenance
from stpredict.slides.grid import choose_spots
from stpredict.slides.lattice import Spots
from stpredict.slides.raster import Raster, block_order, make_raster, read_patches
from stpredict.slides.slide import Mpp, Slide, open_slide, resolve_mpp
from stpredict.slides.symmetry import SYMMETRIES
from stpredict.slides.tissue import Tissue

#: Patches that are compared with the training patches and used to check the engine.
N_SAMPLE = 64


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
        if not helping:
            tell_notes(slide, job)
        held = stack.pop_all()
    return Prepared(held, slide, mpp, settings, raster, tissue, spots, fraction, shards, sample, clock)


def tell_notes(slide: Slide, job: Job) -> None:
    """Warn, once, of what there is to know of how the slide is read."""
    for note in slide.notes:
        log("warning", f"{job.shown.name}: {note}.", slide=str(job.shown))
    slide.notes.clear()


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


def sample_patches(raster: Raster, spots: Spots, model: Model, threads: int) -> UInt8:
    """Up to 64 patches, as the model takes them, spread evenly over the spots."""
    index = np.unique(np.linspace(0, len(spots) - 1, N_SAMPLE).round().astype(np.int64))
    with closing(read_patches(raster, spots.centres[index], model.card["patch_px"], threads, model.views)) as blocks:
        return np.stack([patch for _, block in blocks for patch in block])
