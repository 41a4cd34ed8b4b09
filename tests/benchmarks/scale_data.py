"""Made-up sections and runs for scale.py, of any number of spots, as a checkout's readers give them."""

from __future__ import annotations

from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from scipy.sparse import csr_array
from torch import nn

from stpredict.data.counts import in_memory
from stpredict.data.cutting import write_tiles
from stpredict.data.section import Section
from stpredict.data.stored_patches import StoredPatches
from stpredict.data.tiles import Tiles, read_tiles
from stpredict.evaluation.described import MOST_DESCRIBED
from stpredict.evaluation.measured import Predicted, Shares
from stpredict.networks.encoder import Encoded, EncoderConfig
from stpredict.slides.slide import Mpp
from stpredict.statistics.normalisation import NORMALISATIONS
from stpredict.statistics.sampling import draw_evenly
from stpredict.training.panels import Panel
from stpredict.training.run import Run
from stpredict.training.settings import Settings

#: Genes that vary, further entries of a spot, sections, and features as wide as a dictionary's.
HOT, RARE, SECTIONS, WIDTH = 1000, 2000, 10, 588
#: Spots of a section, so that further spots are further sections; fewer if there would be fewer than SECTIONS.
OF_SECTION = 3000
PATCHES, PATCH_PX = 48, 224


class Free(nn.Module):
    """Features of patches that cost next to nothing, for the model file's check of itself."""

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(patches, 14).flatten(1)


def expected_counts(features: Any) -> Any:
    """Mean counts of the genes that vary, at the usual depth, spots x genes."""
    load = np.random.default_rng(99).normal(0, 0.2, (5, HOT))
    return np.geomspace(20, 0.3, HOT) * np.exp(features[:, :5] @ load)


def make_counts(spots: int, genes: int, seed: int, features: Any) -> csr_array:
    """Counts of spots x genes, float32, as readers give them; `features` move the genes that vary."""
    rng = np.random.default_rng(seed)
    mean = expected_counts(features) * rng.lognormal(0, 0.4, (spots, 1))
    hot = rng.poisson(mean)
    tail = np.sort(HOT + rng.choice(genes - HOT, min(RARE, (genes - HOT) // 2), replace=False))
    data = np.ones((spots, HOT + len(tail)), np.float32)
    data[:, :HOT] = hot
    columns = np.broadcast_to(np.r_[np.arange(HOT), tail].astype(np.int32), data.shape)
    kept = data > 0
    starts = np.r_[0, np.cumsum(kept.sum(axis=1))]
    return csr_array((data[kept], columns[kept], starts.astype(np.int32)), (spots, genes))


def make_features(spots: int) -> Any:
    """Made-up features of spots in equal sections."""
    n = n_sections(spots)
    return np.random.default_rng(0).normal(size=(spots // n * n, WIDTH)).astype(np.float64)


def n_sections(spots: int) -> int:
    return max(SECTIONS, spots // OF_SECTION)


def write_run(spots: int, genes: int, path: Path, differing: bool) -> None:
    """Write tiles without patches, of five patients, and the features beside them, in half precision as a run has them.

    If sections are `differing`, six measured panels of their own.
    """
    features, n = make_features(spots), n_sections(spots)
    per, rng = spots // n, np.random.default_rng(1)
    np.save(path.with_suffix(".npy"), features.astype(np.float16))
    side, names, sections = int(np.ceil(per**0.5)), np.array([f"G{g:05}" for g in range(genes)]), []
    for s in range(n):
        there = np.ones(genes, dtype=bool)
        if differing and s >= n - 6:
            there = np.isin(np.arange(genes), rng.choice(HOT * 3, 400 if s % 2 else HOT * 5 // 2, replace=False))
        counts = make_counts(per, genes, s, features[s * per : (s + 1) * per])
        sections.append(Section(
            f"S{s:03}", f"P{s // 2:03}", path.with_name("no.tif"), Mpp(0.5, 0.5), [f"{i}" for i in range(per)],
            np.c_[np.arange(per) % side, np.arange(per) // side] * 200.0, names[there].tolist(),
            in_memory(counts[:, there]), spot_diameter_um=55.0, pitch_um=100.0,
            names_all_genes=True, technology="made up",
        ))  # fmt: skip
    write_tiles(sections, path, with_patches=False, keep_table=False, report=lambda _: None)


def make_tiles(spots: int, genes: int, folder: Path, differing: bool = False) -> Tiles:
    """Tiles of made-up spots. Another process makes the counts, so that they leave no trace."""
    path = folder / "made.tiles.h5"
    making = get_context("spawn").Process(target=write_run, args=(spots, genes, path, differing))
    making.start()
    making.join()
    return read_tiles(path)


def make_prediction(tiles: Tiles, features: Any, genes: int) -> Predicted:
    """ln(1 + CPM) of the genes counted most, float32, as a model knows it that sees what moves them."""
    expression = np.empty((len(features), genes), np.float32)
    for some in np.array_split(np.arange(len(features)), SECTIONS):
        expected = expected_counts(features[some])
        expression[some] = np.log1p(1e6 * expected[:, :genes] / (expected.sum(axis=1, keepdims=True) + RARE))
    names = [f"G{gene:05}" for gene in range(genes)]
    shares = Shares(tiles.depth, NORMALISATIONS["total"])
    return Predicted(np.arange(len(features)), names, expression, np.full(genes, 0.1), shares)


def make_run(spots: int, genes: int, folder: Path, differing: bool = False) -> Run:
    """A run on made-up spots, their features given."""
    tiles = make_tiles(spots, genes, folder, differing)
    features = np.load(tiles.path.with_suffix(".npy"), mmap_mode="r")
    network = Encoded(EncoderConfig(1, WIDTH, "free", "0" * 64, (0.5,) * 3, (0.5,) * 3, PATCH_PX))
    network.encoder = Free()
    return Run(
        tiles, describe(features, tiles), np.empty((0, 52)), Panel(size=700), Settings("encoder"), "",
        torch.device("cpu"),
        lambda _: None, network, features,
    )  # fmt: skip


def describe(features: Any, tiles: Tiles) -> Any:
    """Stand-ins for colour and texture, of as many spots as a run describes."""
    described = np.full((len(features), 52), np.nan)
    drawn = draw_evenly(tiles.section, MOST_DESCRIBED)
    described[drawn] = features[drawn, :52]
    return described


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
        [f"G{g:05}" for g in range(genes)], in_memory(counts), names_all_genes=True, patches=stored,
    )  # fmt: skip
