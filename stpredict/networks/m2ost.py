"""M2OST (Wang et al. 2025, AAAI, arXiv 2409.15092, "M2OST: Many-to-one Regression for Predicting Spatial
Transcriptomics from Digital Pathology Images").

Three views of a spot, of 1, 2 and 4 times the field, are cut into tokens, the wider ones also finely about their
centre. Encoders mix the tokens within each level, then with those of the other two levels, then the channels of all;
a linear head reads the three cls tokens. Parts and their order are those of the released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stpredict.networks.attention import join_heads, random_mask_attention, split_heads
from stpredict.networks.autocast import no_autocast
from stpredict.networks.head import Head, Link
from stpredict.networks.token_pixels import Pixels, token_norm, token_pixels

VIEWS = (1, 2, 4)
N_LEVELS = len(VIEWS)


@dataclass(frozen=True)
class M2OSTConfig:
    """Sizes of one M2OST. `heads` is the number of attention heads within a level."""

    n_genes: int
    views: Sequence[int]  # VIEWS; a card says it for those who cut the patches
    channels: int = 192
    depth: int = 4
    heads: int = 3
    head_dim: int = 64
    cross_heads: int = 3
    patch_px: int = 224
    token_px: int = 16
    mask_probability: float = 0.1  # random-mask self-attention, training only
    link: Link = "identity"
    pixels: Pixels = "normalised"


class PatchEmbedding(nn.Module):
    """N x 3 x H x W to N x tokens x C."""

    def __init__(self, token_px: int, hidden: int, channels: int, pixels: Pixels) -> None:
        super().__init__()
        self.token_px = token_px
        values = 3 * token_px * token_px
        self.norm = token_norm(values, pixels)
        self.expand = nn.Linear(values, hidden)
        self.project = nn.Linear(hidden, channels)
        self.norm_out = nn.LayerNorm(channels)

    def forward(self, pixels: Tensor) -> Tensor:
        n, _, height, width = pixels.shape
        p = self.token_px
        tokens = pixels.reshape(n, 3, height // p, p, width // p, p).permute(0, 2, 4, 3, 5, 1)
        tokens = tokens.reshape(n, (height // p) * (width // p), 3 * p * p)  # within a token: row, column, colour
        normalised = self.norm(tokens).to(self.expand.weight.dtype)  # pixels are normalised in fp32 at any precision
        return self.norm_out(self.project(F.gelu(self.expand(normalised))))  # type: ignore[no-any-return]


def centre(image: Tensor, part: int) -> Tensor:
    """The middle square of N x 3 x H x H, a `part`-th as wide."""
    side = image.shape[-1] // part
    first = (image.shape[-1] - side) // 2
    return image[..., first : first + side, first : first + side]


class TokenMixing(nn.Module):
    """Self-attention within each level, added to its input. Nothing is normalised before it."""

    def __init__(self, config: M2OSTConfig) -> None:
        super().__init__()
        c, inner = config.channels, config.heads * config.head_dim
        self.heads, self.mask_probability = config.heads, config.mask_probability
        self.qkv = nn.ModuleList(nn.Linear(c, 3 * inner, bias=False) for _ in range(N_LEVELS))
        self.out = nn.ModuleList(nn.Linear(inner, c) for _ in range(N_LEVELS))

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        mask_probability = self.mask_probability if self.training else 0.0
        mixed = []
        for x, to_qkv, out in zip(levels, self.qkv, self.out, strict=True):
            q, k, v = (split_heads(part, self.heads) for part in to_qkv(x).chunk(3, dim=-1))
            mixed.append(x + out(join_heads(random_mask_attention(q, k, v, mask_probability))))
        return mixed


class LevelMLP(nn.Module):
    """A bottleneck over the channels of each token, the same for all levels, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.squeeze = nn.Linear(channels, 2 * channels // 3)
        self.expand = nn.Linear(2 * channels // 3, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.gelu(self.expand(F.gelu(self.squeeze(self.norm(x)))))


class CrossLevelMixing(nn.Module):
    """Each level attends to each of the other two; what it finds there takes the place of its tokens.

    Keys are masked at random here too; the article masks within levels alone, the released code nowhere.
    """

    def __init__(self, config: M2OSTConfig) -> None:
        super().__init__()
        c, inner = config.channels, config.cross_heads * config.head_dim
        self.heads, self.mask_probability = config.cross_heads, config.mask_probability
        self.norm = nn.LayerNorm(c)
        self.q, self.k, self.v = (
            nn.ModuleList(nn.Linear(c, inner, bias=False) for _ in range(N_LEVELS)) for _ in range(3)
        )
        self.out = nn.ModuleList(nn.Linear((N_LEVELS - 1) * inner, c) for _ in range(N_LEVELS))

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        mask_probability = self.mask_probability if self.training else 0.0
        normalised = [self.norm(x) for x in levels]
        queries, keys, values = (
            [split_heads(project(x), self.heads) for project, x in zip(projections, normalised, strict=True)]
            for projections in (self.q, self.k, self.v)
        )
        mixed = []
        for own, out in enumerate(self.out):
            found = [
                join_heads(random_mask_attention(queries[own], keys[other], values[other], mask_probability))
                for other in range(N_LEVELS)
                if other != own
            ]
            mixed.append(out(torch.cat(found, dim=-1)))
        return mixed


class ChannelMixing(nn.Module):
    """Channels of all levels are weighed by what their means over the tokens say (squeeze and excitation)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(N_LEVELS * channels)
        self.squeeze = nn.Linear(N_LEVELS * channels, 2 * channels)
        self.expand = nn.Linear(2 * channels, N_LEVELS * channels)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        means = torch.cat([x.mean(dim=1) for x in levels], dim=-1)
        weight = torch.sigmoid(self.expand(F.gelu(self.squeeze(self.norm(means)))))
        return [x * part[:, None] + x for x, part in zip(levels, weight.chunk(N_LEVELS, dim=-1), strict=True)]


class Encoder(nn.Module):
    """Tokens within levels, channels of each token, tokens across levels, channels across levels."""

    def __init__(self, config: M2OSTConfig) -> None:
        super().__init__()
        c = config.channels
        # The released code has it and never calls it, so that released checkpoints hold it.
        self.unused_norm = nn.LayerNorm(N_LEVELS * c).requires_grad_(False)
        self.token_mixing = TokenMixing(config)
        self.level_mlp = LevelMLP(c)
        self.cross_level_mixing = CrossLevelMixing(config)
        self.channel_mixing = ChannelMixing(c)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        levels = [self.level_mlp(x) for x in self.token_mixing(levels)]
        return self.channel_mixing(self.cross_level_mixing(levels))  # type: ignore[no-any-return]


class M2OST(nn.Module):
    """Expression of `n_genes` from three views of each spot."""

    head_reads_mean = False

    def __init__(self, config: M2OSTConfig) -> None:
        super().__init__()
        if tuple(config.views) != VIEWS or config.patch_px % config.token_px or config.token_px % max(VIEWS):
            raise ValueError("M2OST looks at views of 1, 2 and 4 times the field, which its tokens fill")
        self.config = config
        c, p = config.channels, config.token_px
        tokens = (config.patch_px // p) ** 2
        self.patch_embeddings = nn.ModuleList(
            PatchEmbedding(p // part, N_LEVELS * c // part, c, config.pixels) for part in (1, 2, 4)
        )
        # The papers draw these from N(0, 1); 0.02 is what was seen to train well on few spots.
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, c))
        self.position_embeddings = nn.ParameterList(
            0.02 * torch.randn(1, n * tokens + 1, c) for n in range(1, N_LEVELS + 1)
        )
        self.encoders = nn.ModuleList(Encoder(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(c)
        self.head = Head(N_LEVELS * c, config.n_genes, config.link)

    def forward(self, patches: Tensor) -> Tensor:
        """Views, uint8 N x 3 x P x P x 3, to float32 N x genes."""
        joined = self.features(patches)
        with no_autocast(joined):
            # Spots differ by less than a bf16 step of their mean.
            return self.head(joined.float())  # type: ignore[no-any-return]

    def features(self, patches: Tensor) -> Tensor:
        """What the head reads, N x 3C."""
        return self.join(self.mix(patches))

    def tokens(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """What dense teaching teaches: the tokens of the first view's squares, N x T x 3C; and what the head reads.

        Each level cuts that view into as many squares, and has their tokens first.
        """
        levels = self.mix(patches)
        count = levels[0].shape[1]
        tokens = torch.cat([x[:, 1:count] for x in levels], dim=-1)
        return F.layer_norm(tokens, (tokens.shape[2],)), self.join(levels)

    def mix(self, patches: Tensor) -> list[Tensor]:
        """Each level's cls token and tokens, N x (1 + tokens) x C, after all encoders."""
        views = token_pixels(patches.permute(1, 0, 4, 2, 3), self.config.pixels)
        levels = [
            torch.cat([self.cls_token.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1) + position
            for x, position in zip(self.embed(views), self.position_embeddings, strict=True)
        ]
        for encoder in self.encoders:
            levels = encoder(levels)
        return levels

    def join(self, levels: list[Tensor]) -> Tensor:
        """The joined cls tokens, N x 3C."""
        return torch.cat([self.norm(x[:, 0]) for x in levels], dim=-1)

    def embed(self, views: Tensor) -> list[Tensor]:
        """Views, 3 x N x 3 x P x P, to the levels' tokens, N x tokens x C, by embeddings that the levels share.

        Deformable patch embedding: the wider the view, the more of its tokens are fine and lie about its centre.
        """
        whole, half, quarter = self.patch_embeddings
        first, second, third = (views[i] for i in range(N_LEVELS))
        return [
            whole(first),
            torch.cat([half(centre(second, 2)), whole(second)], dim=1),
            torch.cat([quarter(centre(third, 4)), half(centre(third, 2)), whole(third)], dim=1),
        ]

    def cast(self, dtype: torch.dtype) -> M2OST:
        """Cast all that the tokens go through. The pixels' normalisation and the head stay in fp32."""
        for embedding in self.patch_embeddings:
            for name in ("expand", "project", "norm_out"):
                getattr(embedding, name).to(dtype)
        for module in (self.encoders, self.norm, self.position_embeddings):
            module.to(dtype)
        self.cls_token.data = self.cls_token.data.to(dtype)
        return self
