"""The head of HistoPrism: a transformer over all spots of a slide, which knows the cancer (Hu et al. 2026, ICLR).

As published its graph convolutions are switched off, and each spot gets the same of the cancer,
since it is the only thing that they attend to. It is folded when the model is brought in. The layers are those of
torch's own transformer, normed behind each part; spots are told nothing of where the others lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stpredict.networks.attention import AttentionSizes, join_heads, split_heads

#: Spots that ask at once.
SPOTS_AT_ONCE = 512
#: Attention heads of the published transformer, which its tensors do not tell.
HEADS = 8


class HistoPrismConfig(AttentionSizes):
    """Sizes of HistoPrism's layers; a token is a spot."""


class HistoPrismHead(nn.Module):
    """Expression of the spots of a slide from the features of their patches."""

    #: Tensors with an axis of genes, and which it is: `--genes` computes no others.
    GENE_AXES: ClassVar[Mapping[str, int]] = {"last.weight": 0, "last.bias": 0}
    side: ClassVar[int] = 1
    at_pitch: ClassVar[bool] = False

    def __init__(self, config: HistoPrismConfig, n_features: int, n_genes: int) -> None:
        super().__init__()
        self.config = config
        self.told = nn.Parameter(torch.zeros(n_features))
        self.told_norm = nn.LayerNorm(n_features)
        self.embed = nn.Linear(n_features, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
        self.first, self.norm = nn.Linear(config.width, config.width), nn.LayerNorm(config.width)
        self.last = nn.Linear(config.width, n_genes)
        self.described = config.width

    def describe(self, features: Tensor) -> Tensor:
        """What is kept of each patch, N x width, of its features."""
        return self.embed(self.told_norm(features + self.told))  # type: ignore[no-any-return]

    def among(self, described: Tensor, _places: Tensor) -> Tensor:
        """Tokens n x width of all spots of a slide."""
        for layer in self.layers:
            described = layer(described)
        return described

    def read(self, _neighbours: Tensor, _absent: Tensor, tokens: Tensor) -> Tensor:
        """Expression, N x genes, of spots by their tokens."""
        return self.last(F.relu(self.norm(self.first(tokens))))  # type: ignore[no-any-return]

    def forward(self, features: Tensor) -> Tensor:
        """Expression, N x genes, as if each spot were the only one of its slide."""
        described = self.describe(features)
        tokens = torch.cat([self.among(one[None], one) for one in described])
        return self.read(described, described, tokens)


class Layer(nn.Module):
    """Attention over the spots, then an MLP, each added and normed."""

    def __init__(self, config: HistoPrismConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, config.mlp), nn.Linear(config.mlp, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part[None], self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        starts = range(0, x.shape[0], SPOTS_AT_ONCE)
        parts = [F.scaled_dot_product_attention(q[:, :, start : start + SPOTS_AT_ONCE], k, v) for start in starts]
        read = torch.cat(parts, dim=2)
        x = self.norm1(x + self.out(join_heads(read)[0]))
        return self.norm2(x + self.fc2(F.relu(self.fc1(x))))  # type: ignore[no-any-return]


def histoprism_head(
    tensors: Mapping[str, Tensor], cancer: int | None, heads: int = HEADS
) -> tuple[HistoPrismConfig, dict[str, Tensor]]:
    """The head of HistoPrism's tensors, for slides of the cancer of a place in its list, or of none.

    Raises ValueError, in words, for a place that the list does not have, and KeyError for a tensor that is missing.
    """
    own = {name: tensor.float() for name, tensor in tensors.items()}
    embedder = own["onco_embedder.weight"]
    if cancer is not None and not 0 <= cancer < embedder.shape[1]:
        raise ValueError(f"it knows {embedder.shape[1]} cancers, and the list has more")
    embedded = own["onco_embedder.bias"] + (0 if cancer is None else embedder[:, cancer])
    value_weight = own["conditioner.attention.in_proj_weight"].chunk(3)[2]
    value = F.linear(embedded, value_weight, own["conditioner.attention.in_proj_bias"].chunk(3)[2])
    weight, bias = (own[f"conditioner.attention.out_proj.{part}"] for part in ("weight", "bias"))
    found = {"told": F.linear(value, weight, bias)}
    renamed = {
        "conditioner.norm": "told_norm", "input_proj": "embed", "gene_regression_head.0": "first",
        "gene_regression_head.1": "norm", "gene_regression_head.4": "last",
    }  # fmt: skip
    depth = len({name.split(".")[2] for name in own if name.startswith("transformer.layers.")})
    for layer in range(depth):
        there, here = f"transformer.layers.{layer}.", f"layers.{layer}."
        found |= {f"{here}qkv.{part}": own[f"{there}self_attn.in_proj_{part}"] for part in ("weight", "bias")}
        parts = {"self_attn.out_proj": "out", "linear1": "fc1", "linear2": "fc2", "norm1": "norm1", "norm2": "norm2"}
        renamed |= {f"{there}{old}": f"{here}{new}" for old, new in parts.items()}
    for old, new in renamed.items():
        found |= {f"{new}.{part}": own[f"{old}.{part}"] for part in ("weight", "bias")}
    width, mlp = own["input_proj.weight"].shape[0], own["transformer.layers.0.linear1.weight"].shape[0]
    return HistoPrismConfig(width, mlp, heads, depth), found
