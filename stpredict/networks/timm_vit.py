"""A Vision Transformer whose tensors have the names that timm gives them, so that published weights load.

After Dosovitskiy et al. 2021 (arXiv 2010.11929), with LayerScale (2103.17239), register tokens (2309.16588), norms of
queries and keys (2302.05442) and a gated MLP (2002.05202) where the tensors have them. Sizes are those of the tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stpredict.networks.attention import join_heads, split_heads

Tensors = Mapping[str, Tensor]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "silu": F.silu}
POOLINGS = ("token", "mean", "token_and_mean", "patches")
RESAMPLINGS = ("antialiased", "plain")


@dataclass(frozen=True)
class ViTReading:
    """How a Vision Transformer's tensors are to be read where their names and shapes do not tell."""

    heads: int
    #: What is read: the class token, the mean of the patch's tokens, both, or the patch's tokens as they are.
    pooling: Literal["token", "mean", "token_and_mean", "patches"]
    activation: Literal["gelu", "silu"]
    epsilon: float  # of its layer norms
    told_by: Literal["config.json", "assumed"]
    resampling: Literal["antialiased", "plain"] = "antialiased"  # of positions for patches of another size

    def __post_init__(self) -> None:
        named = self.activation in ACTIVATIONS and self.pooling in POOLINGS and self.resampling in RESAMPLINGS
        if not named or min(self.heads, self.epsilon) <= 0:
            raise ValueError("what it says of its encoder is not how a Vision Transformer is read")


def build_vit(tensors: Tensors, reading: ViTReading, patch_px: int) -> TimmViT:
    """The network of these tensors, in fp32, for patches of `patch_px`. A classifier (`head.*`) is left out.

    Raises ValueError, in words, for tensors of another network and for a `reading` or patches that do not fit.
    """
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}
    try:
        check_blocks(kept)
        with torch.device("meta"):
            network = TimmViT(kept, reading, patch_px)
        own = {name: tensor.float() for name, tensor in kept.items()}
        if "pos_embed" in own:
            antialiased = reading.resampling == "antialiased"
            own["pos_embed"] = resample_positions(own["pos_embed"], patch_px // network.token_px, antialiased)
        network.load_state_dict(own, assign=True)
    except KeyError as error:
        raise ValueError(f"it has no tensor {error}") from error
    except RuntimeError as error:  # torch's, of names and shapes, one a line
        raise ValueError("; ".join(line.strip() for line in str(error).splitlines()[1:3]) or str(error)) from error
    return network


def check_blocks(tensors: Tensors) -> None:
    """Raises ValueError unless blocks are numbered from 0 and each has the same tensors."""
    found: dict[int, dict[str, torch.Size]] = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"blocks\.(\d{1,4})\.(.+)", name):
            found.setdefault(int(match[1]), {})[match[2]] = tensor.shape
    if sorted(found) != list(range(len(found))) or any(block != found[0] for block in found.values()):
        raise ValueError("its blocks differ, or some are missing")


def resample_positions(embedding: Tensor, side: int, antialiased: bool = True) -> Tensor:
    """The position embedding, 1 x tokens x width, of a grid of `side` x `side`; what stands before the grid stays.

    timm resamples them antialiased; `transformers` does so for networks with registers only.
    """
    n_tokens = embedding.shape[1]
    old = math.isqrt(n_tokens)
    if old == side:
        return embedding
    prefix, grid = embedding[:, : n_tokens - old**2], embedding[:, n_tokens - old**2 :]
    as_image = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(as_image, size=(side, side), mode="bicubic", align_corners=False, antialias=antialiased)
    return torch.cat([prefix, resized.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


class TimmViT(nn.Module):
    """Features, N x width, or N x tokens x width where tokens are read, of normalised pixels, N x 3 x P x P."""

    def __init__(self, tensors: Tensors, reading: ViTReading, patch_px: int) -> None:
        super().__init__()
        width, channels, self.token_px, height = tensors["patch_embed.proj.weight"].shape
        self.n_features = 2 * width if reading.pooling == "token_and_mean" else width
        if channels != 3 or patch_px % self.token_px or height != self.token_px:
            raise ValueError(f"its tokens of {channels} x {height} x {self.token_px} do not fill RGB of {patch_px} px")
        if width % reading.heads:
            raise ValueError(f"its width of {width} does not divide into {reading.heads} heads")
        n_patches = (patch_px // self.token_px) ** 2
        self.pooling = reading.pooling
        if self.pooling in ("token", "token_and_mean") and "cls_token" not in tensors:
            raise ValueError("it has no class token to read")
        self.patch_embed = PatchEmbedding(tensors, "patch_embed.")
        self.cls_token, self.reg_token = (
            nn.Parameter(torch.empty(tensors[name].shape)) if name in tensors else None
            for name in ("cls_token", "reg_token")
        )
        self.n_prefix = sum(token.shape[1] for token in (self.cls_token, self.reg_token) if token is not None)
        self.pos_embed: nn.Parameter | None = None
        if "pos_embed" in tensors:
            n_positions = tensors["pos_embed"].shape[1]
            of_prefix = n_positions - math.isqrt(n_positions) ** 2
            if of_prefix not in (0, self.n_prefix):
                raise ValueError(f"it has {n_positions} positions, which are no square of patches")
            self.pos_embed = nn.Parameter(torch.empty(1, of_prefix + n_patches, width))
            self.prefix_has_positions = of_prefix > 0
        self.norm_pre = norm(tensors, "norm_pre", reading)
        depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
        self.blocks = nn.Sequential(*(Block(tensors, f"blocks.{i}.", reading) for i in range(depth)))
        self.norm = norm(tensors, "norm", reading)
        self.fc_norm = norm(tensors, "fc_norm", reading)

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.tokens(pixels)
        if self.pooling == "patches":
            return tokens[:, self.n_prefix :]
        pooled = [tokens[:, 0]] if self.pooling != "mean" else []
        if self.pooling != "token":
            pooled.append(tokens[:, self.n_prefix :].mean(dim=1))
        return self.fc_norm(torch.cat(pooled, dim=1))  # type: ignore[no-any-return]

    def tokens(self, pixels: Tensor, positions: Tensor | None = None) -> Tensor:
        """The same before they are pooled, N x tokens x width, the class token and registers first.

        Other `positions` than its own may be given.
        """
        x = self.patch_embed(pixels)
        prefix = [t.expand(x.shape[0], -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        if self.pos_embed is None or self.prefix_has_positions:
            x = torch.cat([*prefix, x], dim=1)
            x = x if self.pos_embed is None else x + (self.pos_embed if positions is None else positions)
        else:
            x = torch.cat([*prefix, x + self.pos_embed], dim=1)
        return self.norm(self.blocks(self.norm_pre(x)))  # type: ignore[no-any-return]


class PatchEmbedding(nn.Module):
    """Tokens, N x tokens x width, of pixels."""

    def __init__(self, tensors: Tensors, prefix: str) -> None:
        super().__init__()
        width, channels, side, _ = tensors[f"{prefix}proj.weight"].shape
        self.proj = nn.Conv2d(channels, width, side, stride=side, bias=f"{prefix}proj.bias" in tensors)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, tensors: Tensors, prefix: str, reading: ViTReading) -> None:
        super().__init__()
        self.norm1 = norm(tensors, f"{prefix}norm1", reading, required=True)
        self.attn = Attention(tensors, f"{prefix}attn.", reading)
        self.ls1 = scale(tensors, f"{prefix}ls1.gamma")
        self.norm2 = norm(tensors, f"{prefix}norm2", reading, required=True)
        self.mlp = MLP(tensors, f"{prefix}mlp.", reading)
        self.ls2 = scale(tensors, f"{prefix}ls2.gamma")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class Attention(nn.Module):
    def __init__(self, tensors: Tensors, prefix: str, reading: ViTReading) -> None:
        super().__init__()
        self.heads = reading.heads
        self.qkv = linear(tensors, f"{prefix}qkv")
        self.q_norm = norm(tensors, f"{prefix}q_norm", reading)
        self.k_norm = norm(tensors, f"{prefix}k_norm", reading)
        self.proj = linear(tensors, f"{prefix}proj")

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        read = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(join_heads(read))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """With a gate where what comes in is made twice as wide as what goes on: its first half, activated, is the gate."""

    def __init__(self, tensors: Tensors, prefix: str, reading: ViTReading) -> None:
        super().__init__()
        self.fc1 = linear(tensors, f"{prefix}fc1")
        self.norm = norm(tensors, f"{prefix}norm", reading)
        self.fc2 = linear(tensors, f"{prefix}fc2")
        self.gated = self.fc1.out_features == 2 * self.fc2.in_features
        self.activation = ACTIVATIONS[reading.activation]

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        if self.gated:
            gate, x = x.chunk(2, dim=-1)
            x = self.activation(gate) * x
        else:
            x = self.activation(x)
        return self.fc2(self.norm(x))  # type: ignore[no-any-return]


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def linear(tensors: Tensors, name: str) -> nn.Linear:
    n_out, n_in = tensors[f"{name}.weight"].shape
    return nn.Linear(n_in, n_out, bias=f"{name}.bias" in tensors)


def norm(tensors: Tensors, name: str, reading: ViTReading, required: bool = False) -> nn.Module:
    """A layer norm, or nothing where it has no tensors."""
    if f"{name}.weight" not in tensors and not required:
        return nn.Identity()
    return nn.LayerNorm(tensors[f"{name}.weight"].shape[0], reading.epsilon)


def scale(tensors: Tensors, name: str) -> nn.Module:
    """LayerScale, or nothing where it has no tensor."""
    return Scale(tensors[name].shape[0]) if name in tensors else nn.Identity()
