"""Plan a run: what it would train, and the time and room that it would take, before anything is cut or written."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from tempfile import gettempdir

import numpy as np
import torch
from scipy.sparse import csr_array, vstack
from torch.nn import functional as F

from stpredict.console import Report
from stpredict.data.cutting import places_by_section
from stpredict.data.panel import choose_panel
from stpredict.data.patch_formats import JPEG_SHARE
from stpredict.data.tiles import Measured, Tiles, aligned
from stpredict.data.tissue import places_of, tissue_beside
from stpredict.data.waiting_counts import ENTRY_BYTES, SMALL_BYTES
from stpredict.errors import counted, some
from stpredict.evaluation.described import MOST_TAUGHT
from stpredict.networks import FITTED, architecture_views, has_bank, reads_sections, reads_slides
from stpredict.networks.bank import MAX_SPOTS
from stpredict.slides.views import patch_shape
from stpredict.training.at_once import shares_sums
from stpredict.training.crossvalidation import sections_of
from stpredict.training.fit import Descent, new_network, plain_step
from stpredict.training.folds import Fold, choose_validation
from stpredict.training.head_sums import are_many
from stpredict.training.jobs import named
from stpredict.training.optimisers import make_optimiser, make_schedule
from stpredict.training.panel_counts import SMALL_TARGETS
from stpredict.training.panels import Panel, choose_genes, coverage_of
from stpredict.training.preparation import Checked, check_run, is_finished, patch_px_of, run_folder
from stpredict.training.processes import pick_device
from stpredict.training.settings import Settings, TrainingRequest
from stpredict.training.shared_sums import MOST_BYTES
from stpredict.training.whole_run import check_request, parts_of, recorded

#: How long the rate of training is measured, in seconds, and on how many patches at a time, both at most.
MEASURE_S, MEASURED_AT_ONCE = 3.0, 16
#: Memory of a parameter with AdamW: the parameter and its two moments, in fp32.
BYTES_PER_PARAMETER = 12
#: The most memory that a call holds, in bytes: the libraries; an entry of one section's counts, and what a panel's rule
#: makes of it; arrays of spots x panel of a fit, of its scores and of its baselines; those of genes x genes; a
#: BANK's expression of a gene. The factor of what a batch's backward pass keeps is for
#: gradients.
LIBRARIES, ENTRY, DENSE, PAIRS, BANK, GRADIENTS = 480 << 20, 32, 7 * 8, 4 * 8, 4 * 4, 1.3
#: As many features as a dictionary has.
WIDTH = 600
FEATURES = 3 * WIDTH * 8


def plan_run(request: TrainingRequest, panel: Panel, report: Report) -> Iterator[str]:
    """Lines on what `train_model` would do. Raises the errors that it raises before it writes anything."""
    wanted = recorded(request, panel)
    given = check_request(request, panel)
    if not request.overwrite and is_finished(run_folder(request.out), request.out, wanted):
        yield f"{request.out}: up to date"
        return
    checked = check_run(request, wanted, panel, partial(parts_of, request), given.encoder, report)
    yield about_sections(checked)
    genes = panel_of(checked, panel, request.settings.seed)
    whose = "as named" if panel.genes else "chosen by all sections; each part chooses by its training sections"
    yield f"panel: {counted(len(genes), 'gene')}, {whose}"
    yield about_patches(request, checked)
    if targets := kept_on_disk(request.settings, len(checked.found.section), len(genes)):
        yield f"targets: {targets / 1e6:,.0f} MB of disk beside the model while a network is trained"
    patches, rate = 0, None
    for split in splits_of(checked, request):
        stages = stages_of(checked, request, split)
        patches += sum(n * epochs for n, epochs in stages.values())
        yield about_split(split, checked.found, request.settings, stages)
    if patches and not (reads_slides(request.settings.architecture) or has_bank(request.settings.architecture)):
        px, device = patch_px_of(request), pick_device(request.device)
        rate = training_rate(request.settings, px, len(genes), device, request.accumulate)
    yield about_memory(peak_memory(checked, request, len(genes)), rate)
    if patches:
        yield from about_time(rate, patches)


def about_sections(checked: Checked) -> str:
    """A sentence on how much there is to train on, and what is missing."""
    found = checked.found
    names, patients = set(found.section.tolist()), set(found.patient.tolist())
    there = f"{counted(len(names), 'section')} of {counted(len(patients), 'patient')}, {_spots(len(found.section))}"
    stored = sum(section.patches is not None for section in checked.sections)
    more = [f"{stored} with patches alone, without their slides"] if stored else []
    more += [f"{some(checked.broken)} left out, as broken"] if checked.broken else []
    more += [f"{counted(len(found.tissue), 'slide')} without counts"] if found.tissue else []
    more += [f"{some(checked.tissue.broken)} left out, as broken"] if checked.tissue.broken else []
    more += [f"counts of {counted(len(checked.more), 'further section')}"] if checked.more else []
    return "; ".join([there, *more])


def panel_of(checked: Checked, panel: Panel, seed: int) -> list[str]:
    """The genes that a network of all sections would predict."""
    found = checked.found
    if isinstance(found, Tiles):
        return choose_genes(found, panel, sorted(set(found.section.tolist())), seed)
    if panel.genes:
        return list(dict.fromkeys([*panel.genes, *panel.required]))
    sections = sorted(checked.sections, key=lambda section: section.name)
    counts = (csr_array(vstack([*aligned(section, found.counted_genes)])) for section in sections)
    coverage, rule = coverage_of(found, [section.name for section in sections], panel), panel.rule_for(found)
    return choose_panel(counts, found.counted_genes, panel.size, panel.required, seed, rule, coverage)


def about_patches(request: TrainingRequest, checked: Checked) -> str:
    """A sentence on the patches and the room that they take."""
    views = architecture_views(request.settings.architecture)
    shape = patch_shape(patch_px_of(request), views)
    size = f"patches of {shape[-2]} px" + (f", {len(views)} of each spot" if len(views) > 1 else "")
    if not checked.sections:
        return f"{size}, which are cut"
    places_by = places_by_section(checked.sections, request.unlabelled, checked.tissue.slides)
    n_spots, n_places = len(checked.found.section), sum(places_by)
    n_stored = sum(len(section.spot_names) for section in checked.sections if section.patches)
    as_jpeg = request.patch_format == "jpeg"
    n_bytes = (n_spots - n_stored + n_places) * math.prod(shape) * (JPEG_SHARE if as_jpeg else 1)
    stay = f", {n_stored:,} of which stay in the data set's own files" if n_stored else ""
    places = counted(n_places, "unlabelled place")
    disk = f"{'about ' * as_jpeg}{n_bytes / 1e6:,.0f} MB of disk"
    return f"{size}, of {_spots(n_spots)} and {places}{stay}: {disk}{about_waiting(checked)}"


def about_waiting(checked: Checked) -> str:
    """A clause on the temporary disk that counts take until they are written, if they are too many for memory."""
    n_bytes = ENTRY_BYTES * sum(section.counts.n_entries for section in (*checked.sections, *checked.more))
    few = n_bytes <= SMALL_BYTES
    return "" if few else f", and up to {n_bytes / 1e6:,.0f} MB of {gettempdir()} for counts until they are written"


@dataclass(frozen=True)
class Split:
    """A network of a run: its folder, its training sections, those among them that choose epochs, and its test's."""

    name: str
    train: list[str]
    validation: list[str]
    test: list[str]
    epochs: int  # on measured spots, at most


def splits_of(checked: Checked, request: TrainingRequest) -> list[Split]:
    """The networks of a run. The last one is trained on everything."""
    settings = request.settings
    taught = settings.taught_densely and request.encoder_weights is None and has_places(checked, request.unlabelled)
    few = settings.unvalidated_epochs(taught) if settings.validates else settings.epochs
    splits = []
    for name, fold in named(checked.folds).items():
        train, validation = sections_of(checked.found, settings, fold)
        splits.append(Split(name, train, validation, fold.test_sections, settings.epochs if validation else few))
    everything = sorted(set(checked.found.section.tolist()))
    chosen = any(split.validation for split in splits)  # else all sections choose as a part does
    validation = choose_validation(checked.found, everything) if settings.validates and not chosen else []
    epochs = settings.epochs if chosen or validation else few
    return [*splits, Split("all", everything, validation, [], epochs)]


def stages_of(checked: Checked, request: TrainingRequest, split: Split) -> dict[str, tuple[int, int]]:
    """By the name of each stage of a network: its number of patches, and how often it sees them at most."""
    settings, section = request.settings, checked.found.section
    if settings.architecture in FITTED:
        return {}
    n_train, n_validation = (int(np.isin(section, names).sum()) for names in (split.train, split.validation))
    n_places = places_in(checked, request.unlabelled, split.train)
    stages = {}
    if settings.teach_patches and n_places and request.encoder_weights is None:
        stages["teach"] = n_places, -(-settings.teach_patches // n_places)
    if split.validation:
        stages["select"] = n_train - n_validation, settings.epochs
    return stages | ({"train": (n_train, split.epochs)} if split.epochs else {})


def has_places(checked: Checked, unlabelled: int) -> bool:
    """Are there, or will there be, unlabelled places?"""
    return places_in(checked, unlabelled, sorted(set(checked.found.section.tolist()))) > 0


def places_in(checked: Checked, unlabelled: int, names: Sequence[str]) -> int:
    """How many unlabelled places there are, or will be, to teach a network of some sections."""
    if isinstance(checked.found, Tiles):
        return len(places_of(checked.found, names))
    places = places_by_section(checked.sections, unlabelled, checked.tissue.slides)
    slides, there = [*checked.sections, *checked.tissue.slides], {*names, *tissue_beside(checked.found, names)}
    return sum(n for slide, n in zip(slides, places, strict=True) if slide.name in there)


def about_split(split: Split, found: Tiles | Measured, settings: Settings, stages: dict[str, tuple[int, int]]) -> str:
    """A sentence on the data that one network is trained and tested on, and on its number of steps at most."""
    train, tested = split.train, np.isin(found.section, split.test)
    deep = int((tested & (found.depth >= settings.min_depth)).sum())
    test = some(split.test)
    held_out = f"holds out {test}, {deep:,} spots of {settings.min_depth} counts or more; " if test else ""
    chosen = f", of which {some(split.validation)} chooses" if split.validation else ""
    trained = f"trains on {counted(len(train), 'section')}, {_spots(int(np.isin(found.section, train).sum()))}{chosen}"
    steps = [
        f"{stage} {epochs} x {len(train) if reads_sections(settings.architecture) else -(-n // settings.batch_size):,}"
        for stage, (n, epochs) in stages.items()
    ]
    return f"{split.name}: {held_out}{trained}" + (f"; epochs x steps: {', '.join(steps)}" if steps else "")


def peak_memory(checked: Checked, request: TrainingRequest, n_genes: int) -> int:
    """The most bytes that a call holds beside the network, of a panel of `n_genes`."""
    found, n_spots = checked.found, len(checked.found.section)
    if isinstance(found, Tiles):
        entries = [np.diff(found.counts.starts)[found.section == name].sum() for name in set(found.section)]
    else:
        entries = [section.counts.n_entries for section in (*checked.sections, *checked.more)]
    of_section, pairs = ENTRY * int(max(entries)), PAIRS * n_genes**2
    settings = request.settings
    if not are_many(n_spots):
        return LIBRARIES + of_section + (DENSE * n_genes + FEATURES) * n_spots + pairs
    tested = [int(np.isin(found.section, fold.test_sections).sum()) for fold in checked.folds]
    n_held = min(n_spots, MOST_TAUGHT + max(tested, default=0))
    held = 0
    if shares_sums(settings, n_spots):
        sums = (len(checked.folds) + 1) * 8 * (WIDTH + n_genes) ** 2
        # Kept if all measured the same.
        covariances = 0 if found.differs else n_covariances(found, checked.folds) * 8 * n_genes**2
        held = min(sums, MOST_BYTES) + min(covariances, MOST_BYTES)
    elif settings.head == "linear":
        held = FEATURES * n_spots
    elif has_bank(settings.architecture):
        held = BANK * n_genes * min(n_spots, MAX_SPOTS)
    return LIBRARIES + max(of_section, DENSE * n_genes * n_held) + pairs + held


def n_covariances(found: Tiles | Measured, folds: Sequence[Fold]) -> int:
    """How many covariances of genes parts share: one for a patient's sections that the same parts train on."""
    sections = set(zip(found.section.tolist(), found.kin.tolist(), strict=True))
    return len({(patient, *(name in fold.test_sections for fold in folds)) for name, patient in sections})


def kept_on_disk(settings: Settings, n_spots: int, n_genes: int) -> int:
    """The bytes of targets that a process keeps in files beside the model, until a network is trained."""
    if shares_sums(settings, n_spots) or (settings.architecture in FITTED and settings.head != "linear"):
        return 0
    n_bytes = 4 * n_genes * n_spots
    tables = 2 if settings.architecture.startswith("bleep") else 1  # whose bank has expression, too
    return tables * n_bytes if are_many(n_spots) and n_bytes > SMALL_TARGETS else 0


def about_memory(n_bytes: int, rate: Rate | None) -> str:
    """A sentence on the memory that a call needs."""
    size = f"memory: about {n_bytes / 2**30:.1f} GiB"
    return f"{size}, and {rate.batch_bytes / 2**30:.1f} GiB for the network and a batch" if rate else size


@dataclass(frozen=True)
class Rate:
    """How fast a network learns, and what it needs."""

    patches_per_s: float
    n_parameters: int
    batch_bytes: int  # with the state of its optimiser
    device: str


def about_time(rate: Rate | None, patches: int) -> Iterator[str]:
    """The size of the network and, if it reads patches alone, the time that its training takes, from a measurement."""
    if rate is None:
        yield "the time to train is known only once its surroundings or its bank are made"
        return
    state = rate.n_parameters * BYTES_PER_PARAMETER / 1e6
    yield f"network: {rate.n_parameters / 1e6:,.1f} M parameters; each stage keeps a state of {state:,.0f} MB"
    took, per_s = timedelta(seconds=round(patches / rate.patches_per_s)), rate.patches_per_s
    yield (
        f"{patches:,} patches at most, at {per_s:.{int(per_s < 10)}f} a second on {rate.device}: about {took} of "
        "training, to which cutting, features and scoring come"
    )


def training_rate(settings: Settings, patch_px: int, n_genes: int, device: torch.device, parts: int) -> Rate:
    """Train a network for some seconds, in batches of so many parts."""
    network = new_network(settings, patch_px, n_genes).to(device).train()
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    at_once = -(-settings.batch_size // parts)
    n = at_once if device.type == "cuda" else min(at_once, MEASURED_AT_ONCE)
    shape = patch_shape(patch_px, architecture_views(settings.architecture))
    patches = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, device=device)
    optimizer = make_optimiser(network, settings.how, settings.learning_rate, settings.weight_decay)
    schedule = make_schedule(optimizer, settings.how, settings.learning_rate, 1 << 20, 1)
    descent = Descent(network, optimizer, schedule, settings.how.clips_gradients)
    learn = plain_step(lambda z, _index: F.mse_loss(z, torch.zeros_like(z)))
    kept: dict[int, int] = {}

    def follow(loss: torch.Tensor) -> None:
        descent.begin()
        descent.add(loss)
        descent.step()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        first = learn(network, patches, np.arange(n))
    follow(first)  # the first is slower
    start, done = time.perf_counter(), 0
    while not done or time.perf_counter() < start + MEASURE_S:
        follow(learn(network, patches, np.arange(n)))
        done += n
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    batch = GRADIENTS * sum(kept.values()) * at_once / n
    state = n_parameters * (BYTES_PER_PARAMETER + 4)  # and the gradient
    return Rate(done / (time.perf_counter() - start), n_parameters, int(batch) + state, device.type)


def _spots(n: int) -> str:
    return counted(n, "spot")
