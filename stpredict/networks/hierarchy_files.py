"""Weights of HIPT's two networks, files of the user's under the released names, which are timm's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from stpredict.errors import ModelFileError
from stpredict.networks.hierarchy import Hierarchy, HierarchySizes
from stpredict.networks.tensor_files import read_tensors

#: Heads of both published networks, which shapes do not tell.
HEADS = 6
TILE, REGION = "patch_embed.proj.weight", "phi.0.weight"


def read_hierarchy(tile_file: Path, region_file: Path) -> tuple[HierarchySizes, dict[str, Tensor]]:
    """Sizes and tensors of a `Hierarchy`, in fp32, from the files of the lower and of the upper network.

    Nothing in them is executed. Raises ModelFileError if one holds pickled code, or another network.
    """
    tile, region = (_read(path, known) for path, known in ((tile_file, TILE), (region_file, REGION)))
    tile_width, region_width = tile[TILE].shape[0], region[REGION].shape[0]
    if region[REGION].shape[1] != tile_width:
        raise ModelFileError(f"{region_file.name}: does not read tokens of {tile_width}, as {tile_file.name} gives.")
    sizes = HierarchySizes(tile_width, _depth(tile), HEADS, region_width, _depth(region), HEADS)
    tensors = {f"tile_vit.{name}": tensor for name, tensor in tile.items()}
    tensors |= {f"region_vit.{name}": tensor for name, tensor in region.items()}
    try:
        with torch.device("meta"):
            network = Hierarchy(sizes, None)
        network.load_state_dict(tensors, assign=True)
    except (RuntimeError, ValueError) as error:
        said = "; ".join(line.strip() for line in str(error).splitlines()[1:3]) or str(error)
        raise ModelFileError(f"{tile_file.name}, {region_file.name}: not the networks of HIPT ({said}).") from error
    return sizes, tensors


def _read(path: Path, known: str) -> dict[str, Tensor]:
    """A network's tensors, what stands before their names taken off, rounded as a model file keeps them."""
    loaded = {
        re.sub(r"^((module|backbone|teacher)\.)+", "", name): tensor for name, tensor in read_tensors(path).items()
    }
    if known not in loaded:
        raise ModelFileError(f"{path.name}: holds no network of HIPT (no tensor {known}).")
    tensors = {name: tensor.half().float() for name, tensor in loaded.items() if not name.startswith("head.")}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise ModelFileError(f"{path.name}: some of its weights are not finite.")
    return tensors


def _depth(tensors: Mapping[str, Tensor]) -> int:
    return len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
