"""The head of STPath: a transformer over all spots of a slide (Huang et al. 2025, npj Digital Medicine,
10.1038/s41746-025-02020-3).

Attention between two spots is biased by how far apart they are. As published, the bias is a linear map, without
constant, of their distance and of their offset in four frames that differ in sign alone, averaged over these; so the
offsets cancel, and what is left is a number per attention head times the distance. Rows of queries are read a part at a
time, so that memory grows with the spots and not with their square.
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
#: Both coordinates of a slide's spots are scaled to run from 0 to this.
EXTENT = 100.0
#: Rows of the head before the first gene, and which of them stands for expression that is not given.
BEFORE_GENES, MASKED = 2, 1
#: Rows of the published embeddings.
TECHNOLOGIES = ("Spatial Transcriptomics", "Visium", "Xenium", "Visium HD")
ORGANS = (
    "Spinal cord", "Brain", "Breast", "Bowel", "Skin", "Heart", "Kidney", "Prostate", "Lung", "Liver", "Uterus", "Bone",
    "Muscle", "Eye", "Pancreas", "Mouth", "Ovary", "Glioma", "Glioblastoma", "Stomach", "Colon", "Others",
)  # fmt: skip
FIRST_TECHNOLOGY, FIRST_ORGAN = 1, 3
UNTOLD = 0


class STPathConfig(AttentionSizes):
    """Sizes of STPath's layers; a token is a spot."""


class STPathHead(nn.Module):
    """Expression of the spots of a slide from the features of their patches and where they lie."""

    #: Tensors with an axis of genes, and which it is: `--genes` computes no others.
    GENE_AXES: ClassVar[Mapping[str, int]] = {"last.weight": 0, "last.bias": 0}
    #: Patches along the side of what is looked at around a spot; and the features' type on disk.
    side: ClassVar[int] = 1
    at_pitch: ClassVar[bool] = False

    def __init__(self, config: STPathConfig, n_features: int, n_genes: int) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(n_features, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.last = nn.Linear(config.width, n_genes)
        self.described = config.width

    def describe(self, features: Tensor) -> Tensor:
        """What is kept of each patch, N x width, of its features."""
        return self.embed(features)  # type: ignore[no-any-return]

    def among(self, described: Tensor, places: Tensor) -> Tensor:
        """Tokens n x width of all spots of a slide, which lie at `places` (n x 2, in any unit)."""
        places = places - places.min(dim=0).values
        extent = places.max(dim=0).values
        places = EXTENT * places / torch.where(extent > 0, extent, 1.0)
        x = described
        for layer in self.layers:
            x = layer(x, places)
        return x

    def read(self, _neighbours: Tensor, _absent: Tensor, tokens: Tensor) -> Tensor:
        """Expression, N x genes, of spots by their tokens."""
        return self.last(self.norm(tokens))  # type: ignore[no-any-return]

    def forward(self, features: Tensor) -> Tensor:
        """Expression, N x genes, as if each spot were the only one of its slide."""
        described, nowhere = self.describe(features), torch.zeros(1, 2, device=features.device)
        return self.last(self.norm(torch.cat([self.among(one[None], nowhere) for one in described])))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Attention over the spots and an MLP, each added; only the first is normed before."""

    def __init__(self, config: STPathConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.by_distance = nn.Parameter(torch.zeros(config.heads))
        self.fc1, self.fc2 = nn.Linear(config.width, config.mlp), nn.Linear(config.mlp, config.width)
        self.mlp_norm = nn.LayerNorm(config.mlp)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        q, k, v = (split_heads(part[None], self.heads) for part in self.qkv(self.norm(x)).chunk(3, dim=-1))
        parts = []
        for start in range(0, len(x), SPOTS_AT_ONCE):
            rows = slice(start, start + SPOTS_AT_ONCE)
            bias = self.by_distance[:, None, None] * distances(places[rows], places)
            parts.append(F.scaled_dot_product_attention(q[:, :, rows], k, v, bias[None]))
        x = x + self.out(join_heads(torch.cat(parts, dim=2))[0])
        return x + self.fc2(self.mlp_norm(F.gelu(self.fc1(x))))  # type: ignore[no-any-return]


def distances(some: Tensor, places: Tensor) -> Tensor:
    """Of some places to all: n x m."""
    # Not torch.cdist, which loses digits of near places to a matrix product.
    return ((some[:, None, 0] - places[None, :, 0]) ** 2 + (some[:, None, 1] - places[None, :, 1]) ** 2).sqrt()


def stpath_head(
    tensors: Mapping[str, Tensor], organ: str | None, technology: str | None
) -> tuple[STPathConfig, dict[str, Tensor]]:
    """The head of STPath's tensors, for sections of an `organ` and a `technology`, which are part of every token.

    Raises ValueError, in words, for those it was not trained on, and KeyError for a tensor that is missing.
    """
    own = {name: tensor.float() for name, tensor in tensors.items()}
    told = own["input_encoder.gene_embed.weight"][:, MASKED]
    for what, row in (
        ("tech", row_of("technology", technology, TECHNOLOGIES, FIRST_TECHNOLOGY)),
        ("organ", row_of("organ", organ, ORGANS, FIRST_ORGAN)),
    ):
        told = told + own[f"input_encoder.{what}_embed.weight"][row]
    found = {
        "embed.weight": own["input_encoder.image_embed.weight"],
        "embed.bias": own["input_encoder.image_embed.bias"] + told,
        "norm.weight": own["gene_exp_head.0.weight"],
        "norm.bias": own["gene_exp_head.0.bias"],
        "last.weight": own["gene_exp_head.1.weight"][BEFORE_GENES:],
        "last.bias": own["gene_exp_head.1.bias"][BEFORE_GENES:],
    }
    renamed = {
        "attn.layernorm_qkv.0": "norm", "attn.layernorm_qkv.1": "qkv", "attn.W_output.0": "out", "mlp.fc1": "fc1",
        "mlp.norm": "mlp_norm", "mlp.fc2": "fc2",
    }  # fmt: skip
    depth = len({name.split(".")[2] for name in own if name.startswith("model.blks.")})
    for layer in range(depth):
        there, here = f"model.blks.{layer}.", f"layers.{layer}."
        for old, new in renamed.items():
            found |= {f"{here}{new}.{part}": own[f"{there}{old}.{part}"] for part in ("weight", "bias")}
        found[f"{here}by_distance"] = own[f"{there}attn.edge_bias.0.weight"][:, -1]
    heads = own["model.blks.0.attn.edge_bias.0.weight"].shape[0]
    return STPathConfig(told.shape[0], own["model.blks.0.mlp.fc1.weight"].shape[0], heads, depth), found


def row_of(what: str, name: str | None, known: tuple[str, ...], first: int) -> int:
    """The row of an embedding. Raises ValueError, in words, for a name that it has no row of."""
    if name is None:
        return UNTOLD
    found = next((i for i, one in enumerate(known) if one.lower() == name.lower()), None)
    if found is None:
        raise ValueError(f"knows no {what} {name!r}; it was trained on {', '.join(known)}")
    return first + found
