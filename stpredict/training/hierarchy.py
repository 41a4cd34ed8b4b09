"""Training on HIPT's features: they are computed once, for all spots, before anything is trained."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor, nn

from stpredict.arrays import Float, Float32, Int
from stpredict.data.section import Section
from stpredict.data.tiles import Tiles
from stpredict.engines.eager import on_arrays, two_passes
from stpredict.errors import UsageError
from stpredict.networks import TileNetwork, architecture_config, make_network
from stpredict.networks.hierarchy import SUPERPIXEL_PX, HierarchySizes
from stpredict.networks.hipt import Hipt
from stpredict.networks.istar import IStar, MedianHead
from stpredict.prediction.surroundings import read_in_sections
from stpredict.statistics.objectives import Objective
from stpredict.storage.files import atomic_path
from stpredict.training.fit import Step
from stpredict.training.processes import is_main_process, wait_for_all
from stpredict.training.surroundings import look_around_together

Tile = TypeVar("Tile", Hipt, IStar)
#: How many spots are read at a time.
BATCH = 64


def frozen_network(
    architecture: str, sizes: HierarchySizes, tensors: Mapping[str, Tensor], tiles: Tiles, device: torch.device
) -> TileNetwork:
    """A network of one gene with the user's frozen parts. Raises UsageError if spots are too wide for it."""
    radius = tiles.spot_diameter_um / (2 * SUPERPIXEL_PX * tiles.mpp)
    try:
        config = architecture_config(architecture, n_genes=1, patch_px=tiles.patch_px, radius=radius, **asdict(sizes))
        network = make_network(config)
    except ValueError as error:
        raise UsageError(f"--arch {architecture}: {error}.") from error
    assert isinstance(network, TileNetwork)
    network.frozen.load_state_dict(tensors)
    return network.to(device).eval()


def describe_spots(
    network: TileNetwork, sections: Sequence[Section], tiles: Tiles, cache: Path, folder: Path, device: torch.device,
    report: Callable[[str], None],
) -> None:  # fmt: skip
    """Write the features of each spot that the head or, in half precision, iStar's layers read to the file `cache`.

    Meanwhile the features of all tiles lie in the `folder`, so that a killed run can go on. Processes that train
    together share the tiles, and the first one writes the file.
    """
    passes = two_passes(network, device)
    known = look_around_together(sections, tiles, passes, folder, report)
    read = network.features_of if isinstance(network, Hipt) else network.spot
    if is_main_process():
        second = replace(passes, read_spots=partial(on_arrays, read, device))
        dtype = np.float64 if isinstance(network, Hipt) else np.float16
        write_spots(read_in_sections(second, known, tiles, np.arange(len(tiles.spot))), len(tiles.spot), dtype, cache)
        shutil.rmtree(folder)
    wait_for_all()


def write_spots(described: Iterable[tuple[Int, Float32]], n_spots: int, dtype: type[np.floating], cache: Path) -> None:
    """Write what is `described`, rows and their features, to the file `cache`, whole or not at all."""
    with atomic_path(cache) as temporary:
        file = None
        for rows, values in described:
            if file is None:
                file = open_memmap(temporary, "w+", dtype, (n_spots, *values.shape[1:]))
            file[rows] = values
        assert file is not None
        file.flush()


def with_genes(network: Tile, n_genes: int) -> Tile:
    """The same frozen parts with a new head for `n_genes`."""
    new = type(network)(replace(network.config, n_genes=n_genes))
    new.frozen = network.frozen
    return new


def superpixel_step(network: IStar, objective: Objective) -> Step:
    """The step for spots that are given as superpixels (B x s x features) in place of patches.

    If there are several states, its loss is the sum of theirs.
    """

    def step(_model: nn.Module, superpixels: Tensor, items: Int) -> Tensor:
        read, spots = network.latent(superpixels).mean(dim=1), torch.from_numpy(items)
        if isinstance(network.head, MedianHead):
            each = network.head.each(read).unbind(dim=1)
            return torch.stack([objective.loss(said, spots) for said in each]).sum()
        return objective.loss(network.head(read), spots)

    return step


def predict_from_superpixels(network: IStar, superpixels: Float, rows: Int, device: torch.device) -> Float:
    """The network's raw output for some spots, in fp32, spots x genes, and values that are attached to its head."""
    network.to(device).eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(rows), BATCH):
            here = torch.from_numpy(superpixels[rows[start : start + BATCH]]).to(device)
            parts.append(network.head(network.latent(here).mean(dim=1)).double().cpu().numpy())
    return np.concatenate(parts) if parts else np.empty((0, network.config.n_genes))
