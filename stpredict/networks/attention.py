"""Attention that networks share: its sizes, and weights that are zeroed at random in training."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from stpredict.networks.draws import draw


@dataclass(frozen=True)
class AttentionSizes:
    """Widths of a token and of the MLP inside, attention heads and layers. Raises ValueError if they cannot be."""

    width: int
    mlp: int
    heads: int
    depth: int

    def __post_init__(self) -> None:
        if min(self.width, self.mlp, self.heads, self.depth) < 1 or self.width % self.heads:
            raise ValueError("its head's width does not divide into attention heads")


def random_mask_attention(q: Tensor, k: Tensor, v: Tensor, mask_probability: float) -> Tensor:
    """Attention of N x heads x tokens x dim whose weights are zeroed at random (arXiv 2401.10608, eq. 1).

    One token x token mask per spot is shared by its heads; what is left is rescaled as dropout does.
    """
    if mask_probability == 0:
        return F.scaled_dot_product_attention(q, k, v)
    weights = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1), dim=-1)
    of_one = (1, *weights.shape[2:])
    mask = draw(lambda n: random_mask((n, *of_one), mask_probability, weights), len(weights))
    return (weights * mask) @ v


def random_mask(shape: tuple[int, ...], probability: float, like: Tensor) -> Tensor:
    """0 with `probability`, else 1 / (1 - probability), of the dtype and device of `like`.

    Four decisions are cut from each random number: on a CPU drawing them is a quarter of a training step.
    """
    count = math.prod(shape)
    drawn = torch.empty(-(-count // 4), dtype=torch.int64, device=like.device).random_(-(2**63), None)
    keep = drawn.view(torch.int16)[:count].view(shape) >= round(probability * 2**16) - 2**15
    return keep.to(like.dtype) / (1 - probability)


def split_heads(x: Tensor, heads: int) -> Tensor:
    n, tokens, inner = x.shape
    return x.reshape(n, tokens, heads, inner // heads).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)
