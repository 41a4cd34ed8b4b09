"""A Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) with random weights, as torchvision draws them.

Tensors have timm's names, so that it is `timm_vit`; torchvision's are renamed where a file of them is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stpredict.networks.timm_vit import TimmViT, ViTReading, build_vit

TOKEN_PX, HEAD_WIDTH, MLP = 16, 64, 4
#: Blocks of ViT-B/16, which is 768 wide.
VIT_B = (12,)
EPSILON = 1e-6


def random_vit(width: int, depths: Sequence[int], patch_px: int, heads: int | None = None) -> TimmViT:
    """So many blocks as the one entry of `depths`, read by the class token, heads of 64 channels unless told.

    Raises ValueError for sizes that make no network.
    """
    (depth,) = depths
    tensors: dict[str, Tensor] = {
        "cls_token": torch.zeros(1, 1, width),
        "pos_embed": 0.02 * torch.randn(1, 1 + (patch_px // TOKEN_PX) ** 2, width),
        "patch_embed.proj.weight": nn.init.trunc_normal_(
            torch.empty(width, 3, TOKEN_PX, TOKEN_PX), std=math.sqrt(1 / (3 * TOKEN_PX**2))
        ),
        "patch_embed.proj.bias": torch.zeros(width),
        **norm("norm", width),
    }
    for block in (f"blocks.{i}." for i in range(depth)):
        tensors |= norm(f"{block}norm1", width) | norm(f"{block}norm2", width)
        tensors |= linear(f"{block}attn.qkv", width, 3 * width) | linear(f"{block}attn.proj", width, width)
        nn.init.uniform_(tensors[f"{block}attn.proj.weight"], -1 / math.sqrt(width), 1 / math.sqrt(width))
        for name, inputs, outputs in (("fc1", width, MLP * width), ("fc2", MLP * width, width)):
            tensors |= linear(f"{block}mlp.{name}", inputs, outputs)
            nn.init.normal_(tensors[f"{block}mlp.{name}.bias"], std=1e-6)
    reading = ViTReading(heads or max(1, width // HEAD_WIDTH), "token", "gelu", EPSILON, "assumed")
    return build_vit(tensors, reading, patch_px)


def norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}


def linear(name: str, inputs: int, outputs: int) -> dict[str, Tensor]:
    weight = nn.init.xavier_uniform_(torch.empty(outputs, inputs))
    return {f"{name}.weight": weight, f"{name}.bias": torch.zeros(outputs)}
