"""Weights of a trunk that the user has: torchvision's of ImageNet, or others' of histology under the same names."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from stpredict.errors import ModelFileError
from stpredict.networks.tensor_files import read_tensors
from stpredict.networks.timm_vit import TimmViT, resample_positions
from stpredict.networks.trunks.crossvit import CrossViT
from stpredict.networks.trunks.densenet import DenseNet
from stpredict.networks.trunks.resnet import ResNet
from stpredict.networks.trunks.vgg import VGG


@dataclass(frozen=True)
class Layout:
    """A tensor that every file of a trunk has, what published files call others, and which are position embeddings.

    What stands before the known tensor stands before all, such as "module." or "model.resnet.".
    """

    known: str
    renamed: tuple[tuple[str, str], ...] = ()
    positions: tuple[str, ...] = ()


LAYOUTS: dict[type[nn.Module], Layout] = {
    ResNet: Layout("layer1.0.conv1.weight"),
    # As torchvision's oldest files, which it still publishes, have it.
    DenseNet: Layout(
        "features.denseblock1.denselayer1.conv1.weight", ((r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),)
    ),
    VGG: Layout("features.0.weight"),
    TimmViT: Layout(
        "blocks.0.norm1.weight",
        (
            (r"\bclass_token$", "cls_token"),
            (r"\bconv_proj\.", "patch_embed.proj."),
            (r"\bencoder\.pos_embedding$", "pos_embed"),
            (r"\bencoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
            (r"\bencoder\.ln\.", "norm."),
            (r"(blocks\.\d+\.)ln_([12])\.", r"\1norm\2."),
            (r"(blocks\.\d+\.)self_attention\.in_proj_(weight|bias)$", r"\1attn.qkv.\2"),
            (r"(blocks\.\d+\.)self_attention\.out_proj\.", r"\1attn.proj."),
            (r"(blocks\.\d+\.)mlp\.(?:0|linear_1)\.", r"\1mlp.fc1."),
            (r"(blocks\.\d+\.)mlp\.(?:3|linear_2)\.", r"\1mlp.fc2."),
        ),
        ("pos_embed",),
    ),
    CrossViT: Layout(
        "blocks.0.fusion.0.attn.wq.weight",
        ((r"\b(cls_token|pos_embed)_([01])$", r"\1.\2"),),  # as timm calls them
        ("pos_embed.0", "pos_embed.1"),
    ),
}


def read_trunk(path: Path, trunk: nn.Module, architecture: str) -> dict[str, Tensor]:
    """The tensors of a `trunk` like this one, of .safetensors or of what torch saved; a classifier is left out.

    The trunk, which may be without memory (on torch's device "meta"), is given them. Position embeddings are resampled
    to its patches. Nothing in the file is executed. Raises ModelFileError if it holds pickled code, or no such trunk.
    """
    layout = next(layout for kind, layout in LAYOUTS.items() if isinstance(trunk, kind))
    loaded = {rename(name, layout): tensor for name, tensor in read_tensors(path).items()}
    prefix = next((name.removesuffix(layout.known) for name in loaded if name.endswith(layout.known)), None)
    if prefix is None:
        raise ModelFileError(f"{path.name}: holds no trunk of --arch {architecture} (no tensor {layout.known}).")
    wanted = trunk.state_dict()
    tensors = {name: loaded[prefix + name].float() for name in wanted if prefix + name in loaded}
    tensors |= {name: torch.zeros((), dtype=torch.int64) for name in wanted if name.endswith("num_batches_tracked")}
    try:
        for name in layout.positions:
            tensors[name] = resample_positions(tensors[name], math.isqrt(wanted[name].shape[1]))
        trunk.load_state_dict(tensors, assign=True)
    except (RuntimeError, AttributeError, TypeError, KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        said = "; ".join(line.strip() for line in str(error).splitlines()[1:3]) or str(error)
        raise ModelFileError(f"{path.name}: not the trunk of --arch {architecture} ({said}).") from error
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise ModelFileError(f"{path.name}: some of its weights are not finite.")
    return tensors


def rename(name: str, layout: Layout) -> str:
    """A tensor's name as the trunk calls it."""
    for pattern, replacement in layout.renamed:
        name = re.sub(pattern, replacement, name)
    return name
