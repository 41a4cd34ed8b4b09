"""Checkpoints of networks of one patch: a trunk under torchvision's or its authors' names, and its last layer.

ST-Net, DeepSpaCE and other regressors of expression are published in this form. The last layer has a row per gene.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from stpredict.networks.patch_level import SYSTEMS, PatchConfig, PatchNetwork
from stpredict.networks.timm_vit import TimmViT
from stpredict.networks.trunk_files import LAYOUTS, rename
from stpredict.networks.trunks.crossvit import CrossViT
from stpredict.networks.trunks.densenet import DenseNet
from stpredict.networks.trunks.resnet import ResNet
from stpredict.networks.trunks.vgg import VGG

#: Side of a patch in pixels, for networks whose layers do not reveal it.
PATCH_PX = 224
TOKEN_PX = 16


@dataclass(frozen=True)
class Released:
    """A kind of trunk: its name in TRUNKS, the names of its last layers, and how to read its sizes from its tensors.

    Outputs of several last layers are averaged; each layer reads its own part of the features.
    """

    trunk: str
    heads: tuple[str, ...]
    sizes: Callable[[Mapping[str, Tensor]], tuple[int, tuple[int, ...]]]  # width and depths


def counted(tensors: Mapping[str, Tensor], pattern: str) -> tuple[int, ...]:
    """For each number in a pattern's first group, in order, how many different numbers its second group has."""
    found: dict[int, set[int]] = {}
    for name in tensors:
        if match := re.match(pattern, name):
            found.setdefault(int(match[1]), set()).add(int(match[2]))
    return tuple(len(found[key]) for key in sorted(found))


def densenet_sizes(tensors: Mapping[str, Tensor]) -> tuple[int, tuple[int, ...]]:
    depths = counted(tensors, r"features\.denseblock(\d+)\.denselayer(\d+)\.")
    return tensors["features.denseblock1.denselayer1.conv2.weight"].shape[0], depths


def resnet_sizes(tensors: Mapping[str, Tensor]) -> tuple[int, tuple[int, ...]]:
    """Raises KeyError for a ResNet of basic blocks, such as ResNet18, which no system here uses by itself."""
    tensors["layer1.0.conv3.weight"]
    return tensors["conv1.weight"].shape[0], counted(tensors, r"layer(\d+)\.(\d+)\.")


def vgg_sizes(tensors: Mapping[str, Tensor]) -> tuple[int, tuple[int, ...]]:
    """Convolutions are two places apart within a stage, and three if a pooling lies between."""
    places = sorted(int(match[1]) for name in tensors if (match := re.fullmatch(r"features\.(\d+)\.weight", name)))
    ends = [i + 1 for i, (a, b) in enumerate(pairwise(places)) if b - a > 2]
    edges = [0, *ends, len(places)]
    return tensors["features.0.weight"].shape[0], tuple(b - a for a, b in pairwise(edges))


def vit_sizes(tensors: Mapping[str, Tensor]) -> tuple[int, tuple[int, ...]]:
    return tensors["cls_token"].shape[-1], (len(counted(tensors, r"blocks\.(\d+)\.norm(1)\.")),)


def crossvit_sizes(tensors: Mapping[str, Tensor]) -> tuple[int, tuple[int, ...]]:
    exchanges = 1 + max(int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name)))
    depths = [counted(tensors, rf"blocks\.{k}\.blocks\.(\d+)\.(\d+)\.") for k in range(exchanges)]
    return tensors["cls_token.0"].shape[-1], tuple(depth for pair in depths for depth in pair)


RELEASED: dict[type[nn.Module], Released] = {
    DenseNet: Released("densenet", ("classifier",), densenet_sizes),
    ResNet: Released("resnet", ("fc",), resnet_sizes),
    VGG: Released("vgg", ("classifier.6",), vgg_sizes),
    TimmViT: Released("vit", ("heads.head", "head"), vit_sizes),
    CrossViT: Released("crossvit", ("head.0", "head.1"), crossvit_sizes),
}


def read_patch_network(loaded: Mapping[str, Tensor]) -> PatchNetwork | None:
    """The network of a state dict; None if it does not begin with a known trunk.

    Raises KeyError, RuntimeError or ValueError if some of its tensors are missing, or do not fit together.
    """
    for kind, released in RELEASED.items():
        tensors = {rename(name, LAYOUTS[kind]): tensor for name, tensor in loaded.items()}
        known = LAYOUTS[kind].known
        prefix = next((name.removesuffix(known) for name in tensors if name.endswith(known)), None)
        if prefix is not None:
            return build({name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, released)
    return None


def build(tensors: Mapping[str, Tensor], released: Released) -> PatchNetwork:
    """The network of tensors whose names have lost their prefix."""
    weight, bias = joined_head(tensors, released)
    width, depths = released.sizes(tensors)
    positions = tensors.get("pos_embed", tensors.get("pos_embed.1"))
    patch_px = PATCH_PX if positions is None else TOKEN_PX * math.isqrt(positions.shape[1] - 1)
    network = PatchNetwork(PatchConfig(weight.shape[0], released.trunk, width, depths, patch_px))
    wanted = network.trunk.state_dict()
    counts = {name: torch.zeros((), dtype=torch.int64) for name in wanted if name.endswith("num_batches_tracked")}
    network.trunk.load_state_dict(counts | {name: tensor for name, tensor in tensors.items() if name in wanted})
    network.head.load_state_dict({"weight": weight, "bias": bias})
    return network


def joined_head(tensors: Mapping[str, Tensor], released: Released) -> tuple[Tensor, Tensor]:
    """Weight and bias of one last layer whose output is the mean of the released ones.

    Raises KeyError if there is no last layer.
    """
    names = [name for name in released.heads if f"{name}.weight" in tensors]
    if not names:
        raise KeyError(f"{released.heads[0]}.weight")
    weights = [tensors[f"{name}.weight"] for name in names]
    biases = [tensors[f"{name}.bias"] for name in names]
    return torch.cat(weights, dim=1) / len(names), torch.stack(biases).mean(dim=0)


def system_of(config: PatchConfig) -> str:
    """The architecture's name, or its trunk's name with "-custom" if its sizes are not those of a known system."""
    own = {"trunk": config.trunk, "width": config.width, "depths": tuple(config.depths)}
    found = (name for name, sizes in SYSTEMS.items() if {key: sizes[key] for key in own} == own)
    return next(found, f"{config.trunk}-custom")
