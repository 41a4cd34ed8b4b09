"""Data that all jobs of a comparison share: its record, the folds, the genes of each, and the patches, cut once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stpredict.arrays import Float
from stpredict.comparison.request import Comparison, system_settings
from stpredict.console import Report
from stpredict.data.coverage import demand_genes
from stpredict.data.cutting import PATCH_PX, settle_cut, write_tiles
from stpredict.data.dataset import read_asked, read_dataset
from stpredict.data.panel import check_rule, match_genes
from stpredict.data.reading import read_broken, write_broken
from stpredict.data.section import Section, without_counts
from stpredict.data.tiles import Measured, Tiles, check_views, measured_in, read_tiles, shared_genes
from stpredict.data.twins import told_twins
from stpredict.errors import ResultError, UsageError
from stpredict.machine import usable_cores
from stpredict.networks import ENCODER, architecture_views, check_architecture, reads_tiles
from stpredict.prediction.leases import alone, is_held, leases_in
from stpredict.slides.views import ONE_VIEW, Views
from stpredict.statistics.normalisation import check_normalisation
from stpredict.statistics.objectives import check_objective
from stpredict.storage.files import atomic_path
from stpredict.training.folds import Fold, check_depth, check_leaks, check_split, plan_folds
from stpredict.training.panels import choose_genes
from stpredict.training.preparation import check_resolution, difference_of, fingerprint, read_features
from stpredict.training.protocols import find_protocol
from stpredict.training.settings import Settings

#: In the folder of a comparison.
RECORD, PREPARING, JOBS, FROZEN = "comparison.json", "preparing.lease", "jobs", "frozen"
#: In the same folder, a table of the sections that could not be read, if any.
BROKEN = "broken.csv"
#: The seed that draws each fold's genes, so that they are the same for all seeds of the networks.
PANEL_SEED = 0


@dataclass(frozen=True)
class Prepared:
    """A comparison with everything that its jobs need."""

    request: Comparison
    folds: Sequence[Fold]
    n_tissue: int = 0  # slides without counts, in tiles

    @cached_property
    def sections(self) -> list[Section]:
        """The data set's sections without counts, for systems that look at slides beyond the spots' patches."""
        return [*map(without_counts, read_dataset(self.request.dataset, self.request.reading))]

    def tiles(self, system: str) -> Tiles:
        """The patches that a system is trained on. Raises DatasetError if they lack something that it looks at."""
        views = architecture_views(system)
        tiles = read_tiles(tiles_path(self.request, views))
        check_views(tiles, views)
        return tiles

    def genes(self, fold: Fold, tiles: Tiles) -> list[str]:
        """The genes that all systems predict if this part is held out."""
        sections = fold.train or sorted(set(tiles.section) - set(fold.test_sections))
        return choose_genes(tiles, self.request.panel, sections, PANEL_SEED)

    def features(self, tiles: Tiles, report: Report) -> tuple[Float, Float]:
        """Colour and texture of the spots and of the unlabelled places, stored beside the patches."""
        cache = self.request.out / f"{_named(tiles.views)}.features.npz"
        return read_features(tiles, True, cache, report, threads_of(self.request))


def threads_of(request: Comparison) -> int:
    return request.threads or usable_cores()


def prepare(request: Comparison, report: Report) -> Prepared:
    """Check the call, and cut the patches that are not there yet. If several calls run at once, one cuts.

    Raises UsageError for unknown systems, parts to hold out, genes or settings, DatasetError for data that cannot
    be read, and ResultError if the folder holds a comparison of other settings.
    """
    check(request)
    found, broken = what_was_measured(request)
    for line in told_twins(found.twins):
        report(line)
    folds = plan(request, found)
    check_leaks(folds, request.allow_patient_leak, request.protocol)
    check_depth(found, folds, request.settings.min_depth)
    match_genes([*request.panel.required, *request.panel.genes], found.counted_genes, "measured genes")
    if not request.panel.genes and request.panel.rule_for(found) != "coverage":
        demand_genes(len(shared_genes(found)), found.most_genes, "all sections measured")
    wanted = recorded(request)
    with alone(request.out / PREPARING, "another call cuts the patches; waiting for it", report):
        demand_same(request.out / RECORD, wanted)
        write_record(request.out / RECORD, wanted)
        write_broken(broken, request.out / BROKEN)
        if request.dataset.suffix != ".h5":
            for views in looked_at(request):
                cut(request, views, report)
        prepared = Prepared(request, folds, len(found.tissue))
        for path in sorted(
            {tiles_path(request, views) for views in (ONE_VIEW, *map(architecture_views, request.systems))}
        ):
            prepared.features(read_tiles(path), report)
    return prepared


def check(request: Comparison) -> None:
    """Raises UsageError for mistakes in a call that show before any file is read."""
    for system in request.systems:
        check_architecture(system)
        if reads_tiles(system) and not (system in request.weights and system in request.region_weights):
            raise UsageError(
                f"--arch {system}: reads HIPT's two networks; name their files by --encoder-weights {system}=VIT256 "
                f"and --region-weights {system}=VIT4K."
            )
        if reads_tiles(system) and request.mpp is None:
            raise UsageError(f"--arch {system}: needs --mpp, 0.5 or near to it, as HIPT was trained.")
        if system == ENCODER:
            raise UsageError("--arch encoder: a comparison takes no --encoder; `train` and `evaluate` do.")
        system_settings(request, system, 0)
    settings = request.settings
    check_objective(settings.objective, settings.smooth_labels)
    check_normalisation(settings.normalisation)
    check_rule(request.panel.rule)
    check_split(request.folds)


def what_was_measured(request: Comparison) -> tuple[Tiles | Measured, dict[str, str]]:
    """The spots and genes, before any patch is cut, and for each section that is left out the reason."""
    if request.dataset.suffix == ".h5":
        tiles = read_tiles(request.dataset)
        check_resolution(tiles, request.mpp)
        return tiles, {}
    sections, broken = read_asked(request.dataset, request.reading)
    settle_cut(sections, PATCH_PX, ONE_VIEW, request.mpp)
    return measured_in(sections, ()), broken


def left_out(request: Comparison) -> list[str]:
    """The sections that a comparison leaves out because they could not be read."""
    return read_broken(request.out / BROKEN)


def plan(request: Comparison, found: Tiles | Measured) -> list[Fold]:
    """The parts that are held out in turn. Raises UsageError if there are none."""
    if request.protocol:
        return find_protocol(request.protocol).folds(found, PANEL_SEED)
    folds = plan_folds(found, request.folds, request.hold_out)
    if not folds:
        raise UsageError("nothing is held out, so nothing can be compared; --folds or --hold-out names parts.")
    return folds


def recorded(request: Comparison) -> dict[str, Any]:
    """The settings that decide a job's outcome beside its system, seed and part, to which later calls may add."""
    shared = {
        **asdict(request.settings),
        "panel": request.panel.recorded(not request.protocol), "folds": request.protocol or request.folds,
        "dataset": request.dataset.absolute().name, "files": fingerprint(request.dataset),
        "hold_out": list(request.hold_out), "unlabelled": request.unlabelled, "mpp": request.mpp,
        "bin_um": request.bin_um,
    }  # fmt: skip
    shared["recipe"] = request.recipe
    asked = {"where": request.where, "species": request.species}  # older records do not have them
    shared |= {name: value for name, value in asked.items() if value is not None}
    if request.patch_format != "raw":
        shared["patch_format"] = request.patch_format
    if request.orthologs:
        shared["orthologs"] = [request.orthologs.name, fingerprint(request.orthologs)]
    return dict(json.loads(json.dumps(shared)))


def demand_same(record: Path, wanted: dict[str, Any]) -> None:
    """Raises ResultError if the folder holds a comparison of other settings.

    A setting that an older version did not know counts as the default.
    """
    if not record.exists():
        return
    found = json.loads(json.dumps(asdict(Settings()))) | json.loads(record.read_text())
    if difference := difference_of(found, wanted):
        raise ResultError(
            f"{record.parent}: holds a comparison with other settings ({difference}); --overwrite begins anew."
        )


def write_record(record: Path, wanted: dict[str, Any]) -> None:
    if not record.exists():
        with atomic_path(record) as temporary:
            temporary.write_text(json.dumps(wanted, indent=1))


def discard(out: Path) -> None:
    """Remove what earlier calls left. Raises ResultError while one of them is at work."""
    if any(is_held(lease) for lease in leases_in(out)):
        raise ResultError(f"{out}: another call is at work there; --overwrite would take its files away.")
    for folder in (out / JOBS, out / FROZEN, *out.glob("views-*.patches")):
        shutil.rmtree(folder, ignore_errors=True)
    for path in (out / RECORD, out / BROKEN, *out.glob("views-*.tiles.h5"), *out.glob("views-*.features.npz")):
        path.unlink(missing_ok=True)


def cut(request: Comparison, views: Views, report: Report) -> None:
    """Cut these views of all spots, unless that is done."""
    path = tiles_path(request, views)
    if not path.exists():
        sections = read_dataset(request.dataset, request.reading)
        write_tiles(
            sections, path, views=views, mpp=request.mpp, unlabelled=request.unlabelled, seed=PANEL_SEED,
            threads=threads_of(request), patch_format=request.patch_format, report=report,
        )  # fmt: skip


def tiles_path(request: Comparison, views: Views) -> Path:
    """The file with patches of these views: the data set itself, or tiles that were cut from it."""
    return request.dataset if request.dataset.suffix == ".h5" else request.out / f"{_named(views)}.tiles.h5"


def looked_at(request: Comparison) -> list[Views]:
    """The views that the systems look at, and the one view of the baselines."""
    return sorted({ONE_VIEW, *map(architecture_views, request.systems)})


def _named(views: Views) -> str:
    return f"views-{'-'.join(map(str, views))}"
