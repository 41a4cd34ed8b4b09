"""What accuracy.py measures on: the data, its splits, and what the rows of a split share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from stpredict.arrays import Bool, Float, UInt8
from stpredict.data.cutting import write_tiles
from stpredict.data.dataset import read_counts, read_dataset
from stpredict.data.panel import choose_panel
from stpredict.data.tiles import Tiles, read_tiles
from stpredict.networks.dictionary import Dictionary, DictionaryConfig
from stpredict.slides.symmetry import SYMMETRIES, turn
from stpredict.slides.views import ONE_VIEW, Views
from stpredict.statistics.colour_texture import colour_texture_features
from stpredict.statistics.objectives import Objective, make_objective
from stpredict.storage.files import atomic_path
from stpredict.training.augmentation import jitter_stain
from stpredict.training.covariances import gene_covariance
from stpredict.training.dictionary import learn_windows
from stpredict.training.settings import Settings

Splits = Mapping[str, tuple[list[str], list[str]]]
SPLITS: Splits = {
    "C5": (["B4", "C2", "C3", "C4"], ["C5"]),
    "B": (["C2", "C3", "C4", "C5"], ["B4"]),
    "C": (["B4"], ["C2", "C3", "C4", "C5"]),
}
MIN_DEPTH = 500
UNLABELLED = 5000
COUNTS = "her2st-counts"


@dataclass(frozen=True)
class Cut:
    """In how much detail patches are cut, and their side."""

    mpp: float
    patch_px: int


FINE = Cut(0.69, 224)


@dataclass(frozen=True)
class Part:
    """One split: what is trained on and tested, and what its rows share. The panel is of the training sections."""

    tiles: Tiles
    colour: Float  # the 52 features of the spots
    unlabelled_colour: Float
    sections: list[str]  # to train on
    train: Bool
    test: Bool
    panel: list[str]
    scratch: Path

    @cached_property
    def objective(self) -> Objective:
        return make_objective("residuals", self.counts, self.tiles.depth, self.tiles.section, self.train)

    @cached_property
    def counts(self) -> Float:
        return self.tiles.panel_counts(self.panel)

    @cached_property
    def covariances(self) -> dict[str, Float]:
        """How genes vary together: by the training sections alone, and by those without images too."""
        pictured = replace(self.tiles, counts_only=None)
        return {name: gene_covariance(each, self.panel, self.sections)[0]
                for name, each in (("own", pictured), ("all", self.tiles))}  # fmt: skip

    def described(self, seed: int, how: str = "plain") -> Float:
        """The dictionary's features of all spots; of some VARIANTS of each patch, their mean."""
        path = self.scratch / f"described-{how}-{seed}.npy"
        if not path.exists():
            centres = MANY if how == "many" else DictionaryConfig.centres
            network = learn_windows(self.tiles, self.sections, len(self.panel), seed, centres)
            spots = range(len(self.train))
            torch.manual_seed(seed)
            save(path, np.stack([describe(network, self.tiles.read_patch(spot), how) for spot in spots]))
        return np.load(path)


#: Centres of a dictionary with many; parts of a patch that are looked at one by one, and their side.
MANY = 400
CROP_PX, CORNERS = 168, ((0, 0), (0, 56), (56, 0), (56, 56), (28, 28))
VARIANTS: dict[str, Callable[[UInt8], list[UInt8]]] = {
    "turned": lambda patch: [turn(patch, code) for code in range(SYMMETRIES)],
    "varied": lambda patch: [jitter_stain(torch.from_numpy(patch[None]), Settings.stain_jitter)[0].numpy()],
    "cropped": lambda patch: [patch[y : y + CROP_PX, x : x + CROP_PX] for y, x in CORNERS],
}


def describe(network: Dictionary, patch: UInt8, how: str) -> Float:
    """The dictionary's features of a patch, or their mean over variants of it."""
    patches = np.stack(VARIANTS[how](patch) if how in VARIANTS else [patch])
    if patches.shape[1] != network.config.patch_px:
        smaller = Dictionary(replace(network.config, patch_px=patches.shape[1]))
        smaller.load_state_dict(network.state_dict())
        network = smaller
    with torch.inference_mode():
        return network.features(torch.from_numpy(patches)).double().numpy().mean(axis=0)


def open_part(
    split: str, tiles: Tiles, colour: Float, unlabelled_colour: Float, scratch: Path, splits: Splits = SPLITS
) -> Part:
    sections, tested = splits[split]
    train, test = np.isin(tiles.section, sections), np.isin(tiles.section, tested) & (tiles.depth >= MIN_DEPTH)
    panel = choose_panel(tiles.counts_of(sections), tiles.genes)
    folder = scratch / split
    folder.mkdir(exist_ok=True)
    return Part(tiles, colour, unlabelled_colour, sections, train, test, panel, folder)


def save(path: Path, values: Float) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, values)


def open_tiles(
    shared: Path, scratch: Path, views: Views = ONE_VIEW, cut: Cut = FINE, unlabelled: int = UNLABELLED,
    dataset: Path | None = None,
) -> Tiles:  # fmt: skip
    """The patches of the two patients, or of another `dataset`; kept in `scratch`."""
    detail = "" if cut == FINE else f"-{cut.mpp:g}"
    path = scratch / f"{dataset.name if dataset else 'her2st'}-{unlabelled}-{len(views)}{detail}.tiles.h5"
    if not path.exists():
        sections = read_dataset(dataset or shared / "data" / "her2st")
        pictured = {section.name for section in sections}
        more = [section for section in read_counts(shared / "data" / COUNTS) if section.name not in pictured]
        write_tiles(
            sections, path, counts_only=more, patch_px=cut.patch_px, views=views, mpp=cut.mpp, unlabelled=unlabelled,
            report=print,
        )  # fmt: skip
    return read_tiles(path)


def open_data(
    shared: Path, scratch: Path, views: Views = ONE_VIEW, unlabelled: int = UNLABELLED
) -> tuple[Tiles, Float, Float]:
    """The tiles, and the 52 features of spots and of unlabelled patches; kept in `scratch`."""
    tiles = open_tiles(shared, scratch, views, FINE, unlabelled)
    cache = tiles.path.with_name(tiles.path.name.replace(".tiles.h5", "-features.npz"))
    if not cache.exists():
        n, extra = len(tiles.spot), len(tiles.unlabelled_section)
        spots = colour_texture_features(tiles.read_patch(i) for i in range(n))
        unlabelled_spots = colour_texture_features(tiles.read_patch(i, unlabelled=True) for i in range(extra))
        with atomic_path(cache) as temporary, temporary.open("wb") as file:
            np.savez(file, spots=spots, unlabelled=unlabelled_spots)
    with np.load(cache) as saved:
        return tiles, saved["spots"], saved["unlabelled"]
