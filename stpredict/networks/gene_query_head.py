"""The head of DeepSpot-M: each gene asks the tokens of a patch (Nonchev et al. 2026, medRxiv 2026.06.19.26356060).

A gene is a query made of what is known of it elsewhere, such as its embedding by a language model of proteins. Two
layers of attention over the patch's tokens and an MLP refine it, and a row of weights of its own reads it. Queries and
weights do not depend on the patch, so they are folded when the model is brought in. Genes do not see one another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stpredict.networks.attention import AttentionSizes, join_heads, split_heads

#: Genes that are computed at once, which bounds the memory of their MLP.
GENES_AT_ONCE = 512
#: Sources of what is known of a gene, by the modality that the published model has them of.
MODALITIES = {"evo2": 0, "orthrus": 1, "prott5": 2, "scgpt": 3, "apertus": 4}


class GeneQueryConfig(AttentionSizes):
    """Sizes of the layers that genes ask through; a query is as wide as a token."""


class GeneQueries(nn.Module):
    """Expression of genes from the tokens of a patch."""

    #: Tensors with an axis of genes, and which it is: `--genes` computes no others.
    GENE_AXES: ClassVar[Mapping[str, int]] = {"queries": 0, "weight": 0, "bias": 0}

    def __init__(self, config: GeneQueryConfig, n_features: int, n_genes: int) -> None:
        super().__init__()
        self.config = config
        self.patch_proj = nn.Linear(n_features, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
        self.queries = nn.Parameter(torch.randn(n_genes, config.width))
        self.weight = nn.Parameter(torch.randn(n_genes, config.width) * config.width**-0.5)
        self.bias = nn.Parameter(torch.zeros(n_genes))

    def forward(self, tokens: Tensor) -> Tensor:
        """N x tokens x features to N x genes."""
        seen = self.patch_proj(tokens)
        read = [layer.keys_and_values(seen) for layer in self.layers]  # type: ignore[operator]
        parts = []
        for start in range(0, self.queries.shape[0], GENES_AT_ONCE):
            genes = slice(start, start + GENES_AT_ONCE)
            x = self.queries[genes].expand(tokens.shape[0], -1, -1)
            for layer, (keys, values) in zip(self.layers, read, strict=True):
                x = layer(x, keys, values)
            # Not a product and its sum, behind which OpenVINO 2026 was seen to lose the bias.
            parts.append(torch.einsum("ngd,gd->ng", x, self.weight[genes]) + self.bias[genes])
        return torch.cat(parts, dim=1)


class Layer(nn.Module):
    """Attention of the genes over the patch's tokens, then an MLP, each added and normed."""

    def __init__(self, config: GeneQueryConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, config.mlp), nn.Linear(config.mlp, width)

    def keys_and_values(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        return split_heads(self.key(seen), self.heads), split_heads(self.value(seen), self.heads)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        read = F.scaled_dot_product_attention(split_heads(self.query(x), self.heads), keys, values)
        x = self.norm1(x + self.out(join_heads(read)))
        return self.norm2(x + self.fc2(F.gelu(self.fc1(x))))  # type: ignore[no-any-return]


def fold_decoder(tensors: Mapping[str, Tensor], source: str, heads: int) -> tuple[GeneQueryConfig, dict[str, Tensor]]:
    """The head of DeepSpot-M's tensors (`gene_decoder.*`), with the genes' queries and weights of one `source` folded.

    Raises ValueError, in words, for a source that it does not have, and KeyError for a tensor that is missing.
    """
    own = {name.removeprefix("gene_decoder."): x.float() for name, x in tensors.items() if name.startswith("gene_deco")}
    banks = sorted(name.removeprefix("multi_source.bio_") for name in own if name.startswith("multi_source.bio_"))
    if source not in banks:
        raise ValueError(f"it knows genes by {', '.join(banks) or 'no source'}, not by {source}")
    known = own[f"multi_source.bio_{source}"]
    queries = F.layer_norm(
        affine(own, f"multi_source.adapters.{source}.0", known),
        own[f"multi_source.adapters.{source}.1.weight"].shape,
        own[f"multi_source.adapters.{source}.1.weight"],
        own[f"multi_source.adapters.{source}.1.bias"],
    )
    if "multi_source.modality_emb" in own:
        if source not in MODALITIES:
            raise ValueError(f"the modality of its source {source} is not known")
        queries = queries + own["multi_source.modality_emb"][MODALITIES[source]]
    weight, bias = (
        affine(own, f"routers.{source}.{net}.2", F.gelu(affine(own, f"routers.{source}.{net}.0", known)))
        for net in ("weight_net", "bias_net")
    )
    folded = {"queries": queries, "weight": weight, "bias": bias[:, 0]}
    folded |= {f"patch_proj.{part}": own[f"patch_proj.{part}"] for part in ("weight", "bias")}
    depth = len({name.split(".")[1] for name in own if name.startswith("layers.")})
    for layer in range(depth):
        folded |= attention_layer(own, f"layers.{layer}.")
    return GeneQueryConfig(queries.shape[1], own["layers.0.ffn.0.weight"].shape[0], heads, depth), folded


def attention_layer(own: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """One layer's tensors under the names here; queries, keys and values are one tensor there."""
    found: dict[str, Tensor] = {}
    for part in ("weight", "bias"):
        joined = own[f"{prefix}cross_attn.in_proj_{part}"].chunk(3)
        found |= {f"{prefix}{name}.{part}": x for name, x in zip(("query", "key", "value"), joined, strict=True)}
        renamed = {"cross_attn.out_proj": "out", "norm1": "norm1", "norm2": "norm2", "ffn.0": "fc1", "ffn.3": "fc2"}
        found |= {f"{prefix}{new}.{part}": own[f"{prefix}{old}.{part}"] for old, new in renamed.items()}
    return found


def affine(own: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, own[f"{name}.weight"], own[f"{name}.bias"])
