"""What training costs as spots grow: memory, processor time of its stages, the loop's patches a second, disk.

Each figure is taken in a process of its own. Counts are made up: Poisson in the first thousand genes, moved by features
that stand for an encoder's, and ones among the others. No network describes or predicts patches, so that what is left
are counts, panel, targets, heads, baselines, scores and reference.

python tests/benchmarks/scale.py [--spots 30000] [--many 100000] [--genes 18000] [--write]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import torch
from scale_data import (
    PATCHES,
    WIDTH,
    describe,
    make_features,
    make_prediction,
    make_run,
    make_section,
    make_tiles,
)
from scale_table import Taken, report
from torch import nn

from stpredict.data.cutting import write_tiles
from stpredict.data.reading import read_each
from stpredict.data.tiles import read_tiles
from stpredict.evaluation.baselines import fit_nearest_neighbours
from stpredict.evaluation.described import MOST_DESCRIBED
from stpredict.evaluation.scores import score_all
from stpredict.machine import limit_threads
from stpredict.model.reference import make_feature_reference
from stpredict.statistics.colour_texture import colour_texture_features
from stpredict.statistics.objectives import make_objective
from stpredict.training.at_once import with_sums
from stpredict.training.crossvalidation import run_crossvalidation
from stpredict.training.fit import Course, fit, plain_step
from stpredict.training.folds import plan_folds
from stpredict.training.log import Log
from stpredict.training.one_network import train_network
from stpredict.training.panel_counts import PanelCounts, kept_in
from stpredict.training.panels import Panel, choose_genes
from stpredict.training.sampling import Stage
from stpredict.training.settings import Settings

RESULT = Path(__file__).with_suffix(".md")
#: Spots of a section where sections' counts are read and written.
OF_READ_SECTION = 300
#: Batches of targets that are read.
BATCH, N_BATCHES = 64, 500
#: Spots of HEST-1k, to which a patch's time is extrapolated.
OF_HEST = 1_500_000


def limit() -> None:
    """One thread, for all libraries."""
    limit_threads(1)


def measure_fit(spots: int, genes: int, folder: Path, folds: str) -> dict[str, float]:
    run = make_run(spots, genes, folder)
    limit()
    made, started = peak_gib(), time.process_time()
    run_crossvalidation(run, plan_folds(run.tiles, folds), None, folder / "m.safetensors", folder / "m.run")
    return {"cpu_s": time.process_time() - started, "peak_gib": peak_gib(), "made_gib": made}


def measure_evaluate(spots: int, genes: int, folder: Path) -> dict[str, float]:
    """All scores of a prediction of 700 genes, and of the baselines beside it."""
    tiles, features = make_tiles(spots, genes, folder), make_features(spots)
    predicted, described = make_prediction(tiles, features, 700), describe(features, tiles)
    del features
    limit()
    made, started = peak_gib(), time.process_time()
    score_all("made up", [], tiles, predicted, predicted.index, described)
    return {"cpu_s": time.process_time() - started, "peak_gib": peak_gib(), "made_gib": made}


def measure_heads(spots: int, genes: int, folder: Path) -> dict[str, float]:
    """A head of all sections alone; and that together with those that leave a patient out, or a section."""
    run, found = make_run(spots, genes, folder), {}
    limit()
    for name, by in (("alone_s", "none"), ("patients_s", "patient"), ("sections_s", "section")):
        fresh, started = replace(run, tiles=replace(run.tiles)), time.process_time()  # that nothing was read of
        sections = sorted(set(run.tiles.section.tolist()))
        parts = [
            *([n for n in sections if n not in fold.test_sections] for fold in plan_folds(run.tiles, by)),
            sections,
        ]
        fresh = with_sums(fresh, parts)
        for part in parts:
            train_network(fresh, part, [], None, folder)
        found[name] = time.process_time() - started
    return found


def measure_differing(spots: int, genes: int, folder: Path) -> dict[str, float]:
    """A head on sections of which some measured one of three small and three large panels of genes."""
    run = make_run(spots, genes, folder, differing=True)
    names = sorted(set(run.tiles.section.tolist()))
    limit()
    started = time.process_time()
    trained = train_network(replace(run, panel=Panel(rule="coverage")), names, [], None, folder)
    patterns = len({column.tobytes() for column in run.tiles.measured_by(names, trained.panel).T})
    return {"cpu_s": time.process_time() - started, "patterns": patterns, "genes": len(trained.panel)}


def measure_smooth(spots: int, genes: int, folder: Path) -> dict[str, float]:
    """A head taught means over neighbours, as `--smooth-labels` has it."""
    run = make_run(spots, genes, folder)
    smooth = replace(run, settings=replace(run.settings, smooth_labels=True))
    limit()
    made, started = peak_gib(), time.process_time()
    train_network(smooth, sorted(set(run.tiles.section.tolist())), [], None, folder)
    return {"cpu_s": time.process_time() - started, "peak_gib": peak_gib(), "made_gib": made}


def measure_targets(spots: int, genes: int, folder: Path) -> dict[str, float]:
    """Targets that a network is trained on: made and kept, then read in batches."""
    run = make_run(spots, genes, folder)
    limit()
    made, started = peak_gib(), time.process_time()
    tiles, rng, n_spots = run.tiles, np.random.default_rng(0), len(run.tiles.spot)
    rows = np.ones(n_spots, bool)
    panel = choose_genes(tiles, run.panel, sorted(set(tiles.section.tolist())), 0)
    counts = PanelCounts(tiles, panel)
    objective = make_objective("residuals", counts, tiles.depth, tiles.section, rows, keep=kept_in(folder))
    z = torch.zeros(BATCH, len(panel))
    objective.loss(z, torch.arange(BATCH))
    kept = time.process_time()
    for _ in range(N_BATCHES):
        objective.loss(z, torch.from_numpy(rng.choice(n_spots, BATCH, replace=False)))
    batch_ms = 1000 * (time.process_time() - kept) / N_BATCHES
    return {"cpu_s": kept - started, "batch_ms": batch_ms, "peak_gib": peak_gib(), "made_gib": made}


def measure_counts(spots: int, genes: int, folder: Path) -> dict[str, float]:
    """Counts of sections of one size, more of them for more spots, as they are read, written to tiles, and opened."""
    small = make_section("A", 8, genes, folder, 8)
    limit()
    numbers = range(1, spots // OF_READ_SECTION + 1)
    more = read_each(numbers, str, lambda i: make_section(f"B{i}", OF_READ_SECTION, genes, folder, seed=3 + i))
    made, started = peak_gib(), time.process_time()
    write_tiles([small], folder / "x.tiles.h5", counts_only=more, report=lambda _: None)
    written, peak = time.process_time(), peak_gib()
    del more
    tiles = read_tiles(folder / "x.tiles.h5")
    assert tiles.counts_only is not None
    return {
        "write_s": written - started, "read_s": time.process_time() - written, "made_gib": made, "peak_gib": peak,
    }  # fmt: skip


def measure_reference(spots: int, patients: int) -> dict[str, float]:
    limit()
    rng = np.random.default_rng(0)
    read = rng.normal(size=(spots, WIDTH)) * np.geomspace(1, 0.01, WIDTH)
    started = time.process_time()
    make_feature_reference(read, np.arange(spots) * patients // spots)
    return {"cpu_s": time.process_time() - started}


def measure_neighbours(spots: int) -> dict[str, float]:
    limit()
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(spots, 52)), rng.normal(size=(spots, 700))
    before, started = peak_gib(), time.process_time()
    fitted = fit_nearest_neighbours(x, y, np.arange(spots) * 4 // spots)
    chosen = time.process_time()
    fitted.predict(x[: spots // 2])
    return {"fit_s": chosen - started, "predict_s": time.process_time() - chosen, "more_gib": peak_gib() - before}


def measure_colour() -> dict[str, float]:
    limit()
    rng = np.random.default_rng(0)
    smooth = rng.integers(60, 220, (8, 28, 28, 3)).repeat(8, axis=1).repeat(8, axis=2)
    patches = (smooth + rng.integers(-20, 20, smooth.shape)).astype(np.uint8)
    colour_texture_features(patches, 1)
    started = time.process_time()
    colour_texture_features(patches, 1)
    per_patch = (time.process_time() - started) / len(patches)
    return {"ms_a_patch": 1000 * per_patch, "min_of_many": per_patch * min(OF_HEST, MOST_DESCRIBED) / 60}


def measure_loop(folder: Path) -> dict[str, float]:
    section = make_section("A", PATCHES, 2000, folder, PATCHES)
    write_tiles([section], folder / "x.tiles.h5", report=lambda _: None)
    tiles = read_tiles(folder / "x.tiles.h5")
    limit()
    network = nn.Linear(1, 1)
    course = Course(
        Settings("m2ort-small", stain_jitter=0.0, batch_size=48), Log(folder / "log.csv", lambda _: None), folder,
        torch.device("cpu"),
    )  # fmt: skip
    step = plain_step(lambda z, _: z.square().mean())
    of_patch = _Constant(network)
    spent = 0.0
    for name, items in (("warm", np.arange(96)), ("measured", np.arange(2400))):
        started = time.process_time()
        stage = Stage(name, items, 1, 1e-4)
        for _ in fit(of_patch, lambda some: tiles.read_patches(some % PATCHES), step, stage, course):
            pass
        spent = time.process_time() - started
    return {"patches_per_cpu_s": len(items) / spent}


def measure_disk(folder: Path) -> dict[str, float]:
    """What each further spot of sections whose patches are there adds to a tiles file: its counts, and all else."""
    sizes, counts, path = [], [], folder / "x.tiles.h5"
    for spots_a_patch in (10, 20):
        section = make_section("A", PATCHES * spots_a_patch, 18_000, folder, PATCHES)
        assert section.patches
        stored = replace(section.patches, rows=section.patches.rows * spots_a_patch)
        write_tiles([replace(section, patches=stored)], path, report=lambda _: None)
        with h5py.File(path) as file:
            counts.append(sum(part.id.get_storage_size() for part in file["counts"].values()))
        sizes.append(path.stat().st_size - counts[-1])
    spots = PATCHES * 10
    return {"kib_a_spot": (sizes[1] - sizes[0]) / spots / 1024, "counts_kib": (counts[1] - counts[0]) / spots / 1024}


class _Constant(nn.Module):
    """A network that costs nothing."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.inner(torch.ones(len(patches), 1))  # type: ignore[no-any-return]


def peak_gib() -> float:
    """The most memory that this process has held; Linux says it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20


MEASURES: dict[str, Callable[..., dict[str, float]]] = {
    "fit": lambda spots, genes, folder: measure_fit(spots, genes, folder, "5"),
    "fit_without_folds": lambda spots, genes, folder: measure_fit(spots, genes, folder, "none"),
    "evaluate": measure_evaluate,
    "heads": measure_heads,
    "differing": measure_differing,
    "smooth": measure_smooth,
    "targets": measure_targets,
    "counts": measure_counts,
    "reference_6": lambda spots, _genes, _folder: measure_reference(spots, 6),
    "reference_100": lambda spots, _genes, _folder: measure_reference(spots, 100),
    "neighbours": lambda spots, _genes, _folder: measure_neighbours(spots),
    "colour": lambda _spots, _genes, _folder: measure_colour(),
    "loop": lambda _spots, _genes, folder: measure_loop(folder),
    "disk": lambda _spots, _genes, folder: measure_disk(folder),
}
#: Those whose memory grows with spots, if anything does.
OF_MANY = ("fit", "fit_without_folds", "evaluate", "smooth", "targets", "counts")
#: The first heading that `--write` leaves as it is.
AFTER = "## What to read from it"


def take(measure: str, spots: int, genes: int) -> dict[str, float]:
    """A measure's figures, taken in a process of its own."""
    asked = [sys.executable, __file__, "--measure", measure, "--spots", str(spots), "--genes", str(genes)]
    done = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(measure, spots, found, file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, default=30_000)
    parser.add_argument("--many", type=int, default=100_000, help="spots of the rows on memory")
    parser.add_argument("--genes", type=int, default=18_000)
    parser.add_argument("--measure", choices=MEASURES)
    parser.add_argument("--write", action="store_true", help=f"write the table of {RESULT.name}")
    asked = parser.parse_args()
    if asked.measure:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(MEASURES[asked.measure](asked.spots, asked.genes, Path(folder))))
        return
    found = {name: take(name, asked.spots, asked.genes) for name in MEASURES}
    of_many = {name: take(name, asked.many, asked.genes) for name in OF_MANY}
    text = "\n".join(report(Taken(asked.spots, found, asked.many, of_many)))
    print(text)
    if asked.write:
        _, heading, rest = RESULT.read_text().partition("\n" + AFTER)
        RESULT.write_text(text + "\n" + heading + rest)


if __name__ == "__main__":
    main()
