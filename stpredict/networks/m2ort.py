"""M2ORT (Wang et al. 2024, arXiv 2401.10608, "M2ORT: Many-To-One Regression Transformer for
Spatial Transcriptomics Prediction from Histopathology Images").

Three resolutions of one region go through a patch embedding each, then through encoders that mix tokens within
(or, as in the released code, across) levels and channels over all levels; a linear head reads the joined cls tokens.
Equation numbers are the paper's. The configuration has a field for each part that its ablations (tables 2 to 4, 6, 7)
leave out or exchange.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stpredict.networks.attention import join_heads, random_mask_attention, split_heads
from stpredict.networks.autocast import no_autocast
from stpredict.networks.draws import Dropout, draw
from stpredict.networks.head import Head, Link
from stpredict.networks.token_pixels import Downsample, Pixels, token_norm, token_pixels

#: By how much each level is coarser than the first.
SCALES = (1, 2, 4)

Mixing = Literal["per_level", "cross_level", "dense", "none"]
Embedding = Literal["per_level", "shared", "scales"]


@dataclass(frozen=True)
class M2ORTConfig:
    """Sizes and parts of one M2ORT. `channels` and `heads` are of one level.

    `mixing` of tokens: within each level; across levels as released; `dense`, one attention over the joined channels
    (table 3); or none (table 6). `embedding`: an embedding per level; one, `shared` by all, coarser levels being
    enlarged to the first's size; or level 0 in tokens of three `scales`, whose finer ones are averaged (table 7).
    `pool` is what the head reads: the cls token, or the mean of the others. With `sample_levels` a network of level 0
    is trained on images of all three levels, one per spot at random, enlarged (table 7). `pixels` are each token's
    normalised, as in the paper, or optical density.
    Raises ValueError for parts that do not go together.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = (
        "levels", "embedding", "mixing", "pool", "mlp_dim", "channels", "depth", "heads", "head_dim",
        "mask_probability", "dropout", "sample_levels", "pixels", "token_px",
    )  # fmt: skip

    n_genes: int
    channels: int = 192
    depth: int = 6
    heads: int = 3
    head_dim: int = 64
    mlp_dim: int | None = None  # of the channel mixing, by default 2 x channels; 0 for none (table 6)
    patch_px: int = 224
    token_px: int = 16  # of level 0; a half and a quarter of it on levels 1 and 2
    mixing: Mixing = "per_level"
    v_from: Literal["qkv3", "qkv2"] = "qkv3"  # "qkv2": the oldest released code
    mask_probability: float = 0.1  # random-mask self-attention, training only
    dropout: float = 0.0
    link: Link = "identity"
    levels: tuple[int, ...] = (0, 1, 2)
    embedding: Embedding = "per_level"
    pool: Literal["cls", "mean"] = "cls"
    sample_levels: bool = False
    pixels: Pixels = "normalised"

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))  # of a card it is a list
        if not self.levels or list(self.levels) != sorted(set(self.levels) & {0, 1, 2}):
            raise ValueError("levels are some of 0, 1 and 2, in this order")
        if self.mixing == "cross_level" and len(self.levels) < len(SCALES):
            raise ValueError("cross-level mixing takes q, k and v from a level each and needs all three")
        if self.mixing == "none" and self.pool == "cls":
            raise ValueError("without mixing of tokens the cls token meets no image and says a constant; add pool=mean")
        if self.sample_levels and self.levels != (0,) and self.embedding != "scales":
            raise ValueError("sample_levels is for networks of one image: levels=0, or embedding=scales")
        if not 0 <= self.mask_probability < 1 or not 0 <= self.dropout < 1:
            raise ValueError("mask_probability and dropout are from 0 to below 1")
        if min(self.channels, self.depth, self.heads, self.head_dim, self.token_px, 1 + (self.mlp_dim or 0)) < 1:
            raise ValueError("sizes are positive")
        patch, token = self.patch_px, self.token_px
        if patch % token or token % max(SCALES[level] for level in self.levels):
            raise ValueError(f"its tokens of {token} px do not fill patches of {patch} px on each level")

    @property
    def width(self) -> int:
        """Of the joined channels of all levels."""
        return len(self.levels) * self.channels


VARIANTS = {
    "small": {"channels": 192, "depth": 6, "heads": 3},
    "base": {"channels": 256, "depth": 8, "heads": 4},
    "large": {"channels": 384, "depth": 12, "heads": 6},
}


def keep_width(sizes: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """A variant's `sizes` with the `options` for it; with fewer levels, each level is wider (appendix E.1).

    Unless options say otherwise, joined channels, attention heads and the channel mixing's bottleneck keep their sizes.
    """
    n_levels, n_before = len(options.get("levels", SCALES)), len(SCALES)
    wider = {"mlp_dim": 2 * sizes["channels"]} if n_levels != n_before else {}
    for size in ("channels", "heads"):
        wider[size] = max(1, sizes[size] * n_before // max(n_levels, 1))
    return {**sizes, **wider, **options}


class PatchEmbedding(nn.Module):
    """Level-dependent patch embedding (eq. 4 to 6): N x 3 x H x W to N x tokens x C."""

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


class PerLevelMixing(nn.Module):
    """Intra-level token mixing (eq. 7 to 15): self-attention within each level."""

    def __init__(self, config: M2ORTConfig) -> None:
        super().__init__()
        c, inner = config.channels, config.heads * config.head_dim
        self.heads, self.mask_probability = config.heads, config.mask_probability
        self.qkv = nn.ModuleList(nn.Linear(c, 3 * inner, bias=False) for _ in config.levels)
        self.out = nn.ModuleList(nn.Linear(inner, c) for _ in config.levels)

    def forward(self, x: Tensor, queries: int) -> Tensor:
        mask_probability = self.mask_probability if self.training else 0.0
        mixed = []
        for level, qkv, out in zip(x.chunk(len(self.qkv), dim=-1), self.qkv, self.out, strict=True):
            q, k, v = (split_heads(part, self.heads) for part in qkv(level).chunk(3, dim=-1))
            mixed.append(out(join_heads(random_mask_attention(q[:, :, :queries], k, v, mask_probability))))
        return torch.cat(mixed, dim=-1)


class CrossLevelMixing(nn.Module):
    """Token mixing of the released code: one attention with q, k and v from levels 0, 1 and 2."""

    def __init__(self, config: M2ORTConfig) -> None:
        super().__init__()
        c, n_levels = config.channels, len(config.levels)
        inner = n_levels * config.heads * config.head_dim
        self.heads, self.mask_probability = n_levels * config.heads, config.mask_probability
        self.v_from = config.v_from
        self.qkv = nn.ModuleList(nn.Linear(c, inner, bias=False) for _ in config.levels)
        self.out = nn.Linear(inner, config.width)

    def forward(self, x: Tensor, queries: int) -> Tensor:
        mask_probability = self.mask_probability if self.training else 0.0
        fine, middle, coarse = x.chunk(len(self.qkv), dim=-1)
        to_q, to_k, to_v = self.qkv
        if self.v_from == "qkv2":
            to_v = to_k
        q, k, v = (split_heads(y, self.heads) for y in (to_q(fine[:, :queries]), to_k(middle), to_v(coarse)))
        return self.out(join_heads(random_mask_attention(q, k, v, mask_probability)))  # type: ignore[no-any-return]


class DenseMixing(nn.Module):
    """One self-attention over the joined channels of all levels, which table 3 has in place of the decoupled one."""

    def __init__(self, config: M2ORTConfig) -> None:
        super().__init__()
        self.heads, self.mask_probability = len(config.levels) * config.heads, config.mask_probability
        inner = self.heads * config.head_dim
        self.qkv = nn.Linear(config.width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, config.width)

    def forward(self, x: Tensor, queries: int) -> Tensor:
        mask_probability = self.mask_probability if self.training else 0.0
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        read = random_mask_attention(q[:, :, :queries], k, v, mask_probability)
        return self.out(join_heads(read))  # type: ignore[no-any-return]


MIXING = {"per_level": PerLevelMixing, "cross_level": CrossLevelMixing, "dense": DenseMixing}


class ChannelMixing(nn.Module):
    """Inter-level channel mixing (eq. 16 to 19) through a bottleneck over the joined channels of all levels."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.squeeze = nn.Linear(width, hidden)
        self.expand = nn.Linear(hidden, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.expand(self.dropout(F.gelu(self.squeeze(x)))))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Token mixing, then channel mixing, each normalised before and added to its input (eq. 20 to 23).

    Both add to the raw sequence, as those equations and the released code do; eq. 13 adds to the normalised one.
    """

    def __init__(self, config: M2ORTConfig) -> None:
        super().__init__()
        hidden = 2 * config.channels if config.mlp_dim is None else config.mlp_dim
        self.mixes_tokens, self.mixes_channels = config.mixing != "none", hidden > 0
        if self.mixes_tokens:
            self.token_norm = nn.LayerNorm(config.width)
            self.token_mixing = MIXING[config.mixing](config)
        if self.mixes_channels:
            self.channel_norm = nn.LayerNorm(config.width)
            self.channel_mixing = ChannelMixing(config.width, hidden, config.dropout)

    def forward(self, x: Tensor, queries: int) -> Tensor:
        """Encode N x tokens x width; only the first `queries` tokens are returned."""
        if self.mixes_tokens:
            x = x[:, :queries] + self.token_mixing(self.token_norm(x), queries)
        return x + self.channel_mixing(self.channel_norm(x)) if self.mixes_channels else x


class M2ORT(nn.Module):
    """Expression of `n_genes` from one square patch per spot."""

    def __init__(self, config: M2ORTConfig) -> None:
        super().__init__()
        self.config = config
        width, p = config.width, config.token_px
        tokens = (config.patch_px // p) ** 2
        self.level_1 = Downsample(2, config.patch_px)
        self.level_2 = Downsample(4, config.patch_px)
        scales = (1,) if config.embedding == "shared" else [SCALES[level] for level in config.levels]
        self.patch_embeddings = nn.ModuleList(
            PatchEmbedding(p // scale, width // scale, config.channels, config.pixels) for scale in scales
        )
        # The papers draw these from N(0, 1); 0.02 is what was seen to train well on few spots.
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.position_embedding = nn.Parameter(0.02 * torch.randn(1, tokens + 1, width))
        self.encoders = nn.ModuleList(Encoder(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.head = Head(width, config.n_genes, config.link)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches, uint8 N x P x P x 3, to float32 N x genes."""
        return self.forward_levels(*self.levels(patches))

    def forward_levels(self, *levels: Tensor) -> Tensor:
        """The images of one region that are embedded, as `levels` has them, to float32 N x genes."""
        joined = self.encode(*levels)
        with no_autocast(joined):
            # Spots differ by less than a bf16 step of their mean.
            return self.head(joined.float())  # type: ignore[no-any-return]

    def features(self, patches: Tensor) -> Tensor:
        """What the head reads, N x width."""
        return self.encode(*self.levels(patches))

    def levels(self, patches: Tensor) -> tuple[Tensor, ...]:
        """An image per embedding, pixels in 0..255: N x 3 x P x P of level 0, P/2 and P/4 of the others."""
        config, level_0 = self.config, patches.permute(0, 3, 1, 2).float()
        if self.training and config.sample_levels:
            level_0 = self.sample_level(level_0)
        if config.embedding == "scales":
            return (level_0,) * len(config.levels)
        images = tuple(self.get_submodule(f"level_{i}")(level_0) if i else level_0 for i in config.levels)
        if config.embedding == "shared":
            images = tuple(self.enlarge(x) if i else x for x, i in zip(images, config.levels, strict=True))
        return images

    def sample_level(self, level_0: Tensor) -> Tensor:
        """For each spot one of its three levels, drawn at random, in the size of level 0."""
        every = torch.stack([level_0, self.enlarge(self.level_1(level_0)), self.enlarge(self.level_2(level_0))])
        drawn = draw(lambda n: torch.randint(len(SCALES), (n,), device=level_0.device), len(level_0))
        return every[drawn, torch.arange(len(level_0), device=level_0.device)]

    def enlarge(self, image: Tensor) -> Tensor:
        return F.interpolate(image, (self.config.patch_px,) * 2, mode="bilinear")

    def embed(self, levels: Sequence[Tensor]) -> Tensor:
        """The joined tokens of all levels, N x tokens x width."""
        config = self.config
        embeddings = list(self.patch_embeddings) * (len(levels) // len(self.patch_embeddings))
        seen = (token_pixels(level, config.pixels) for level in levels)
        tokens = [embedding(level) for embedding, level in zip(embeddings, seen, strict=True)]
        if config.embedding == "scales":
            grid = config.patch_px // config.token_px
            tokens = [average_tokens(one, grid) for one in tokens]
        return torch.cat(tokens, dim=-1)

    def encode(self, *levels: Tensor) -> Tensor:
        """What the head reads of the images that are embedded: the joined cls tokens, or the mean of all others."""
        return self.finish(self.mix(levels))

    def tokens(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """What dense teaching teaches: normalised tokens, N x T x width, row by row; and what the head reads."""
        x = self.mix(self.levels(patches))
        if self.head_reads_mean:
            tokens = self.norm(self.encoders[-1](x, queries=x.shape[1])[:, 1:])
            return tokens, tokens.mean(dim=1)
        return F.layer_norm(x[:, 1:], (x.shape[2],)), self.finish(x)  # the last encoder makes no others

    @property
    def head_reads_mean(self) -> bool:
        """Does the head read the mean of the tokens, rather than the cls token?"""
        return self.config.pool == "mean"

    def mix(self, levels: Sequence[Tensor]) -> Tensor:
        """The cls token and the others before the last encoder, N x (1 + T) x width."""
        x = self.embed(levels)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1) + self.position_embedding
        for encoder in self.encoders[:-1]:
            x = encoder(x, queries=x.shape[1])
        return x

    def finish(self, x: Tensor) -> Tensor:
        """What the head reads. Where that is the cls token, the last encoder computes nothing else (exact)."""
        if self.head_reads_mean:
            return self.norm(self.encoders[-1](x, queries=x.shape[1])[:, 1:]).mean(dim=1)  # type: ignore[no-any-return]
        return self.norm(self.encoders[-1](x, queries=1)[:, 0])  # type: ignore[no-any-return]

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


def average_tokens(tokens: Tensor, grid: int) -> Tensor:
    """Tokens of a finer grid, N x (k grid)^2 x C, to their means over k x k: N x grid^2 x C."""
    n, n_tokens, channels = tokens.shape
    finer = round(n_tokens**0.5) // grid
    if finer == 1:
        return tokens
    return tokens.reshape(n, grid, finer, grid, finer, channels).mean(dim=(2, 4)).flatten(1, 2)
