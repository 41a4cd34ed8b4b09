"""Predict: slides in, results out. Reads top to bottom: a folder of slides, one slide, its spots, its expression."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

import stpredict
from stpredict.arrays import Float32, Int, UInt8
from stpredict.cards import PREDICTED_FROM, card_without_genes, held_out_correlation
from stpredict.data.panel import match_genes
from stpredict.engines import Engine, EngineRequest, open_engine
from stpredict.errors import ResultError, SlideError, StpredictError, UsageError
from stpredict.out_of_distribution import UNUSUAL_FROM, unusual_fraction
from stpredict.result import CHUNK_SPOTS, Gene, read_provenance, write_result
from stpredict.shards import Shards, describe_difference, open_shards, pin_engine, pinned_engine
from stpredict.slides.grid import GridRequest, choose_spots
from stpredict.slides.lattice import Spots
from stpredict.slides.overview import make_thumbnail
from stpredict.slides.raster import Raster, block_order, make_raster, read_patches
from stpredict.slides.slide import Mpp, Slide, open_slide, resolve_mpp
from stpredict.slides.tissue import MASK_UM
from stpredict.weights import Model

SUFFIX = ".h5ad"
N_SAMPLE = 64
#: Patches that are compared with the training patches and used to check the engine.

Report = Callable[[str], None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Request:
    """What to predict and how. No `genes` means the whole panel, no `pitch_um` the spot diameter of the card."""

    genes: Sequence[str] = ()
    pitch_um: float | None = None
    layout: Literal["square", "hex"] = "square"
    spots_file: Path | None = None
    min_tissue: float = 0.25
    mpp: float | None = None
    allow_upsampling: bool = False
    engine: EngineRequest = field(default_factory=EngineRequest)
    overwrite: bool = False

    def grid(self, model: Model) -> GridRequest:
        diameter_um = model.card["spot_diameter_um"]
        return GridRequest(
            diameter_um,
            diameter_um if self.pitch_um is None else self.pitch_um,
            self.layout,
            self.spots_file,
            self.min_tissue,
        )


@dataclass(frozen=True)
class Outcome:
    """What became of one slide."""

    slide: Path
    result: Path | None
    status: Literal["done", "up to date", "failed"]
    error: StpredictError | None = None


def predict_slides(
    slides: Sequence[Path],
    model: Model,
    request: Request,
    out: Path,
    report: Report,
    progress: Progress,
) -> Iterator[Outcome]:
    """Predict slide after slide with one engine; a slide that fails costs only itself.

    Raises UsageError, before anything is read, for what could not work for any slide.
    """
    match_genes(request.genes, model.panel)
    if len(set(request.genes)) < len(request.genes):
        raise UsageError("--genes names a gene more than once.")
    if not 0 <= request.min_tissue <= 1:
        raise UsageError(f"--min-tissue {request.min_tissue:g}: must lie between 0 and 1.")
    results: dict[Path, Path] = {}
    for slide in slides:
        result = out / f"{slide_name(slide)}{SUFFIX}"
        if result in results:
            raise UsageError(
                f"{results[result]} and {slide} would both be written to {result}; give them a folder (-o) each."
            )
        results[result] = slide
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"-o {out}: cannot be made ({error.strerror}).") from error
    if not os.access(out, os.W_OK):
        raise UsageError(f"-o {out}: cannot be written to.")
    warn_of_unpredicted_genes(model, request.genes, report)
    engine: Engine | None = None
    for result, path in results.items():
        try:
            status, engine = predict_slide(path, result, model, request, engine, report, progress)
            yield Outcome(path, result, status)
        except UsageError:
            raise
        except StpredictError as error:
            if len(slides) == 1 and isinstance(error, SlideError) and error.remediable:
                raise UsageError(str(error)) from error
            yield Outcome(path, None, "failed", error)
        except MemoryError:
            yield Outcome(path, None, "failed", SlideError(f"{path.name}: not enough memory."))
        except OSError as error:
            where = f" ({Path(error.filename).name})" if error.filename else ""
            yield Outcome(path, None, "failed", ResultError(f"{path.name}: {error.strerror or error}{where}."))
        except Exception as error:
            if os.environ.get("STPREDICT_DEBUG"):
                raise
            reason = f"{path.name}: unexpected {type(error).__name__}: {error} (stpredict --debug says where)."
            yield Outcome(path, None, "failed", SlideError(reason))


def predict_slide(
    path: Path, result: Path, model: Model, request: Request, engine: Engine | None, report: Report, progress: Progress
) -> tuple[Literal["done", "up to date"], Engine | None]:
    """Predict one slide into `result`. Returns what was done and the engine, for the next slide.

    Raises SlideError, ResultError or EngineError.
    """
    clock = Clock()
    with open_slide(path) as slide:
        mpp = resolve_mpp(slide, request.mpp)
        settings = requested_settings(slide, mpp, model, request)
        if result.exists() and not request.overwrite:
            found = read_provenance(result)["settings"]
            if found == settings:
                return "up to date", engine
            difference = describe_difference(found, settings)
            raise ResultError(f"{result.name}: exists with other settings ({difference}); --overwrite replaces it.")
        raster = make_raster(slide, mpp, model.card["mpp"], request.allow_upsampling)
        tissue, spots, fraction = choose_spots(slide, mpp, request.grid(model), request.engine.threads)
        clock.lap("tissue_and_spots")
        origins = raster.origins(spots.centres, model.card["patch_px"])
        shards = open_shards(
            result.with_name(result.name + ".parts"),
            block_order(raster, origins),
            len(settings["genes"]),
            settings,
            request.overwrite,
        )
        sample = sample_patches(raster, spots, model.card["patch_px"], request.engine.threads)
        unusual = unusual_fraction(sample, model)
        if unusual > UNUSUAL_FROM:
            report(f"{path.name}: {unusual:.0%} of patches look unlike those the model was trained on; expect little.")
        pinned = pinned_engine(shards)
        if pinned is None:
            used = engine = engine or open_engine(model, request.engine, sample, report)
        else:
            used = open_pinned_engine(model, request.engine, pinned, sample, report)
        pin_engine(shards, used.name, used.precision)
        clock.lap("engine")
        columns = np.array(match_genes(settings["genes"], model.panel))
        predict_shards(shards, raster, spots, model.card["patch_px"], columns, used, request.engine.threads, progress)
        clock.lap("reading_and_inference")
        provenance = {
            **used.description(),
            **describe_prediction(slide, mpp, raster, spots, model, settings, request, result.parent),
            "tissue": {"mask_um": MASK_UM, "tissue_fraction_of_slide": round(float(tissue.mask.mean()), 4)},
            "unusual_patches": round(unusual, 3),
            "display_range": display_range(model, columns),
            "card": card_without_genes(model.card),
        }
        thumbnail, thumbnail_downsample = make_thumbnail(slide, tissue.overview, request.engine.threads)
        write_result(
            result, slide_name(path), spots, fraction, describe_genes(model, columns), shards.rows(CHUNK_SPOTS),
            provenance, clock.seconds, thumbnail, thumbnail_downsample, model.card["spot_diameter_um"] / mpp.x,
        )  # fmt: skip
        shards.remove()
    return "done", engine


def requested_settings(slide: Slide, mpp: Mpp, model: Model, request: Request) -> dict[str, Any]:
    """All that decides what the result holds; two predictions with equal settings agree."""
    spots_digest = None
    if request.spots_file:
        try:
            spots_digest = hashlib.sha256(request.spots_file.read_bytes()).hexdigest()
        except OSError as error:
            raise UsageError(f"{request.spots_file}: cannot be read ({error.strerror}).") from error
    return {
        "slide": slide.fingerprint(),
        "model": model.sha256,
        "genes": list(request.genes) or model.panel,
        "mpp": list(mpp),
        "pitch_um": request.grid(model).pitch_um,
        "layout": "given" if request.spots_file else request.layout,
        "spots": spots_digest,
        "min_tissue": None if request.spots_file else request.min_tissue,
        "engine": request.engine.name,
        "precision": request.engine.precision,
    }


def describe_prediction(
    slide: Slide, mpp: Mpp, raster: Raster, spots: Spots, model: Model, settings: dict[str, Any], request: Request,
    beside: Path,
) -> dict[str, Any]:  # fmt: skip
    """What a result records of slide, model and grid; of the slide's own metadata nothing but its resolution."""
    diameter_um = model.card["spot_diameter_um"]
    return {
        "stpredict": stpredict.__version__,
        "model": {"name": model.name, "sha256": model.sha256},
        "expression_unit": model.card["expression_unit"],
        "settings": settings,
        "slide": {
            "name": slide_name(slide.path),
            "path": os.path.relpath(slide.path.resolve(), beside.resolve()),
            "fingerprint": settings["slide"],
            "dimensions": list(slide.dimensions),
            "bounds": list(slide.bounds),
            "native_mpp": list(slide.native_mpp) if slide.native_mpp else None,
            "given_mpp": request.mpp,
            "mpp": list(mpp),
            "reader": slide.reader,
        },
        "raster": {"mpp": raster.mpp, "level": raster.level, "scale": list(raster.scale)},
        "lattice": {
            "layout": spots.layout,
            "pitch_um": spots.pitch_um,
            "spot_diameter_um": diameter_um,
            "oversampled": spots.pitch_um < diameter_um,
        },
    }


def predict_shards(
    shards: Shards,
    raster: Raster,
    spots: Spots,
    patch_px: int,
    columns: Int,
    engine: Engine,
    threads: int,
    progress: Progress,
) -> None:
    """Predict the shards that are not there yet. Raises SlideError where the slide cannot be decoded."""
    missing = shards.missing()
    wanted = np.concatenate([shards.spots(shard) for shard in missing]) if missing else np.empty(0, np.int64)
    done, total = len(spots) - len(wanted), len(spots)
    patches = (patch for _, block in read_patches(raster, spots.centres[wanted], patch_px, threads) for patch in block)
    outputs = engine.infer(fixed_batches(patches, engine.batch_size, (patch_px, patch_px, 3)))
    buffer: list[Float32] = []
    held = 0
    for shard in missing:
        size = len(shards.spots(shard))
        while held < size:
            batch = next(outputs)[:, columns]
            buffer.append(batch)
            held += len(batch)
            progress(min(done + held, total), total)
        expression = np.concatenate(buffer)
        shards.write(shard, np.ascontiguousarray(expression[:size]))
        buffer, held, done = [expression[size:]], held - size, done + size


def fixed_batches(patches: Iterator[UInt8], batch_size: int, shape: tuple[int, int, int]) -> Iterator[UInt8]:
    """Batches of exactly `batch_size` patches; the last one is padded with white."""
    batch, filled = np.full((batch_size, *shape), 255, np.uint8), 0
    for patch in patches:
        batch[filled] = patch
        filled += 1
        if filled == batch_size:
            yield batch
            batch, filled = np.full((batch_size, *shape), 255, np.uint8), 0
    if filled:
        yield batch


def open_pinned_engine(
    model: Model, request: EngineRequest, pinned: tuple[str, str], sample: UInt8, report: Report
) -> Engine:
    """The engine that an interrupted prediction began with. Raises ResultError if it cannot run here."""
    try:
        again = EngineRequest(*pinned, request.device, request.batch_size, request.threads)
        return open_engine(model, again, sample, report)
    except StpredictError as error:
        reason = f"the interrupted prediction used {pinned[0]} {pinned[1]}: {error}"
        raise ResultError(f"{reason} --overwrite begins anew.") from error


def sample_patches(raster: Raster, spots: Spots, patch_px: int, threads: int) -> UInt8:
    """Up to 64 patches spread evenly over the spots."""
    index = np.unique(np.linspace(0, len(spots) - 1, N_SAMPLE).round().astype(np.int64))
    blocks = list(read_patches(raster, spots.centres[index], patch_px, threads))
    return np.concatenate([block for _, block in blocks])


def describe_genes(model: Model, columns: Int) -> list[Gene]:
    correlation = held_out_correlation(model.card)
    mean = model.card["genes"]["training_mean"] or [np.nan] * len(model.panel)
    return [Gene(model.panel[i], correlation[i], mean[i]) for i in columns]


def display_range(model: Model, columns: Int) -> list[list[float]] | None:
    """The card's lowest and highest colour of each gene; None for an imported model, which has none."""
    bounds = model.card["genes"]["display_range"]
    return [[side[i] for i in columns] for side in bounds] if bounds else None


def warn_of_unpredicted_genes(model: Model, genes: Sequence[str], report: Report) -> None:
    """Tell which of the genes asked for the model could not predict when it was tested."""
    correlation = held_out_correlation(model.card)
    if not np.isfinite(correlation).any():
        report(f"{model.name} was never tested on held-out tissue.")
        return
    asked = match_genes(genes, model.panel) or range(len(model.panel))
    poor = [i for i in asked if not correlation[i] >= PREDICTED_FROM]
    if poor:
        named = ": " + ", ".join(f"{model.panel[i]} ({correlation[i]:.2f})" for i in poor) if genes else ""
        report(
            f"{model.name} could not predict {len(poor)} of these {len(asked)} genes when it was tested "
            f"(held-out correlation below {PREDICTED_FROM:g}){named}"
        )


def slide_name(path: Path) -> str:
    """The slide's name in results: its file name without the suffix, as valid text."""
    return os.fsencode(path.stem).decode("utf-8", "replace")


class Clock:
    """Seconds per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, stage: str) -> None:
        now = time.monotonic()
        self.seconds[stage] = round(now - self._last, 3)
        self._last = now
