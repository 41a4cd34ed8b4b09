"""Prepare a run: check from tables alone whether it can work, and only then cut its patches, in its folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from stpredict.arrays import Float
from stpredict.console import Report
from stpredict.data.coverage import demand_genes, narrow
from stpredict.data.cutting import PATCH_PX, settle_cut, write_tiles
from stpredict.data.dataset import read_asked, read_counts
from stpredict.data.panel import match_genes
from stpredict.data.reading import read_broken, write_broken
from stpredict.data.section import Section, demand_slides
from stpredict.data.tiles import Measured, Tiles, check_views, measured_in, read_outline, read_tiles, shared_genes
from stpredict.data.twins import told_twins
from stpredict.errors import ResultError, UsageError, counted
from stpredict.evaluation.described import MOST_DESCRIBED, describe_drawn
from stpredict.networks import architecture_views, reads_slides, reads_tiles, refuses_patches
from stpredict.networks.encoder_files import count_features
from stpredict.prediction.leases import is_held, leases_in
from stpredict.prediction.shards import describe_difference
from stpredict.statistics.colour_texture import colour_texture_features
from stpredict.storage.files import atomic_path, output_folders
from stpredict.training.encoded import PARTS
from stpredict.training.folds import Fold, check_depth, check_leaks
from stpredict.training.panels import Panel, n_partly_measured, refuse_gaps
from stpredict.training.retrieval import check_exemplars
from stpredict.training.settings import TrainingRequest
from stpredict.training.tissue import NO_TISSUE, Tissue, read_tissue

#: In the folder of a run.
RECORD, TILES, FEATURES, ENCODED = "run.json", "dataset.tiles.h5", "features.npz", "encoded.npy"
#: In the same folder, a table of the sections that could not be read, if any, and one of slides without counts.
BROKEN, BROKEN_TISSUE = "broken.csv", "broken-tissue.csv"
#: The lease of the call that prepares what all calls of a run share.
PREPARING = "preparing.lease"
#: In the record of a run, keys of a recipe that are for people to read; a panel's, whether the user named its rule.
WORDS, CHOSEN = ("ours", "source"), ("chosen",)
#: How far to look, in pixels, for a size of patches that a network takes.
NEAR_PX = 64
#: The middle of a file larger than twice this is not looked at.
END_BYTES = 32 << 20


@dataclass(frozen=True)
class Checked:
    """The data of a run, as far as tables tell, after all checks.

    Patches of the `sections` are to be cut; the sections `more` have counts only. Both are empty if patches are there.
    """

    begun: bool  # by an earlier call
    found: Tiles | Measured
    folds: Sequence[Fold]
    sections: Sequence[Section] = ()
    more: Sequence[Section] = ()
    broken: Mapping[str, str] = field(default_factory=dict)  # the reason for each section that is left out
    tissue: Tissue = NO_TISSUE


def check_run(
    request: TrainingRequest, wanted: dict[str, Any], panel: Panel, plan: Callable[[Tiles | Measured], Sequence[Fold]],
    encoder: nn.Module | None, report: Report,
) -> Checked:  # fmt: skip
    """Check the data of a run, without writing anything.

    Raises ResultError if the model exists, or the folder holds a run with other settings, unless `overwrite`;
    UsageError for parts that cannot be held out, and genes or encoders that do not fit.
    """
    dataset, out, settings, mpp = request.dataset, request.out, request.settings, request.mpp
    patch_px, views = patch_px_of(request), architecture_views(settings.architecture)
    begun = is_begun(run_folder(out), out, wanted, request.overwrite)
    tiles_path = tiles_of(dataset, out)
    sections: list[Section] = []
    more: list[Section] = []
    broken: dict[str, str] = {}
    tissue = NO_TISSUE
    if dataset.suffix != ".h5" and not (begun and tiles_path.exists()):
        sections, broken = read_asked(dataset, request.reading)
        more = read_counts(request.counts_only) if request.counts_only else []
        cut_mpp = settle_cut(sections, patch_px, views, mpp)
        if reads_slides(settings.architecture):
            demand_slides(sections, f"--arch {settings.architecture}")
        if request.tissue:
            tissue = read_tissue(
                request.tissue, sections, cut_mpp, request.unlabelled, request.skip_broken, report
            )  # fmt: skip
        found: Tiles | Measured = replace(measured_in(sections, more), tissue=tissue.patients)
    else:
        found = read_tiles(tiles_path)
        check_resolution(found, mpp, request.patch_um)
        check_views(found, views)
        if found.tissue and settings.learns_from_tissue:
            n = len(found.tissue)
            report(f"{counted(n, 'slide')} without counts {'teaches' if n == 1 else 'teach'} too")
    for line in told_twins(found.twins):
        report(line)
    folds = plan(found)
    check_leaks(folds, request.allow_patient_leak, request.protocol)
    check_depth(found, folds, settings.min_depth)
    check_exemplars(settings.architecture, found, folds)
    match_genes([*panel.required, *panel.genes], found.counted_genes, "measured genes")
    if not panel.genes and panel.rule_for(found) != "coverage":
        few = narrow(sections) if sections else ""
        demand_genes(len(shared_genes(found)), found.most_genes, "all sections measured", few)
    refuse_gaps(settings, n_partly_measured(panel, found))
    if encoder and settings.encoder:
        count_features(encoder, patch_px, settings.encoder.file)
    return Checked(begun, found, folds, sections, more, broken, tissue)


def prepare_run(
    request: TrainingRequest, wanted: dict[str, Any], panel: Panel, plan: Callable[[Tiles | Measured], Sequence[Fold]],
    encoder: nn.Module | None, report: Report,
) -> Tiles:  # fmt: skip
    """Cut the patches that a run lacks, compute their features, and record the run's settings; returns the tiles.

    All that tables tell is checked first, so that a refused call changes nothing. Raises the errors of `check_run`.
    """
    settings, folder = request.settings, run_folder(request.out)
    checked = check_run(request, wanted, panel, plan, encoder, report)
    tiles_path = tiles_of(request.dataset, request.out)
    if request.overwrite:
        discard(folder)
    with output_folders(folder):
        if not checked.begun:
            for left in (FEATURES, ENCODED, BROKEN, BROKEN_TISSUE):
                (folder / left).unlink(missing_ok=True)
            shutil.rmtree((folder / ENCODED).with_suffix(PARTS), ignore_errors=True)
        if checked.sections:
            write_broken(checked.broken, folder / BROKEN)
            write_broken(checked.tissue.broken, folder / BROKEN_TISSUE, "slide")
            write_tiles(
                checked.sections, tiles_path, patch_px=patch_px_of(request),
                views=architecture_views(settings.architecture), counts_only=checked.more, mpp=request.mpp,
                tissue=checked.tissue.slides, unlabelled=request.unlabelled, seed=settings.seed,
                threads=request.threads, patch_format=request.patch_format, report=report,
            )  # fmt: skip
        found, begun = checked.found, checked.begun
        del checked  # before the sections are read again as tiles
        if not begun:
            with atomic_path(folder / RECORD) as temporary:
                temporary.write_text(json.dumps(wanted, indent=1))
        tiles = found if isinstance(found, Tiles) else read_tiles(tiles_path)
        read_features(tiles, settings.taught_by_features, folder / FEATURES, report, request.threads)
    return tiles


def discard(folder: Path) -> None:
    """Remove a run, except for the lease of the call that prepares it.

    Raises ResultError while another call trains a part of it.
    """
    if any(is_held(lease) for lease in leases_in(folder) if lease.name != PREPARING):
        raise ResultError(f"{folder}: another call is at work there; --overwrite would take its files away.")
    for path in folder.glob("*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != PREPARING:
            path.unlink(missing_ok=True)


def run_folder(out: Path) -> Path:
    """The folder of a model's run."""
    return out.with_suffix(".run")


def run_name(tiles: Path) -> str | None:
    """The name of tiles that a run cut: that of their folder, as all have one file name. None for other files."""
    path = tiles.absolute()
    return path.parent.name.removesuffix(".run") if path.name == TILES else None


def asked_of_sections(request: TrainingRequest) -> dict[str, Any]:
    """For the record of a run: the requested sections, the naming of genes, and whether cards name sections."""
    asked = {"where": request.where, "species": request.species, "anonymous": request.anonymous or None}
    table = request.orthologs
    return {name: value for name, value in asked.items() if value is not None} | (
        {"orthologs": [table.name, fingerprint(table)]} if table else {}
    )


def left_out(out: Path, table: str = BROKEN) -> list[str]:
    """The sections that a model was trained without because they could not be read; or the slides of BROKEN_TISSUE."""
    return read_broken(run_folder(out) / table, "slide" if table == BROKEN_TISSUE else "section")


def tiles_of(dataset: Path, out: Path) -> Path:
    """The tiles that a model is trained on: the data set itself, or those cut from it."""
    return dataset if dataset.suffix == ".h5" else run_folder(out) / TILES


def patch_px_of(request: TrainingRequest) -> int:
    """The size in pixels of the patches that a call trains on, cut or yet to be cut.

    Raises UsageError if the requested field of view, at the requested mpp, gives a size that the network does not take.
    """
    dataset, mpp, patch_um, architecture = request.dataset, request.mpp, request.patch_um, request.settings.architecture
    if dataset.suffix == ".h5":
        return read_outline(dataset).patch_px
    if patch_um is None or mpp is None:
        return PATCH_PX
    patch_px = round(patch_um / mpp)
    if reads_tiles(architecture):  # it reads no patches
        return patch_px
    if error := refuses_patches(architecture, patch_px):
        near = (at for step in range(1, NEAR_PX) for at in (patch_px - step, patch_px + step))
        taken = next((at for at in near if not refuses_patches(architecture, at)), None)
        hint = f"; --patch-um {taken * mpp:g} is {taken} px" if taken else ""
        raise UsageError(f"--patch-um {patch_um:g}: {patch_px} px at {mpp:g} um per pixel: {error}{hint}.")
    return patch_px


def check_slides_at_hand(architecture: str, dataset: Path) -> None:
    """Raises UsageError if the data set does not hold the slides that the network looks at."""
    if dataset.suffix == ".h5":
        raise UsageError(
            f"--arch {architecture}: looks at the slides around the spots, which {dataset.name} does not hold; name "
            "the folder that it was cut from."
        )


def demand_one_process(architecture: str) -> None:
    """Raises UsageError if there are several processes, and the network learns from one section in each step."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            f"--arch {architecture}: each step learns from one section, whose spots read one another, so that several "
            "processes cannot divide it; leave torchrun out, or train held-out parts side by side (--only)."
        )


def check_resolution(tiles: Tiles, mpp: float | None, patch_um: float | None = None) -> None:
    """Raises UsageError if a tiles file was cut at another resolution or field of view than requested."""
    if mpp and abs(tiles.mpp / mpp - 1) > 0.01:
        raise UsageError(f"--mpp {mpp:g}: {tiles.path.name} was cut at {tiles.mpp:g} um per pixel; cut it again.")
    if patch_um and mpp and round(patch_um / mpp) != tiles.patch_px:
        raise UsageError(
            f"--patch-um {patch_um:g}: {tiles.path.name} holds patches of {tiles.patch_px * tiles.mpp:g} um; cut it "
            "again."
        )


def is_finished(folder: Path, out: Path, wanted: dict[str, Any]) -> bool:
    """Whether the same run wrote the model, and is not an interrupted run that was to replace it."""
    record = folder / RECORD
    return (
        record.exists()
        and out.exists()
        and out.stat().st_mtime_ns > record.stat().st_mtime_ns
        and not difference_of(json.loads(record.read_text()), wanted)
    )


def difference_of(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The difference between the records of two runs, in words; empty if both ask for the same.

    An older record does not say whether the user named the panel's rule, and may stand for either. A record that says
    nothing of the format of patches stands for their pixels. Words about a recipe decide nothing.
    """
    silent = () if CHOSEN[0] in (found.get("panel") or ()) else CHOSEN

    def decisive(record: dict[str, Any], but: Sequence[str]) -> dict[str, Any]:
        panel, recipe = record.get("panel"), record.get("recipe")
        kept = {"patch_format": "raw", **record}
        return {**kept, "panel": without(panel, but), "recipe": without(recipe, WORDS)}

    first, second = decisive(found, silent), decisive(wanted, silent)
    if first == second:
        return ""
    return describe_difference(decisive(first, CHOSEN), decisive(second, CHOSEN)) or describe_difference(first, second)


def without(part: Any, keys: Sequence[str]) -> Any:
    """A part of a record, without some keys if it has keys."""
    return {key: value for key, value in part.items() if key not in keys} if isinstance(part, dict) else part


def is_begun(folder: Path, out: Path, wanted: dict[str, Any], overwrite: bool) -> bool:
    """Whether the run's folder holds the same run.

    Raises ResultError if it holds another, or the model exists without one, unless `overwrite`.
    """
    record = folder / RECORD
    if overwrite:
        return False
    if record.exists():
        found = json.loads(record.read_text())
        if difference := difference_of(found, wanted):
            raise ResultError(f"{folder}: holds a run with other settings ({difference}); --overwrite begins anew.")
        return True
    if out.exists():
        raise ResultError(f"{out}: exists; --overwrite replaces it.")
    return False


def fingerprint(dataset: Path) -> str:
    """A hash that changes if files of a data set are added, removed or replaced; it reads both ends of large ones."""
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
        tiles = read_outline(dataset)
        elsewhere = [file.fingerprint for file in tiles.elsewhere]
        digest.update(repr((tiles.mpp, tiles.patch_px, *tiles.section, *tiles.patient, *elsewhere)).encode())
    return digest.hexdigest()[:16]


def read_features(tiles: Tiles, taught: bool, cache: Path, report: Report, threads: int) -> tuple[Float, Float]:
    """Colour and texture features of the spots and, if a network is `taught` by them, of the unlabelled places.

    If there are very many spots, `describe_drawn` describes some. The features are stored in `cache`.
    """
    if not cache.exists():
        n = len(tiles.spot)
        extra = len(tiles.unlabelled_section) if taught else 0
        drawn = f"{n} spots" if n <= MOST_DESCRIBED else f"{MOST_DESCRIBED} of {n} spots, drawn evenly by section,"
        report(f"colour and texture features of {drawn} and {extra} unlabelled patches")
        spots = describe_drawn(tiles, np.arange(n), threads)
        unlabelled = colour_texture_features((tiles.read_patch(i, unlabelled=True) for i in range(extra)), threads)
        with atomic_path(cache) as temporary:
            np.savez(temporary, spots=spots, unlabelled=unlabelled)
    with np.load(cache) as saved:
        return saved["spots"], saved["unlabelled"]
