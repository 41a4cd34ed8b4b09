"""Train a HisToGene or a Hist2ST: each batch is all measured spots of one section.

As in prediction, spots' positions are columns and rows of their pitch, counted from the section's first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stpredict.arrays import Bool, Float, Int, UInt8
from stpredict.data.section import Section
from stpredict.data.tiles import Tiles
from stpredict.errors import UsageError
from stpredict.networks import SectionNetwork
from stpredict.networks.hist2st import Hist2ST, Hist2STConfig, distil, turned, zinb_loss
from stpredict.networks.histogene import POSITIONS, HisToGeneConfig
from stpredict.slides.neighbourhoods import grid_cells
from stpredict.statistics.objectives import Objective
from stpredict.training.fit import Step

#: The weights, in Hist2ST's loss, of the counts' likelihood and of the joint output for all views; the error's is 1.
LIKELIHOOD, DISTILLED = 0.25, 0.5
#: Hist2ST's views of a section: their number, their largest turn, and how often they are mirrored and grey.
VIEWS, DEGREES, MIRRORED, GREY = 5, 90.0, 0.2, 0.1
LUMINANCE = (0.2989, 0.587, 0.114)
#: How many patches are read or described at a time.
BATCH = 64


def cells_of_sections(sections: Sequence[Section], tiles: Tiles) -> Int:
    """Row and column of each spot of a tiles file in the grid of its own section, spots x 2, both from 0."""
    cells = np.zeros((len(tiles.section), 2), np.int64)
    for section in sections:
        rows = np.flatnonzero(tiles.section == section.name)
        if len(rows):
            found = grid_cells(tiles.centres[rows], section.mpp, tiles.pitch_um)
            cells[rows] = found - found.min(axis=0)
    return cells


def positions_of(cells: Int, in_training: Bool) -> dict[str, int]:
    """How many columns and rows a network must know: as many as released, or more if sections are larger.

    Also how many its training spots have.
    """
    return {"positions": max(POSITIONS, int(cells.max()) + 1), "learnt": int(cells[in_training].max()) + 1}


def check_memory(network: SectionNetwork, tiles: Tiles, in_training: Bool, device: torch.device) -> None:
    """Raises UsageError if a section has more spots than memory allows at once, as estimated from sizes."""
    at_hand = memory_of(device)
    names, counts = np.unique(tiles.section[in_training], return_counts=True)
    largest = int(np.argmax(counts))
    needed = int(counts[largest]) * bytes_per_spot(network)
    if at_hand is not None and needed > at_hand:
        raise UsageError(
            f"section {names[largest]}: its {counts[largest]:,} spots read one another, so that they are trained on at "
            f"once, which takes about {needed / 1e9:,.0f} GB of the {at_hand / 1e9:,.0f} GB there are; bin them "
            "(--bin-um), or leave that section out."
        )


def bytes_per_spot(network: SectionNetwork) -> int:
    """The bytes that training holds per spot for the backward pass, from the widths of layers."""
    config, width, n_blocks = network.config, network.n_described, len(network.blocks)
    mlp = config.mlp_dim if isinstance(config, HisToGeneConfig) else width
    values = 3 * config.image_px**2 + n_blocks * (6 * width + 4 * config.heads * config.head_dim + 4 * mlp)
    if isinstance(config, Hist2STConfig):
        of_maps = config.channels * (config.image_px // config.square_px) ** 2
        values += config.mixers * 14 * of_maps + config.graph_depth * (6 + 2 * 8) * width
        values *= 1 + VIEWS
    return 4 * values


def memory_of(device: torch.device) -> int | None:
    """The bytes of a device's memory; None if it does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def read_middle(tiles: Tiles, px: int, index: Int) -> UInt8:
    """The middle `px` of some spots' patches, n x px x px x 3, so small that a whole section's fit into memory.

    Smaller patches come as they are.
    """
    left = max(0, (tiles.patch_px - px) // 2)
    middle = slice(left, tiles.patch_px - left)
    parts = [tiles.read_patches(index[i : i + BATCH])[:, middle, middle] for i in range(0, len(index), BATCH)]
    return np.concatenate(parts)


def section_step(
    network: SectionNetwork, cells: Int, objective: Objective, counts_of: Callable[[Int], Float], device: torch.device
) -> Step:
    """The loss of a batch, all spots of a section; `counts_of` gives their counts, spots x genes of the panel."""

    def step(_model: nn.Module, patches: Tensor, items: Int) -> Tensor:
        index, where = torch.from_numpy(items), torch.from_numpy(cells[items]).to(device)
        if not isinstance(network, Hist2ST):
            return objective.loss(network.head(network.global_tokens(network.describe(patches), where)), index)
        states = network.spot_states(network.describe(patches), where)
        z = network.head(network.norm(states))
        measured = torch.from_numpy(counts_of(items)).float().to(device)
        sums = measured.sum(dim=1)
        likelihood = zinb_loss(measured, sums / sums.median().clamp(min=1), *network.distribution(states))
        distilled = ask_views(network, patches, where)
        return objective.loss(z, index) + LIKELIHOOD * likelihood + DISTILLED * F.mse_loss(distilled, z)

    return step


def ask_views(network: Hist2ST, patches: Tensor, cells: Tensor) -> Tensor:
    """A Hist2ST's joint output for random views of a section, each weighted by its confidence, n x genes."""
    predictions, beliefs = [], []
    for _ in range(VIEWS):
        states = network.spot_states(network.describe(random_view(patches)), cells)
        predictions.append(network.head(network.norm(states)))
        beliefs.append(network.belief(states))
    return distil(torch.stack(predictions), torch.stack(beliefs))


def random_view(patches: Tensor) -> Tensor:
    """A section's patches, all turned alike, and sometimes all mirrored or grey."""
    angle, mirrored, grey = torch.rand(3).tolist()
    view = turned(patches, DEGREES * (2 * angle - 1))
    if mirrored < MIRRORED:
        view = view.flip(2)
    if grey < GREY:
        view = (view @ torch.tensor(LUMINANCE, device=view.device))[..., None].expand(-1, -1, -1, 3)
    return view


def predict_in_own_sections(
    network: SectionNetwork, tiles: Tiles, cells: Int, rows: Int, device: torch.device
) -> Float:
    """The network's raw output for some spots, each among all of its section, in fp32, spots x genes.

    Values that are attached to its head follow the genes.
    """
    network.to(device).eval()
    found: dict[int, Float] = {}
    with torch.inference_mode():
        for name in np.unique(tiles.section[rows]):
            own = np.flatnonzero(tiles.section == name)
            read = partial(read_middle, tiles, network.config.image_px)
            parts = [own[start : start + BATCH] for start in range(0, len(own), BATCH)]
            described = torch.cat([network.describe(torch.from_numpy(read(part)).to(device)) for part in parts])
            tokens = network.global_tokens(described, torch.from_numpy(cells[own]).to(device))
            found |= dict(zip(own.tolist(), network.head(tokens).double().cpu().numpy(), strict=True))
    return np.stack([found[int(row)] for row in rows]) if len(rows) else np.empty((0, network.config.n_genes))
