"""From a data set to a model file: check the request, prepare the data that all calls of a run share, then train."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from stpredict.console import Report
from stpredict.data.dataset import read_dataset
from stpredict.data.panel import check_rule
from stpredict.data.section import without_counts
from stpredict.data.tiles import Measured, Tiles, read_tiles
from stpredict.errors import UsageError
from stpredict.machine import limit_threads
from stpredict.networks import check_architecture, reads_sections, reads_slides, reads_tiles
from stpredict.networks.encoder import Encoded, EncoderConfig
from stpredict.networks.encoder_files import count_features, open_encoder
from stpredict.networks.encoder_maps import Maps, count_channels
from stpredict.networks.encoder_settings import EncoderSettings
from stpredict.networks.hierarchy import HierarchySizes
from stpredict.networks.hierarchy_files import read_hierarchy
from stpredict.networks.trunk_files import read_trunk
from stpredict.prediction.leases import alone
from stpredict.statistics.normalisation import check_normalisation
from stpredict.statistics.objectives import check_objective
from stpredict.storage.files import output_folders
from stpredict.training.anonymous import numbered, write_names
from stpredict.training.crossvalidation import demand_measured, run_crossvalidation, run_fold
from stpredict.training.encoded import encode_spots
from stpredict.training.fit import empty_trunk
from stpredict.training.folds import Fold, check_split, plan_folds
from stpredict.training.heads import describe_patches
from stpredict.training.hierarchy import describe_spots, frozen_network
from stpredict.training.jobs import SCORES, demand_named, do_one, named
from stpredict.training.panels import Panel
from stpredict.training.preparation import (
    ENCODED,
    FEATURES,
    PREPARING,
    asked_of_sections,
    check_slides_at_hand,
    demand_one_process,
    fingerprint,
    is_finished,
    patch_px_of,
    prepare_run,
    read_features,
    run_folder,
    tiles_of,
)
from stpredict.training.processes import agree_on, is_main_process, pick_device, process_group, wait_for_all
from stpredict.training.protocols import find_protocol
from stpredict.training.run import Run
from stpredict.training.settings import TrainingRequest
from stpredict.training.tissue import recorded_tissue
from stpredict.training.triplex import SURROUNDINGS

#: In the folder of a run, the lease of the call that trains the network on everything.
FINISHING = "all.lease"


def train_model(request: TrainingRequest, panel: Panel, report: Report) -> list[str]:
    """Train a model from a data set or a tiles file, by way of the folder MODEL.run.

    Calls on many machines may share that folder: shared data are prepared once, and one call trains each held-out part.
    With `only`, a call trains just these parts, and returns the names of those that other calls are training. Without,
    it reads finished parts back, does the rest, and writes the model.
    A killed run goes on where it was. Under torchrun every process calls this function.
    Raises the errors of `prepare_run`, and UsageError for unknown settings.
    """
    out, folder, wanted = request.out, run_folder(request.out), recorded(request, panel)
    limit_threads(request.threads)
    given = check_request(request, panel)
    if not request.overwrite and is_finished(folder, out, wanted):
        for name in request.only:
            if not (folder / name / SCORES).exists():
                raise UsageError(f"--only {name}: no part of this run, which is finished.")
        report(f"{out}: up to date")
        return []
    with process_group(request.device), output_folders(folder):
        with first_alone(folder / PREPARING, "another call prepares this run; waiting for it", report):
            run, folds = prepare(request, panel, given, wanted, report)
        demand_measured(run, [fold for name, fold in named(folds).items() if name in request.only or not request.only])
        if request.only:
            parts = {name: fold for name, fold in named(folds).items() if name in request.only}
            done = {name: do_one(folder / name, fold, partial(run_fold, run)) for name, fold in parts.items()}
            return [name for name, scores in done.items() if scores is None]
        with first_alone(folder / FINISHING, "another call gathers this run; waiting for it", report):
            if agree_on(int(is_finished(folder, out, wanted))):
                report(f"{out}: another call has written it")
            else:
                run_crossvalidation(run, folds, request.protocol, out, folder)
    return []


@contextmanager
def first_alone(lease: Path, meanwhile: str, report: Report) -> Iterator[None]:
    """Within this context there is no other call. If processes train together, the first one ensures that."""
    with alone(lease, meanwhile, report) if is_main_process() else nullcontext():
        wait_for_all()
        yield


@dataclass(frozen=True)
class Given:
    """The content of the user's files: weights with which a trunk begins, HIPT's networks, an encoder, a teacher."""

    weights: Mapping[str, Tensor] | None = None
    hierarchy: tuple[HierarchySizes, Mapping[str, Tensor]] | None = None
    encoder: nn.Module | None = None
    teacher: Encoded | None = None


def check_request(request: TrainingRequest, panel: Panel) -> Given:
    """Check the settings and read the user's files. Raises UsageError for faults in either."""
    settings = request.settings
    architecture = settings.architecture
    check_architecture(architecture)
    if reads_slides(architecture):
        check_slides_at_hand(architecture, request.dataset)
    if reads_sections(architecture):
        demand_one_process(architecture)
    given = Given()
    if reads_tiles(architecture):
        if not request.encoder_weights or not request.region_weights:
            raise UsageError(f"--arch {architecture}: needs HIPT's --encoder-weights and --region-weights.")
        given = Given(hierarchy=read_hierarchy(request.encoder_weights, request.region_weights))
    elif request.encoder_weights:
        trunk = empty_trunk(settings, patch_px_of(request))
        given = Given(weights=read_trunk(request.encoder_weights, trunk, architecture))
    if request.encoder and settings.encoder:
        given = replace(given, encoder=open_encoder(request.encoder, patch_px_of(request), settings.encoder.vit))
    if request.teacher and settings.teacher:
        given = replace(given, teacher=open_teacher(request.teacher, settings.teacher, patch_px_of(request)))
    check_objective(settings.objective, settings.smooth_labels)
    check_normalisation(settings.normalisation)
    check_rule(panel.rule)
    check_split(request.folds)
    pick_device(request.device)
    return given


def parts_of(request: TrainingRequest, found: Tiles | Measured) -> list[Fold]:
    """The parts to hold out. Raises UsageError for a name that no part has."""
    if request.protocol:
        folds = find_protocol(request.protocol).folds(found, request.settings.seed)
    else:
        folds = plan_folds(found, request.folds, request.hold_out)
    demand_named(request.only, folds)
    return folds


def prepare(
    request: TrainingRequest, panel: Panel, given: Given, wanted: dict[str, Any], report: Report
) -> tuple[Run, list[Fold]]:
    """Prepare the data that all calls of a run share, or read them back; returns the run and its held-out parts."""
    dataset, settings, folder = request.dataset, request.settings, run_folder(request.out)
    plan, prepared = partial(parts_of, request), None
    if is_main_process():
        prepared = prepare_run(request, wanted, panel, plan, given.encoder, report)
    wait_for_all()
    tiles = prepared or read_tiles(tiles_of(dataset, request.out))
    features, unlabelled_features = read_features(
        tiles, settings.taught_by_features, folder / FEATURES, report, request.threads
    )
    if given.teacher and not len(tiles.unlabelled_section):
        raise UsageError(f"--teacher: teaches on unlabelled patches, of which {dataset.name} has none.")
    slides = read_dataset(dataset, request.reading) if reads_slides(settings.architecture) else []
    run = Run(
        tiles, features, unlabelled_features, panel, settings, request.licence, pick_device(request.device), report,
        sections=[*map(without_counts, slides)],
        weights=given.weights, anonymous=request.anonymous, accumulate=request.accumulate, teacher=given.teacher,
    )  # fmt: skip
    if request.anonymous and is_main_process():
        write_names(numbered(tiles), folder)
    if given.encoder and settings.encoder:
        run = with_encoder(run, given.encoder, settings.encoder, folder / ENCODED)
    if given.hierarchy:
        run = with_hierarchy(run, *given.hierarchy, folder / ENCODED)
    return run, plan(tiles)


def recorded(request: TrainingRequest, panel: Panel) -> dict[str, Any]:
    """All settings that decide the outcome of a run. A run goes on only with those that it began with."""
    settings, counts_only = request.settings, request.counts_only
    wanted = {
        **asdict(settings), **settings.renewed(), "panel": panel.recorded(not request.protocol),
        "folds": request.protocol or request.folds,
        "hold_out": list(request.hold_out), "mpp": request.mpp, "unlabelled": request.unlabelled,
        "licence": request.licence, "dataset": request.dataset.name, "files": fingerprint(request.dataset),
        "counts_only": counts_only and [counts_only.name, fingerprint(counts_only)],
    }  # fmt: skip
    for name, known in (("encoder", settings.encoder), ("teacher", settings.teacher)):
        if known and not known.stain:  # the same as in runs that older versions began
            del wanted[name]["stain"]
    if settings.region_weights is None:
        del wanted["region_weights"]
    if request.bin_um is not None:  # without it, the same as in runs that older versions began
        wanted["bin_um"] = request.bin_um
    for name in ("recipe", "balance", "teacher"):  # as above
        if wanted[name] is None:
            del wanted[name]
    if request.tissue:  # as above
        wanted["tissue"] = recorded_tissue(request.tissue)
    if request.patch_um is not None:  # as above
        wanted["patch_um"] = request.patch_um
    if request.patch_format != "raw":  # as above
        wanted["patch_format"] = request.patch_format
    return dict(json.loads(json.dumps(wanted | asked_of_sections(request))))


def attached(encoder: nn.Module, known: EncoderSettings, width: int, patch_px: int) -> Encoded:
    """An encoder that gives `width` features, behind the normalisation of pixels that it was trained with."""
    network = Encoded(
        EncoderConfig(
            1, width, known.file, known.sha256, known.mean, known.std, patch_px, vit=known.vit, stain=known.stain
        )
    )
    network.encoder = encoder
    return network


def open_teacher(path: Path, known: EncoderSettings, patch_px: int) -> Encoded:
    """The encoder that teaches tokens, from patches to maps. Raises ModelFileError for one that gives no maps."""
    maps = Maps(open_encoder(path, patch_px, known.vit))
    return attached(maps, known, count_channels(maps, patch_px, known.file), patch_px)


def with_encoder(run: Run, encoder: nn.Module, known: EncoderSettings, cache: Path) -> Run:
    """The run with an encoder and its features of each spot, stored in `cache`. The encoder runs once per spot.

    Raises ModelFileError if it does not take patches of this size.
    """
    width = count_features(encoder, run.tiles.patch_px, known.file)
    network = attached(encoder, known, width, run.tiles.patch_px)
    network.to(run.device)
    if not cache.exists():
        run.report(f"{known.file}: {width} features of {len(run.tiles.spot)} spots")
    describe = partial(describe_patches, network, run.tiles, device=run.device)
    return replace(run, encoder=network, encoded=encode_spots(run.tiles, describe, cache))


def with_hierarchy(run: Run, sizes: HierarchySizes, tensors: Mapping[str, Tensor], cache: Path) -> Run:
    """The run with HIPT's frozen networks and their features of each spot, stored in `cache`."""
    network = frozen_network(run.settings.architecture, sizes, tensors, run.tiles, run.device)
    if not agree_on(int(cache.exists())):
        describe_spots(network, run.sections, run.tiles, cache, cache.parent / SURROUNDINGS, run.device, run.report)
    return replace(run, encoder=network, encoded=np.load(cache, mmap_mode="r"))
