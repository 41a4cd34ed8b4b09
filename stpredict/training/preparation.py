"""What a run trains on: whether it can work, as far as tables tell, and only then the patches, in its folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from stpredict.arrays import Float
from stpredict.data.bins import Bins
from stpredict.data.cutting import PATCH_PX, settle_cut, write_tiles
from stpredict.data.dataset import read_counts, read_dataset
from stpredict.data.panel import match_genes
from stpredict.data.section import demand_slides
from stpredict.data.tiles import Measured, Tiles, check_views, measured_in, read_tiles
from stpredict.data.twins import told_twins
from stpredict.errors import ResultError, UsageError
from stpredict.networks import FITTED, reads_slides
from stpredict.networks.encoder_files import count_features
from stpredict.prediction.shards import describe_difference
from stpredict.slides.views import Views
from stpredict.statistics.colour_texture import colour_texture_features
from stpredict.storage.files import atomic_path, output_folders
from stpredict.training.fit import Report
from stpredict.training.folds import Fold, check_depth, check_leaks
from stpredict.training.one_network import Panel
from stpredict.training.settings import Settings, TrainingRequest

#: In the folder of a run.
RECORD, TILES, FEATURES, ENCODED = "run.json", "dataset.tiles.h5", "features.npz", "encoded.npy"
#: Of files of more than twice this, the middle is not looked at.
END_BYTES = 32 << 20


def prepare_run(
    request: TrainingRequest, wanted: dict[str, Any], panel: Panel, plan: Callable[[Tiles | Measured], Sequence[Fold]],
    encoder: nn.Module | None, views: Views, report: Report,
) -> None:  # fmt: skip
    """Cut the patches that a run lacks, take their features, and note what run it is.

    What the data set's tables tell is checked before that, so that a call which is refused changes nothing.
    Raises ResultError if the model exists, or the folder holds a run with other settings, unless `overwrite`;
    UsageError for parts that cannot be held out, and genes or encoders that do not fit.
    """
    dataset, out, settings, mpp = request.dataset, request.out, request.settings, request.mpp
    counts_only, overwrite = request.counts_only, request.overwrite
    folder = run_folder(out)
    begun = is_begun(folder, out, wanted, overwrite)
    tiles_path = tiles_of(dataset, out)
    to_cut = dataset.suffix != ".h5" and not (begun and tiles_path.exists())
    if to_cut:
        sections, more = read_dataset(dataset, Bins(request.bin_um)), read_counts(counts_only) if counts_only else ()
        settle_cut(sections, PATCH_PX, views, mpp)
        if reads_slides(settings.architecture):
            demand_slides(sections, f"--arch {settings.architecture}")
        found: Tiles | Measured = measured_in(sections, more)
        patch_px = PATCH_PX
    else:
        found = tiles = read_tiles(tiles_path)
        check_resolution(tiles, mpp)
        check_views(tiles, views)
        patch_px = tiles.patch_px
    for line in told_twins(found.twins):
        report(line)
    folds = plan(found)
    check_leaks(folds, request.allow_patient_leak, request.protocol)
    check_depth(found, folds, settings.min_depth)
    match_genes([*panel.required, *panel.genes], found.counted_genes, "measured genes")
    if encoder and settings.encoder:
        count_features(encoder, patch_px, settings.encoder.file)
    if overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    with output_folders(folder):
        if not begun:
            for left in (TILES, FEATURES, ENCODED):
                (folder / left).unlink(missing_ok=True)
        if to_cut:
            write_tiles(
                sections, tiles_path, views=views, counts_only=more, mpp=mpp,
                unlabelled=request.unlabelled, seed=settings.seed, threads=request.threads, report=report,
            )  # fmt: skip
        if not begun:
            with atomic_path(folder / RECORD) as temporary:
                temporary.write_text(json.dumps(wanted, indent=1))
        read_features(read_tiles(tiles_path), settings, folder / FEATURES, report, request.threads)


def run_folder(out: Path) -> Path:
    """The folder of a model's run."""
    return out.with_suffix(".run")


def run_name(tiles: Path) -> str | None:
    """What the tiles that a run cut are called after, as all have one file name: their folder. None for other files."""
    path = tiles.absolute()
    return path.parent.name.removesuffix(".run") if path.name == TILES else None


def tiles_of(dataset: Path, out: Path) -> Path:
    """The tiles that a model is trained on: the data set itself, or those cut from it."""
    return dataset if dataset.suffix == ".h5" else run_folder(out) / TILES


def patch_px_of(dataset: Path) -> int:
    """How large the patches of a data set are, or will be once they are cut."""
    return read_tiles(dataset).patch_px if dataset.suffix == ".h5" else PATCH_PX


def check_slides_at_hand(architecture: str, dataset: Path) -> None:
    """Raises UsageError where a network that looks at slides cannot, or would be trained in several processes."""
    if dataset.suffix == ".h5":
        raise UsageError(
            f"--arch {architecture}: looks at the slides around the spots, which {dataset.name} does not hold; name "
            "the folder that it was cut from."
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(f"--arch {architecture}: trains in one process; leave torchrun out.")


def check_resolution(tiles: Tiles, mpp: float | None) -> None:
    """Raises UsageError if a tiles file was cut at another resolution than the one that was asked for."""
    if mpp and abs(tiles.mpp / mpp - 1) > 0.01:
        raise UsageError(f"--mpp {mpp:g}: {tiles.path.name} was cut at {tiles.mpp:g} um per pixel; cut it again.")


def is_finished(folder: Path, out: Path, wanted: dict[str, Any]) -> bool:
    """Whether the model was written by the same run, which is not one that replaces it and was interrupted."""
    record = folder / RECORD
    return (
        record.exists()
        and out.exists()
        and out.stat().st_mtime_ns > record.stat().st_mtime_ns
        and json.loads(record.read_text()) == wanted
    )


def is_begun(folder: Path, out: Path, wanted: dict[str, Any], overwrite: bool) -> bool:
    """Whether the run's folder holds the same run.

    Raises ResultError if it holds another, or the model exists without one, unless `overwrite`.
    """
    record = folder / RECORD
    if overwrite:
        return False
    if record.exists():
        found = json.loads(record.read_text())
        if found != wanted:
            difference = describe_difference(found, wanted)
            raise ResultError(f"{folder}: holds a run with other settings ({difference}); --overwrite begins anew.")
        return True
    if out.exists():
        raise ResultError(f"{out}: exists; --overwrite replaces it.")
    return False


def fingerprint(dataset: Path) -> str:
    """Changes when files of a data set are added, removed or replaced; of large ones, both ends are looked at."""
    files = sorted(path for path in dataset.rglob("*") if path.is_file()) if dataset.is_dir() else [dataset]
    digest = hashlib.sha256()
    for path in (path for path in files if path.exists()):
        size = path.stat().st_size
        digest.update(json.dumps((path.name, size)).encode())
        with path.open("rb") as file:
            digest.update(file.read(END_BYTES))
            file.seek(max(END_BYTES, size - END_BYTES))
            digest.update(file.read(END_BYTES))
    if dataset.suffix == ".h5" and dataset.is_file():
        tiles = read_tiles(dataset)
        digest.update(repr((tiles.mpp, tiles.patch_px, *tiles.section, *tiles.patient)).encode())
    return digest.hexdigest()[:16]


def read_features(tiles: Tiles, settings: Settings, cache: Path, report: Report, threads: int) -> tuple[Float, Float]:
    """Colour and texture features of the spots and, for who is taught, of the unlabelled places, kept in `cache`."""
    if not cache.exists():
        n = len(tiles.spot)
        extra = 0 if settings.architecture in FITTED else len(tiles.unlabelled_section)
        report(f"colour and texture features of {n} spots and {extra} unlabelled patches")
        spots = colour_texture_features((tiles.read_patch(i) for i in range(n)), threads)
        unlabelled = colour_texture_features((tiles.read_patch(i, unlabelled=True) for i in range(extra)), threads)
        with atomic_path(cache) as temporary:
            np.savez(temporary, spots=spots, unlabelled=unlabelled)
    with np.load(cache) as saved:
        return saved["spots"], saved["unlabelled"]
