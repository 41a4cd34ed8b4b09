"""What training costs as spots grow: memory, processor time of its stages, the loop's patches a second, disk.

Each figure is taken in a process of its own. Counts are made up: Poisson in the first thousand genes, moved by features
that stand for an encoder's, and ones among the others. No network describes or predicts patches, so that what is left
are counts, panel, targets, heads, baselines, scores and reference. `--against` measures another checkout, too.

python tests/benchmarks/scale.py [--spots 2000] [--genes 18000] [--against FOLDER] [--write]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from scale_table import report
from scipy.sparse import csr_array
from torch import nn

from stpredict.data.cutting import write_tiles
from stpredict.data.reading import read_each
from stpredict.data.section import Section
from stpredict.data.stored_patches import StoredPatches
from stpredict.data.tiles import read_tiles
from stpredict.evaluation.baselines import fit_nearest_neighbours
from stpredict.model.reference import make_feature_reference
from stpredict.networks.encoder import Encoded, EncoderConfig
from stpredict.slides.slide import Mpp
from stpredict.statistics.colour_texture import colour_texture_features
from stpredict.training.crossvalidation import run_crossvalidation
from stpredict.training.fit import Course, fit, plain_step
from stpredict.training.folds import plan_folds
from stpredict.training.log import Log
from stpredict.training.one_network import Run, train_network
from stpredict.training.panels import Panel
from stpredict.training.sampling import Stage
from stpredict.training.settings import Settings

RESULT = Path(__file__).with_suffix(".md")
#: Genes that vary, further entries of a spot, sections, and features as wide as a dictionary's.
HOT, RARE, SECTIONS, WIDTH = 1000, 2000, 8, 588
PATCHES, PATCH_PX = 48, 224
#: Spots of a section where sections' counts are read and written.
OF_SECTION = 300
#: Spots of HEST-1k or more, to which a patch's time is extrapolated.
MANY = 1_500_000


class Free(nn.Module):
    """Features of patches that cost next to nothing, for the model file's check of itself."""

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(patches, 14).flatten(1)


def make_counts(spots: int, genes: int, seed: int, features: Any) -> csr_array:
    """Counts of spots x genes, float32, as readers give them; `features` move the genes that vary."""
    rng = np.random.default_rng(seed)
    load = np.random.default_rng(99).normal(0, 0.2, (5, HOT))
    mean = np.geomspace(20, 0.3, HOT) * np.exp(features[:, :5] @ load) * rng.lognormal(0, 0.4, (spots, 1))
    hot = rng.poisson(mean)
    tail = np.sort(HOT + rng.choice(genes - HOT, min(RARE, (genes - HOT) // 2), replace=False))
    data = np.ones((spots, HOT + len(tail)), np.float32)
    data[:, :HOT] = hot
    columns = np.broadcast_to(np.r_[np.arange(HOT), tail].astype(np.int32), data.shape)
    kept = data > 0
    starts = np.r_[0, np.cumsum(kept.sum(axis=1))]
    return csr_array((data[kept], columns[kept], starts.astype(np.int32)), (spots, genes))


def as_read(counts: csr_array) -> Any:
    """The counts as a checkout's readers give them."""
    try:
        from stpredict.data.counts import in_memory
    except ImportError:
        return csr_array(counts)
    return in_memory(counts)


def make_features(spots: int) -> Any:
    """Made-up features of spots in equal sections."""
    return np.random.default_rng(0).normal(size=(spots // SECTIONS * SECTIONS, WIDTH)).astype(np.float64)


def write_run(spots: int, genes: int, path: Path, differing: bool) -> None:
    """Write tiles without patches, of four patients. If sections are `differing`, six measured panels of their own."""
    features, per, rng = make_features(spots), spots // SECTIONS, np.random.default_rng(1)
    side, names, sections = int(np.ceil(per**0.5)), np.array([f"G{g:05}" for g in range(genes)]), []
    for s in range(SECTIONS):
        there = np.ones(genes, dtype=bool)
        if differing and s >= SECTIONS - 6:
            there = np.isin(np.arange(genes), rng.choice(HOT * 3, 400 if s % 2 else HOT * 5 // 2, replace=False))
        counts = make_counts(per, genes, s, features[s * per : (s + 1) * per])
        sections.append(Section(
            f"S{s}", f"P{s // 2}", path.with_name("no.tif"), Mpp(0.5, 0.5), [f"{i}" for i in range(per)],
            np.c_[np.arange(per) % side, np.arange(per) // side] * 200.0, names[there].tolist(),
            as_read(counts[:, there]), spot_diameter_um=55.0, pitch_um=100.0,
            names_all_genes=True, technology="made up",
        ))  # fmt: skip
    write_tiles(sections, path, with_patches=False, keep_table=False, report=lambda _: None)


def make_run(spots: int, genes: int, folder: Path, differing: bool = False) -> Run:
    """A run on made-up spots, their features given. Another process makes the counts, so that they leave no trace."""
    path = folder / "made.tiles.h5"
    making = get_context("spawn").Process(target=write_run, args=(spots, genes, path, differing))
    making.start()
    making.join()
    features, tiles = make_features(spots), read_tiles(path)
    network = Encoded(EncoderConfig(1, WIDTH, "free", "0" * 64, (0.5,) * 3, (0.5,) * 3, PATCH_PX))
    network.encoder = Free()
    return Run(
        tiles, features[:, :52].copy(), np.empty((0, 52)), Panel(size=700), Settings("encoder"), "",
        torch.device("cpu"),
        lambda _: None, network, features,
    )  # fmt: skip


def make_section(name: str, spots: int, genes: int, folder: Path, patches: int = 0, seed: int = 3) -> Section:
    """A section of counts alone, or with so many patches of noise."""
    rng = np.random.default_rng(1)
    counts = make_counts(spots, genes, seed, rng.normal(size=(spots, 5)))
    stored, image = None, folder / f"{name}.tif"
    if patches:
        image = folder / f"{name}.h5"
        with h5py.File(image, "w") as file:
            file["img"] = rng.integers(0, 256, (patches, PATCH_PX, PATCH_PX, 3), dtype=np.uint8)
        stored = StoredPatches(image, PATCH_PX, 0.5, tuple(range(patches)))
    return Section(
        name, name, image, Mpp(0.5, 0.5), [f"{i}" for i in range(spots)], rng.uniform(0, 9999, (spots, 2)),
        [f"G{g:05}" for g in range(genes)], as_read(counts), names_all_genes=True, patches=stored,
    )  # fmt: skip


def limit() -> None:
    """One thread, where a checkout can be told: before that was torch's business alone."""
    try:
        from stpredict.machine import limit_threads
    except ImportError:
        torch.set_num_threads(1)
    else:
        limit_threads(1)


def measure_fit(spots: int, genes: int, folder: Path, folds: str) -> dict[str, float]:
    run = make_run(spots, genes, folder)
    limit()
    made, started = peak_gib(), time.process_time()
    run_crossvalidation(run, plan_folds(run.tiles, folds), None, folder / "m.safetensors", folder / "m.run")
    return {"cpu_s": time.process_time() - started, "peak_gib": peak_gib(), "made_gib": made}


def measure_differing(spots: int, genes: int, folder: Path) -> dict[str, float]:
    """A head on sections of which some measured one of three small and three large panels of genes."""
    run, names = make_run(spots, genes, folder, differing=True), [f"S{s}" for s in range(SECTIONS)]
    limit()
    started = time.process_time()
    trained = train_network(replace(run, panel=Panel(rule="coverage")), names, [], None, folder)
    patterns = len({column.tobytes() for column in run.tiles.measured_by(names, trained.panel).T})
    return {"cpu_s": time.process_time() - started, "patterns": patterns, "genes": len(trained.panel)}


def measure_counts(spots: int, genes: int, folder: Path) -> dict[str, float]:
    """Counts of sections of one size, more of them for more spots, as they are read, written to tiles, and opened."""
    small = make_section("A", 8, genes, folder, 8)
    limit()
    numbers = range(1, spots // OF_SECTION + 1)
    more = read_each(numbers, str, lambda i: make_section(f"B{i}", OF_SECTION, genes, folder, seed=3 + i))
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
    most = drawn_at_most()
    return {"ms_a_patch": 1000 * per_patch, "min_of_many": per_patch * min(MANY, most or MANY) / 60}


def drawn_at_most() -> int | None:
    """How many spots of a data set are described; None in a checkout that describes all."""
    try:
        from stpredict.evaluation.described import MOST_DESCRIBED
    except ImportError:
        return None
    return MOST_DESCRIBED


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
    "fit": lambda spots, genes, folder: measure_fit(spots, genes, folder, "4"),
    "fit_without_folds": lambda spots, genes, folder: measure_fit(spots, genes, folder, "none"),
    "differing": measure_differing,
    "counts": measure_counts,
    "reference_6": lambda spots, _genes, _folder: measure_reference(spots, 6),
    "reference_100": lambda spots, _genes, _folder: measure_reference(spots, 100),
    "neighbours": lambda spots, _genes, _folder: measure_neighbours(spots),
    "colour": lambda _spots, _genes, _folder: measure_colour(),
    "loop": lambda _spots, _genes, folder: measure_loop(folder),
    "disk": lambda _spots, _genes, folder: measure_disk(folder),
}


@dataclass(frozen=True)
class Asked:
    """One figure: its measure, spots, genes, and the checkout that it is taken of."""

    measure: str
    spots: int
    genes: int
    checkout: Path

    def take(self) -> dict[str, float] | None:
        """None where the process ended without figures, which stderr explains."""
        env = {**os.environ, "PYTHONPATH": str(self.checkout)}
        asked = [sys.executable, __file__, "--measure", self.measure, "--spots", str(self.spots)]
        done = subprocess.run(
            [*asked, "--genes", str(self.genes)], env=env, stdout=subprocess.PIPE, text=True, check=False
        )
        return dict(json.loads(done.stdout.splitlines()[-1])) if done.returncode == 0 else None


def take_all(spots: int, genes: int, checkout: Path) -> dict[str, Any]:
    """Every measure, those of memory at a third of the spots too."""
    found: dict[str, Any] = {}
    for name in MEASURES:
        found[name] = Asked(name, spots, genes, checkout).take()
        if name in ("fit", "counts"):
            found[f"{name}_third"] = Asked(name, spots // 3, genes, checkout).take()
        print(checkout.name, name, found[name], file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spots", type=int, default=2000)
    parser.add_argument("--genes", type=int, default=18_000)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--measure", choices=MEASURES)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    asked = parser.parse_args()
    if asked.measure:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(MEASURES[asked.measure](asked.spots, asked.genes, Path(folder))))
        return
    ours = take_all(asked.spots, asked.genes, Path(__file__).parents[2])
    theirs = take_all(asked.spots, asked.genes, asked.against.resolve()) if asked.against else None
    data = (
        f"{asked.spots} made-up spots of {asked.genes} genes, {HOT + RARE} of which have counts in a spot, in "
        f"{SECTIONS} sections of four patients"
    )
    text = "\n".join(report(asked.spots, asked.genes, data, ours, theirs))
    print(text)
    if asked.write:
        RESULT.write_text(text + "\n")


if __name__ == "__main__":
    main()
