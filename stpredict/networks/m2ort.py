"""M2ORT (Wang et al. 2024, arXiv 2401.10608, "M2ORT: Many-To-One Regression Transformer for
Spatial Transcriptomics Prediction from Histopathology Images").

Three resolutions of one region go through a patch embedding each, then through encoders that mix tokens within
(or, as in the released code, across) levels and channels over all levels; a linear head reads the joined cls tokens.
Equation numbers are the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stpredict.networks.attention import join_heads, random_mask_attention, split_heads
from stpredict.networks.autocast import no_autocast
from stpredict.networks.head import Head, Link

N_LEVELS = 3
#: Antialiased bilinear reduction as image libraries do it: one filter per level, not two halvings.
DOWNSAMPLE_KERNELS = {2: (1, 3, 3, 1), 4: (1, 3, 5, 7, 7, 5, 3, 1)}

Mixing = Literal["per_level", "cross_level"]


@dataclass(frozen=True)
class M2ORTConfig:
    """Sizes of one M2ORT. `heads` is the number of attention heads of one level."""

    n_genes: int
    channels: int = 192
    depth: int = 6
    heads: int = 3
    head_dim: int = 64
    mlp_dim: int | None = None  # default: 2 x channels
    patch_px: int = 224
    token_px: int = 16  # of level 0; 8 and 4 on levels 1 and 2
    mixing: Mixing = "per_level"
    v_from: Literal["qkv3", "qkv2"] = "qkv3"  # "qkv2": the oldest released code
    mask_probability: float = 0.1  # random-mask self-attention, training only
    dropout: float = 0.0
    link: Link = "identity"


VARIANTS = {
    "small": {"channels": 192, "depth": 6, "heads": 3},
    "base": {"channels": 256, "depth": 8, "heads": 4},
    "large": {"channels": 384, "depth": 12, "heads": 6},
}


class Downsample(nn.Module):
    """Reduce N x 3 x H x W pixels in 0..255 by `factor`, antialiased, rounded to whole grey levels."""

    def __init__(self, factor: int, size: int) -> None:
        super().__init__()
        taps = torch.tensor(DOWNSAMPLE_KERNELS[factor], dtype=torch.float32)
        kernel = torch.outer(taps, taps)
        self.factor, self.padding = factor, (len(taps) - factor) // 2
        response = F.conv2d(torch.ones(1, 1, size, size), kernel[None, None], stride=factor, padding=self.padding)
        self.kernel: Tensor
        self.inverse_response: Tensor
        self.register_buffer("kernel", kernel.expand(3, 1, -1, -1).contiguous(), persistent=False)
        self.register_buffer("inverse_response", 1 / response, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        with no_autocast(pixels):
            summed = F.conv2d(pixels, self.kernel, stride=self.factor, padding=self.padding, groups=3)
            return torch.round(summed * self.inverse_response)


class PatchEmbedding(nn.Module):
    """Level-dependent patch embedding (eq. 4 to 6): N x 3 x H x W in 0..1 to N x tokens x C."""

    def __init__(self, token_px: int, hidden: int, channels: int) -> None:
        super().__init__()
        self.token_px = token_px
        values = 3 * token_px * token_px
        self.norm = nn.LayerNorm(values)
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


class PerLevelMixing(nn.Module):
    """Intra-level token mixing (eq. 7 to 15): self-attention within each level."""

    def __init__(self, config: M2ORTConfig) -> None:
        super().__init__()
        c, inner = config.channels, config.heads * config.head_dim
        self.heads, self.mask_probability = config.heads, config.mask_probability
        self.qkv = nn.ModuleList(nn.Linear(c, 3 * inner, bias=False) for _ in range(N_LEVELS))
        self.out = nn.ModuleList(nn.Linear(inner, c) for _ in range(N_LEVELS))

    def forward(self, x: Tensor, queries: int) -> Tensor:
        mask_probability = self.mask_probability if self.training else 0.0
        mixed = []
        for level, qkv, out in zip(x.chunk(N_LEVELS, dim=-1), self.qkv, self.out, strict=True):
            q, k, v = (split_heads(part, self.heads) for part in qkv(level).chunk(3, dim=-1))
            mixed.append(out(join_heads(random_mask_attention(q[:, :, :queries], k, v, mask_probability))))
        return torch.cat(mixed, dim=-1)


class CrossLevelMixing(nn.Module):
    """Token mixing of the released code: one attention with q, k and v from levels 0, 1 and 2."""

    def __init__(self, config: M2ORTConfig) -> None:
        super().__init__()
        c, inner = config.channels, N_LEVELS * config.heads * config.head_dim
        self.heads, self.mask_probability = N_LEVELS * config.heads, config.mask_probability
        self.v_from = config.v_from
        self.qkv = nn.ModuleList(nn.Linear(c, inner, bias=False) for _ in range(N_LEVELS))
        self.out = nn.Linear(inner, N_LEVELS * c)

    def forward(self, x: Tensor, queries: int) -> Tensor:
        mask_probability = self.mask_probability if self.training else 0.0
        fine, middle, coarse = x.chunk(N_LEVELS, dim=-1)
        to_q, to_k, to_v = self.qkv
        if self.v_from == "qkv2":
            to_v = to_k
        q, k, v = (split_heads(y, self.heads) for y in (to_q(fine[:, :queries]), to_k(middle), to_v(coarse)))
        return self.out(join_heads(random_mask_attention(q, k, v, mask_probability)))  # type: ignore[no-any-return]


class ChannelMixing(nn.Module):
    """Inter-level channel mixing (eq. 16 to 19) through a bottleneck over the joined channels of all levels."""

    def __init__(self, channels: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.squeeze = nn.Linear(N_LEVELS * channels, hidden)
        self.expand = nn.Linear(hidden, N_LEVELS * channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.expand(self.dropout(F.gelu(self.squeeze(x)))))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Token mixing, then channel mixing, each normalised before and added to its input (eq. 20 to 23).

    What is added to is the raw sequence, as there and in the released code; eq. 13 adds to the normalised one.
    """

    def __init__(self, config: M2ORTConfig) -> None:
        super().__init__()
        width = N_LEVELS * config.channels
        self.token_norm = nn.LayerNorm(width)
        self.token_mixing = PerLevelMixing(config) if config.mixing == "per_level" else CrossLevelMixing(config)
        self.channel_norm = nn.LayerNorm(width)
        self.channel_mixing = ChannelMixing(config.channels, config.mlp_dim or 2 * config.channels, config.dropout)

    def forward(self, x: Tensor, queries: int) -> Tensor:
        """Encode N x tokens x 3C; only the first `queries` tokens are returned."""
        x = x[:, :queries] + self.token_mixing(self.token_norm(x), queries)
        return x + self.channel_mixing(self.channel_norm(x))  # type: ignore[no-any-return]


class M2ORT(nn.Module):
    """Expression of `n_genes` from one square patch per spot."""

    def __init__(self, config: M2ORTConfig) -> None:
        super().__init__()
        self.config = config
        c, width, p = config.channels, N_LEVELS * config.channels, config.token_px
        tokens = (config.patch_px // p) ** 2
        self.level_1 = Downsample(2, config.patch_px)
        self.level_2 = Downsample(4, config.patch_px)
        self.patch_embeddings = nn.ModuleList(PatchEmbedding(p // scale, width // scale, c) for scale in (1, 2, 4))
        # The papers draw these from N(0, 1); 0.02 is what was seen to train well on few spots.
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.position_embedding = nn.Parameter(0.02 * torch.randn(1, tokens + 1, width))
        self.encoders = nn.ModuleList(Encoder(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.head = Head(width, config.n_genes, config.link)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches, uint8 N x P x P x 3, to float32 N x genes."""
        return self.forward_levels(*self.levels(patches))

    def forward_levels(self, level_0: Tensor, level_1: Tensor, level_2: Tensor) -> Tensor:
        """Three images of one region, N x 3 x P x P, P/2 and P/4, pixels in 0..255, to float32 N x genes."""
        joined = self.encode(level_0, level_1, level_2)
        with no_autocast(joined):
            # Spots differ by less than a bf16 step of their mean.
            return self.head(joined.float())  # type: ignore[no-any-return]

    def features(self, patches: Tensor) -> Tensor:
        """What the head reads, N x 3C."""
        return self.encode(*self.levels(patches))

    def levels(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        level_0 = patches.permute(0, 3, 1, 2).float()
        return level_0, self.level_1(level_0), self.level_2(level_0)

    def encode(self, level_0: Tensor, level_1: Tensor, level_2: Tensor) -> Tensor:
        """The joined cls tokens, N x 3C."""
        levels = [
            embed(level.float() / 255 - 1)  # LayerNorm does not see the 1, but white glass is then exactly flat to it
            for embed, level in zip(self.patch_embeddings, (level_0, level_1, level_2), strict=True)
        ]
        x = torch.cat(levels, dim=-1)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1) + self.position_embedding
        for i, encoder in enumerate(self.encoders):
            # The head reads the cls token alone, so the last encoder computes nothing else (exact).
            x = encoder(x, queries=1 if i == len(self.encoders) - 1 else x.shape[1])
        return self.norm(x[:, 0])  # type: ignore[no-any-return]

    def cast(self, dtype: torch.dtype) -> M2ORT:
        """Cast all that the tokens go through. Levels, the pixels' normalisation and the head stay in fp32."""
        for embedding in self.patch_embeddings:
            for name in ("expand", "project", "norm_out"):
                getattr(embedding, name).to(dtype)
        self.encoders.to(dtype)
        self.norm.to(dtype)
        for parameter in (self.cls_token, self.position_embedding):
            parameter.data = parameter.data.to(dtype)
        return self
