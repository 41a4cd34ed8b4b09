"""Prepare a slide: open it, choose its spots, find the shards that are already predicted."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stpredict.arrays import Float, Int, UInt8
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
    levels_left_out,
    open_shards,
)
from stpredict.result.file import read_provenance
from stpredict.slides.grid import choose_spots
from stpredict.slides.lattice import Spots
from stpredict.slides.levels import leave_out, on_readable_levels
from stpredict.slides.raster import Raster, block_order, make_raster, read_patches
from stpredict.slides.slide import Mpp, Slide, open_slide, resolve_mpp
from stpredict.slides.symmetry import SYMMETRIES
from stpredict.slides.tissue import Tissue

#: Number of patches that are compared with the training patches and used to check the engine.
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
    """A slide ready to predict: opened, its spots chosen, its shards found. `held` closes it and ends its lease."""

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

    Raises ResultError if there is a result with other settings that may not be overwritten.
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
    """Open a slide and choose its spots, unless its result is there or another process is predicting it.

    With `helping`, do so only if another process is predicting it with these settings, and take no lease.
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
            job.result.parent.mkdir(parents=True, exist_ok=True)  # a refused call may have removed it
            lease = take_lease(job.lease)
            if lease is None:
                return "elsewhere"
            stack.callback(lease.release)
            if is_done(job, settings, request.overwrite_before):  # by the holder of the lease until now
                return "up to date"
            tell_notes(slide, job)  # before the slide fails for another reason
        make_raster(slide, mpp, model.card["mpp"], request.allow_upsampling)  # fails early if the slide is too coarse
        with clock.stage("tissue_and_spots"):
            tissue, spots, fraction = choose_spots(slide, mpp, request.grid(model), request.engine.threads)
        folder = job.parts
        leave_out(slide, levels_left_out(folder, request.overwrite_before))
        with clock.stage("sample"):
            raster, sample = choose_level(slide, mpp, spots, model, request)
        of = folder, block_order_of(raster, spots, model), spots.centres, len(settings["genes"]), settings
        left_out = tuple(sorted(slide.unreadable))
        shards = join_shards(*of, left_out) if helping else open_shards(*of, left_out, request.overwrite_before)
        if shards is None:
            return "elsewhere"
        if not helping:
            tell_notes(slide, job)
        held = stack.pop_all()
    return Prepared(held, slide, mpp, settings, raster, tissue, spots, fraction, shards, sample, clock)


def choose_level(slide: Slide, mpp: Mpp, spots: Spots, model: Model, request: Request) -> tuple[Raster, UInt8]:
    """The raster, and a sample of its patches. Raises LevelError if the finest level cannot be decoded."""

    def sampled() -> tuple[Raster, UInt8]:
        raster = make_raster(slide, mpp, model.card["mpp"], request.allow_upsampling)
        return raster, sample_patches(raster, spots, model, request.engine.threads)

    return on_readable_levels(slide, sampled)


def block_order_of(raster: Raster, spots: Spots, model: Model) -> Int:
    """The order in which the spots are read."""
    return block_order(raster, raster.origins(spots.centres, model.card["patch_px"]))


def tell_notes(slide: Slide, job: Job) -> None:
    """Report, once, what the user should know about how the slide is read."""
    for note in slide.notes:
        log("warning", f"{job.shown.name}: {note}.", slide=str(job.shown))
    slide.notes.clear()


def from_finer_level(prepared: Prepared, job: Job, model: Model, request: Request) -> Prepared:
    """The slide with some levels left out. Shards that were predicted from them are discarded."""
    slide, spots, request = prepared.slide, prepared.spots, request.of(job)
    raster, sample = choose_level(slide, prepared.mpp, spots, model, request)
    tell_notes(slide, job)
    prepared.shards.remove()
    shards = open_shards(
        prepared.shards.folder, block_order_of(raster, spots, model), spots.centres, prepared.shards.n_genes,
        prepared.settings, tuple(sorted(slide.unreadable)),
    )  # fmt: skip
    return replace(prepared, raster=raster, sample=sample, shards=shards)


def requested_settings(slide: Slide, mpp: Mpp, model: Model, request: Request) -> dict[str, Any]:
    """Everything that decides the values of a result: predictions with equal settings agree."""
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
        **({"relative": True} if request.relative else {}),
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
