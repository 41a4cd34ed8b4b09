"""Checkpoints of HisToGene and Hist2ST, under the names of their released code, with sizes from their tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from stpredict.networks import SectionNetwork
from stpredict.networks import hist2st as second
from stpredict.networks import histogene as first
from stpredict.networks.hist2st import HIST2STS, Hist2ST, Hist2STConfig
from stpredict.networks.histogene import HISTOGENES, HisToGene, HisToGeneConfig, renamed

#: Side of a patch in pixels, or more if the network looks at more.
PATCH_PX = 224


def read_section_network(released: Mapping[str, Tensor], head_dim: int) -> SectionNetwork | None:
    """The network of a state dict; None for another network. Its head predicts natural logarithms, not decadic ones as
    the released head does.

    Raises KeyError, RuntimeError, ValueError or ZeroDivisionError if tensors are missing, or do not fit together.
    """
    if "x_embed.weight" not in released or "y_embed.weight" not in released:
        return None
    of_graph = any(name.startswith("vit.transformer.layer3.") for name in released)
    tensors = renamed(released, second.RELEASED if of_graph else first.RELEASED)
    network: SectionNetwork
    if of_graph:
        network = Hist2ST(_hist2st_config(tensors, head_dim))
    else:
        network = HisToGene(_histogene_config(tensors, head_dim))
    own = network.state_dict()
    network.load_state_dict({
        name: tensor.to(own[name].dtype) if name in own else tensor for name, tensor in tensors.items()
    })  # fmt: skip
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.mul_(math.log(10))
    return network


def system_of(config: HisToGeneConfig | Hist2STConfig) -> str:
    """The architecture's name, with "-custom" if its sizes are not those of a known system."""
    of, names = (HisToGeneConfig, HISTOGENES) if isinstance(config, HisToGeneConfig) else (Hist2STConfig, HIST2STS)
    known = {"positions": config.positions, "learnt": config.learnt, "patch_px": config.patch_px}
    for name, sizes in names.items():
        if of(n_genes=config.n_genes, **(known | sizes)) == config:
            return name
    return f"{next(iter(names))}-custom"


def _histogene_config(tensors: Mapping[str, Tensor], head_dim: int) -> HisToGeneConfig:
    width, pixels = tensors["patch_embedding.weight"].shape
    image_px = math.isqrt(pixels // 3)
    return HisToGeneConfig(
        n_genes=len(tensors["head.bias"]),
        channels=width,
        depth=_count(tensors, "blocks"),
        heads=_heads(tensors, head_dim),
        head_dim=head_dim,
        mlp_dim=len(tensors["blocks.0.mlp.1.bias"]),
        image_px=image_px,
        positions=len(tensors["places.column.weight"]),
        learnt=len(tensors["places.column.weight"]),
        patch_px=max(PATCH_PX, image_px),
    )


def _hist2st_config(tensors: Mapping[str, Tensor], head_dim: int) -> Hist2STConfig:
    positions, width = tensors["places.column.weight"].shape
    channels, _, square_px, _ = tensors["patch_embedding.weight"].shape
    squares = len(tensors["down.bias"])
    image_px = square_px * math.isqrt(width // squares)
    config = Hist2STConfig(
        n_genes=len(tensors["head.bias"]), image_px=image_px, square_px=square_px, channels=channels, squares=squares,
        kernel=tensors["mixers.0.places.0.weight"].shape[-1], mixers=_count(tensors, "mixers"),
        depth=_count(tensors, "blocks"), heads=_heads(tensors, head_dim), head_dim=head_dim,
        graph_depth=_count(tensors, "graph"), patch_px=max(PATCH_PX, image_px),
    )  # fmt: skip
    return replace(config, positions=positions, learnt=positions)


def _heads(tensors: Mapping[str, Tensor], head_dim: int) -> int:
    inner = len(tensors["blocks.0.attention.query.weight"])
    if inner % head_dim:
        raise ValueError(f"a width of {inner} does not divide into attention heads of {head_dim}; see --head-dim")
    return inner // head_dim


def _count(tensors: Mapping[str, Tensor], part: str) -> int:
    numbers = {match[1] for name in tensors if (match := re.match(rf"{part}\.(\d+)\.", name))}
    return len(numbers)
