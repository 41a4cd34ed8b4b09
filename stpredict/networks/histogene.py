"""HisToGene (Pang et al. 2021, bioRxiv 2021.11.28.470212).

All spots of a section are read at once: each is one token, the pixels of its patch times one matrix, to which learnt
embeddings of its column and row are added. Pre-norm blocks let the tokens read one another; a norm and a linear head
follow. Pixels are 0 to 255, as in the released code, and laid out column by column.

A token can be made of a patch before the others are known (`describe`); all of a slide's are given to `global_tokens`.
Attention over them takes memory in proportion to their number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stpredict.networks.head import Head, Link
from stpredict.networks.mixing import Block

#: Columns, and rows, that the released network knows.
POSITIONS = 64


@dataclass(frozen=True)
class HisToGeneConfig:
    """Sizes of one HisToGene; by default those of its authors' tutorial.

    Of patches of `patch_px` the middle `image_px` are looked at. Spots lie in as many columns and rows as there are
    `positions`, or in fewer; the first `learnt` of them had spots in training.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("channels", "depth", "heads", "head_dim", "mlp_dim", "dropout", "image_px")

    n_genes: int
    channels: int = 1024
    depth: int = 8
    heads: int = 16
    head_dim: int = 64
    mlp_dim: int = 2048
    dropout: float = 0.1
    image_px: int = 112
    positions: int = POSITIONS
    learnt: int = POSITIONS
    patch_px: int = 224
    link: Link = "identity"


#: The tutorial's; with the four blocks of the authors' README; and as M2ORT's authors ran it, of 224 px.
HISTOGENES: dict[str, dict[str, Any]] = {
    "histogene": {},
    "histogene-4": {"depth": 4},
    "histogene-224": {"depth": 4, "image_px": 224},
}


def middle_columns(patches: Tensor, px: int) -> Tensor:
    """The middle `px` of patches (uint8 N x P x P x 3), in fp32, 0 to 255, columns before rows: N x px x px x 3.

    Raises ValueError where patches are smaller.
    """
    left = (patches.shape[1] - px) // 2
    if left < 0:
        raise ValueError(f"it looks at {px} px, and patches have {patches.shape[1]}")
    return patches[:, left : left + px, left : left + px].transpose(1, 2).float()


class Places(nn.Module):
    """Embeddings of the column and the row that a spot lies in, added."""

    def __init__(self, positions: int, channels: int) -> None:
        super().__init__()
        self.column, self.row = nn.Embedding(positions, channels), nn.Embedding(positions, channels)

    def forward(self, tokens: Tensor, cells: Tensor) -> Tensor:
        """Tokens n x C of spots in `cells` (n x 2, row and column, of any origin) to n x C."""
        row, column = (cells - cells.min(dim=0).values).unbind(dim=1)
        return tokens.float() + self.column(column) + self.row(row)  # type: ignore[no-any-return]


class HisToGene(nn.Module):
    """Expression of `n_genes` from the patches of all spots of a slide and where they lie."""

    side = 1  # of the patches around a spot that it looks at: its own alone

    def __init__(self, config: HisToGeneConfig) -> None:
        super().__init__()
        if config.image_px > config.patch_px:
            raise ValueError(f"it looks at {config.image_px} px, more than patches of {config.patch_px} px have")
        self.config = config
        c = config.channels
        self.n_described, self.positions, self.learnt = c, config.positions, config.learnt
        self.patch_embedding = nn.Linear(3 * config.image_px**2, c)
        self.places = Places(config.positions, c)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(c, config.heads, config.mlp_dim, config.dropout, config.head_dim) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(c)
        self.head = Head(c, config.n_genes, config.link)

    def describe(self, patches: Tensor) -> Tensor:
        """A token of each patch, uint8 N x P x P x 3, wherever it lies: N x C."""
        return self.patch_embedding(middle_columns(patches, self.config.image_px).flatten(1))  # type: ignore[no-any-return]

    def global_tokens(self, features: Tensor, cells: Tensor) -> Tensor:
        """What the head reads, n x C, of all spots of a slide: their patches' tokens (n x C) and their cells.

        `cells` (n x 2, int64) are row and column of each spot in the slide's own grid.
        """
        return self.mix(self.places(features, cells)[None])[0]

    def mix(self, x: Tensor) -> Tensor:
        """Tokens of slides, N x spots x C, after they have read one another."""
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)  # type: ignore[no-any-return]

    def read_spots(self, _patches: Tensor, _neighbours: Tensor, _absent: Tensor, global_tokens: Tensor) -> Tensor:
        """Expression, N x genes, of N spots from their global tokens (N x C), which hold all that there is."""
        return self.head(global_tokens)  # type: ignore[no-any-return]

    def forward(self, patches: Tensor) -> Tensor:
        """Patches, uint8 N x P x P x 3, to float32 N x genes, as if each spot were all that there is of its slide."""
        return self.head(self.features(patches))  # type: ignore[no-any-return]

    def features(self, patches: Tensor) -> Tensor:
        """What the head reads, N x C, as if each spot were all that there is of its slide."""
        alone = torch.zeros(len(patches), 2, dtype=torch.int64, device=patches.device)
        return self.mix(self.places(self.describe(patches), alone)[:, None])[:, 0]

    def cast(self, _dtype: torch.dtype) -> HisToGene:
        """Nothing is cast: it was tried in fp32 alone."""
        return self


#: Names of the released code (maxpmx/HisToGene 44ff75b), and those here.
RELEASED = (
    (r"vit\.transformer\.layers\.(\d+)\.0\.norm\.", r"blocks.\1.norm."),
    (r"vit\.transformer\.layers\.(\d+)\.0\.fn\.to_qkv\.", r"blocks.\1.attention.qkv."),
    (r"vit\.transformer\.layers\.(\d+)\.0\.fn\.to_out\.0\.", r"blocks.\1.attention.out."),
    (r"vit\.transformer\.layers\.(\d+)\.1\.norm\.", r"blocks.\1.mlp.0."),
    (r"vit\.transformer\.layers\.(\d+)\.1\.fn\.net\.0\.", r"blocks.\1.mlp.1."),
    (r"vit\.transformer\.layers\.(\d+)\.1\.fn\.net\.3\.", r"blocks.\1.mlp.4."),
    (r"x_embed\.", "places.column."),
    (r"y_embed\.", "places.row."),
    (r"gene_head\.0\.", "norm."),
    (r"gene_head\.1\.", "head."),
)


def renamed(released: Mapping[str, Tensor], names: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """A released state dict under the names here. Queries, keys and values, which it joins, are taken apart."""
    ours: dict[str, Tensor] = {}
    for name, tensor in released.items():
        for pattern, replacement in names:
            name = re.sub(f"^{pattern}", replacement, name)
        if ".qkv." in name:
            parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            ours |= {name.replace(".qkv.", f".{part}."): rows for part, rows in parts}
        else:
            ours[name] = tensor
    return ours
