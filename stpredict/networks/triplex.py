"""TRIPLEX (Chung et al. 2024, CVPR, "Accurate Spatial Gene Expression Prediction by Integrating Multi-Resolution
Features").

Three views of a spot are read: the target, its patch, by a ResNet18 that is trained; the neighbours, the 5 x 5 patches
around and of it, through a frozen ResNet18; and the global view, what the frozen ResNet18 says of the patches of all
spots of the slide. The spot's global token asks the tokens of the other two; four linear heads read all three and what
comes of that. Equation numbers are the paper's.

The frozen features do not depend on what is trained, so they are made once (`describe`) and given to `read_spots`.
Attention over all spots of a slide takes memory in proportion to them, not to their square.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stpredict.networks.head import Head, Link
from stpredict.networks.trunks.pixels import ImageNetPixels
from stpredict.networks.trunks.resnet import ResNet

#: Patches along the side of the neighbourhood; the target is the middle one.
SIDE = 5
N_NEIGHBOURS = SIDE * SIDE
TARGET = N_NEIGHBOURS // 2
#: Attention weights at a time where there are very many: 256 MB in fp32.
MAX_WEIGHTS = 1 << 26
#: Spots whose tokens are widened at a time.
ROWS = 8192
#: Of the fusion loss (eq. 14), how much the fused head's prediction counts against what was measured.
ALPHA = 0.3


@dataclass(frozen=True)
class TriplexConfig:
    """Sizes of one TRIPLEX; by default those of the paper's HER2+ data. `*_mlp` are widths over `channels`."""

    n_genes: int
    channels: int = 512
    fusion_depth: int = 1
    fusion_heads: int = 4
    fusion_mlp: int = 4
    fusion_dropout: float = 0.2
    global_depth: int = 3
    global_heads: int = 16
    global_mlp: int = 4
    global_dropout: float = 0.1
    neighbour_depth: int = 3
    neighbour_heads: int = 16
    neighbour_mlp: int = 1
    neighbour_dropout: float = 0.3
    patch_px: int = 224
    trunk_width: int = 64  # of a ResNet18's first layer; its features are eight times as wide
    neighbour_norm: bool = True  # a norm after the neighbour blocks, as released; models of older versions have none
    link: Link = "identity"


#: The paper's settings for HER2+ (Andersson et al.), for breast cancer (He et al.), and for squamous cell carcinoma.
SETTINGS: dict[str, dict[str, Any]] = {
    "triplex": {},
    "triplex-bc2": {
        "fusion_depth": 3, "fusion_heads": 16, "fusion_mlp": 4, "fusion_dropout": 0.4,
        "global_depth": 3, "global_heads": 8, "global_mlp": 2, "global_dropout": 0.1,
        "neighbour_depth": 4, "neighbour_heads": 8, "neighbour_mlp": 4, "neighbour_dropout": 0.3,
    },
    "triplex-scc": {
        "fusion_depth": 2, "fusion_heads": 8, "fusion_mlp": 4, "fusion_dropout": 0.1,
        "global_depth": 2, "global_heads": 16, "global_mlp": 1, "global_dropout": 0.1,
        "neighbour_depth": 4, "neighbour_heads": 16, "neighbour_mlp": 1, "neighbour_dropout": 0.3,
    },
}  # fmt: skip


def split_heads(x: Tensor, heads: int) -> Tensor:
    """N x tokens x C to N x heads x tokens x C / heads."""
    n, tokens, channels = x.shape
    return x.reshape(n, tokens, heads, channels // heads).transpose(1, 2)


class Attention(nn.Module):
    """What queries read of a context (N x tokens x C), with a `bias` on the attention weights' logarithms."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(channels, channels, bias=False) for _ in range(3))
        self.out = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, context: Tensor, bias: Tensor | None = None) -> Tensor:
        q, k, v = (split_heads(x, self.heads) for x in (self.query(queries), self.key(context), self.value(context)))
        at_a_time = max(1, MAX_WEIGHTS // (k.shape[0] * k.shape[1] * k.shape[2]))
        if bias is not None or q.shape[2] <= at_a_time:
            read = F.scaled_dot_product_attention(q, k, v, bias)
        else:
            parts = torch.split(q, at_a_time, dim=2)
            read = torch.cat([F.scaled_dot_product_attention(part, k, v) for part in parts], dim=2)
        return self.dropout(self.out(read.transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention to a context, or to the tokens themselves, then each token alone; normalised before, added to after."""

    def __init__(self, channels: int, heads: int, mlp: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)  # of queries and context alike
        self.attention = Attention(channels, heads, dropout)
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, mlp * channels), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(mlp * channels, channels), nn.Dropout(dropout),
        )  # fmt: skip

    def forward(self, x: Tensor, context: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        normed = self.norm(x)
        x = x + self.attention(normed, normed if context is None else self.norm(context), bias)
        return torch.cat([part + self.mlp(part) for part in torch.split(x, ROWS, dim=1)], dim=1)


class PositionEncoding(nn.Module):
    """The atypical position encoding generator, APEG (section 3.3): a 3 x 3 convolution of each channel over the grid
    that the slide's spots lie on. Spots of one cell share their mean; cells without spots are zero.

    Only cells with spots are held, however far apart they lie. As in the released code the tokens are replaced.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.uniform_(self.weight, -1 / 3, 1 / 3)  # as torch's convolutions begin

    def forward(self, tokens: Tensor, cells: Tensor) -> Tensor:
        """Tokens n x C of spots in `cells` (n x 2, row and column) to n x C."""
        cells = cells - cells.min(dim=0).values + 1
        width = int(cells[:, 1].max()) + 2  # an empty column on either side keeps rows apart
        keys, cell_of = torch.unique(cells[:, 0] * width + cells[:, 1], return_inverse=True)
        count = torch.bincount(cell_of, minlength=len(keys)).to(tokens.dtype)
        held = torch.zeros(len(keys), tokens.shape[1], dtype=tokens.dtype, device=tokens.device)
        held = held.index_add(0, cell_of, tokens) / count[:, None]
        out = self.bias.expand_as(held)
        for row in range(3):
            for column in range(3):
                wanted = keys + (row - 1) * width + (column - 1)
                found = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
                there = (keys[found] == wanted).to(tokens.dtype)
                out = out + self.weight[:, row, column] * held[found] * there[:, None]
        return out[cell_of]


class Triplex(nn.Module):
    """Expression of `n_genes` from a spot's patch, its neighbours and all spots of its slide."""

    def __init__(self, config: TriplexConfig) -> None:
        super().__init__()
        self.config = config
        c, width = config.channels, 8 * config.trunk_width
        self.pixels = ImageNetPixels()
        self.frozen = ResNet(width=config.trunk_width).requires_grad_(False)
        self.trunk = ResNet(width=config.trunk_width)
        self.embed_target = nn.Linear(width, c)
        self.embed_features = nn.Identity() if c == width else nn.Linear(width, c)

        def blocks(part: str) -> nn.ModuleList:
            heads, mlp, dropout = (getattr(config, f"{part}_{size}") for size in ("heads", "mlp", "dropout"))
            if c % heads:
                raise ValueError(f"{c} channels do not divide into {heads} heads")
            return nn.ModuleList(Block(c, heads, mlp, dropout) for _ in range(getattr(config, f"{part}_depth")))

        self.neighbour_blocks, self.global_blocks, self.fusion_blocks = map(blocks, ("neighbour", "global", "fusion"))
        self.position_bias = nn.Parameter(torch.zeros(config.neighbour_depth, config.neighbour_heads, N_NEIGHBOURS))
        self.position_encoding = PositionEncoding(c)
        self.neighbour_norm = nn.LayerNorm(c) if config.neighbour_norm else nn.Identity()
        self.global_norm, self.fusion_norm = nn.LayerNorm(c), nn.LayerNorm(c)
        self.head, self.target_head, self.neighbour_head, self.global_head = (
            Head(c, config.n_genes, config.link) for _ in range(4)
        )
        places = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")).flatten(1)
        apart = (places[:, :, None] - places[:, None]).abs()
        self.distance: Tensor
        self.register_buffer("distance", apart[0] * SIDE + apart[1], persistent=False)  # 25 x 25, 0 to 24

    def describe(self, patches: Tensor) -> Tensor:
        """The frozen features of patches, uint8 N x P x P x 3: N x 8 widths, in half precision."""
        with torch.no_grad():
            return self.frozen(self.pixels(patches)).half()  # type: ignore[no-any-return]

    def target_tokens(self, patches: Tensor) -> Tensor:
        """Tokens N x (P / 32)^2 x C of spots' own patches, uint8 N x P x P x 3."""
        return self.embed_target(self.trunk.tokens(self.pixels(patches)))  # type: ignore[no-any-return]

    def global_tokens(self, features: Tensor, cells: Tensor) -> Tensor:
        """Tokens n x C of all spots of a slide from their patches' `features`, n x 8 widths.

        `cells` (n x 2, int64) are row and column of each spot in the slide's own grid.
        """
        x = self.embed_features(features.float())[None]
        for i, block in enumerate(self.global_blocks):
            x = block(x)
            if i == 0:
                x = self.position_encoding(x[0], cells)[None]
        return self.global_norm(x[0])  # type: ignore[no-any-return]

    def neighbour_tokens(self, features: Tensor, absent: Tensor) -> Tensor:
        """Tokens N x 25 x C of neighbourhoods, N x 25 x 8 widths; those `absent` (N x 25) are not attended to."""
        x = self.embed_features(features.float())
        unseen = torch.zeros(absent.shape, device=x.device).masked_fill(absent, -torch.inf)[:, None, None]
        for block, bias in zip(self.neighbour_blocks, self.position_bias, strict=True):
            x = block(x, bias=bias[:, self.distance] + unseen)
        return self.neighbour_norm(x)  # type: ignore[no-any-return]

    def forward(self, patches: Tensor) -> Tensor:
        """Patches, uint8 N x P x P x 3, to float32 N x genes, as if each spot were all that there is of its slide.

        Engines are checked by it: it runs all of the network. Slides are read by `read_spots`.
        """
        return self.head(self.features(patches))  # type: ignore[no-any-return]

    def features(self, patches: Tensor) -> Tensor:
        """What the head reads, N x C, as if each spot were all that there is of its slide."""
        described, nowhere = self.describe(patches), torch.zeros(1, 2, dtype=torch.int64, device=patches.device)
        neighbours = described.new_zeros(len(described), N_NEIGHBOURS, described.shape[1])
        neighbours[:, TARGET] = described
        absent = (torch.arange(N_NEIGHBOURS, device=patches.device) != TARGET).expand(len(described), -1)
        tokens = torch.cat([self.global_tokens(one[None], nowhere) for one in described])
        target = self.target_tokens(patches)
        return self.fuse(target, self.neighbour_tokens(neighbours, absent), absent, tokens)

    def read_spots(self, patches: Tensor, neighbours: Tensor, absent: Tensor, global_tokens: Tensor) -> Tensor:
        """Expression, N x genes, of N spots: their patches (uint8 N x P x P x 3), the frozen features of their
        neighbours (N x 25 x 8 widths), which of them lie off the slide, and their global tokens (N x C)."""
        target, neighbour = self.target_tokens(patches), self.neighbour_tokens(neighbours, absent)
        return self.head(self.fuse(target, neighbour, absent, global_tokens))  # type: ignore[no-any-return]

    def four_outputs(self, patches: Tensor, neighbours: Tensor, absent: Tensor, global_tokens: Tensor) -> list[Tensor]:
        """What the four heads say, N x genes each: of the fused token, the target, the neighbours, the global token."""
        target, neighbour = self.target_tokens(patches), self.neighbour_tokens(neighbours, absent)
        seen = (~absent)[:, :, None].to(neighbour.dtype)
        return [
            self.head(self.fuse(target, neighbour, absent, global_tokens)),
            self.target_head(target.mean(dim=1)),
            self.neighbour_head((neighbour * seen).sum(dim=1) / seen.sum(dim=1)),
            self.global_head(global_tokens),
        ]

    def fuse(self, target: Tensor, neighbours: Tensor, absent: Tensor, global_tokens: Tensor) -> Tensor:
        """The fused tokens, N x C (eq. 11 to 13): one stack of blocks, asked about the target and the neighbours."""
        unseen = torch.zeros(absent.shape, device=target.device).masked_fill(absent, -torch.inf)[:, None, None]
        of_target = of_neighbours = global_tokens[:, None]
        for block in self.fusion_blocks:
            of_target, of_neighbours = block(of_target, target), block(of_neighbours, neighbours, unseen)
        return self.fusion_norm((of_target + of_neighbours)[:, 0])  # type: ignore[no-any-return]

    def cast(self, _dtype: torch.dtype) -> Triplex:
        """Nothing is cast: it was tried in fp32 alone."""
        return self

    def train(self, mode: bool = True) -> Triplex:
        """The frozen ResNet18 stays as it is."""
        super().train(mode)
        self.frozen.eval()
        return self


def fusion_loss(
    outputs: Sequence[Tensor], loss: Callable[[Tensor], Tensor], alpha: float = ALPHA, detach: bool = True
) -> Tensor:
    """The loss of `four_outputs` (eq. 14 to 16): what each misses by `loss`, and the three others miss of the fused.

    With `detach` the three learn from the fused prediction, which does not move towards them; the released code lets
    it move, and the paper does not say.
    """
    fused, *others = outputs
    teacher = fused.detach() if detach else fused
    own = [(1 - alpha) * loss(other) + alpha * F.mse_loss(other, teacher) for other in others]
    return torch.stack([loss(fused), *own]).sum()
