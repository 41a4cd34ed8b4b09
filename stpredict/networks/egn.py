"""EGN (Yang et al. 2023, WACV, arXiv 2210.16721, "Exemplar Guided Deep Neural Network for Spatial Transcriptomics
Analysis of Gene Expression Prediction").

A frozen ResNet describes the patch, and finds the measured spots that look most alike. A transformer over the patch's
tokens is bridged to those exemplars at every other layer: what they show and what was measured there gates the tokens.
Layers, their order and what is added to what are those of the authors' first released version.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from stpredict.networks.autocast import no_autocast
from stpredict.networks.bank import Bank
from stpredict.networks.head import Head, Link
from stpredict.networks.mixing import Attention
from stpredict.networks.trunks.pixels import ImageNetPixels, Pixels
from stpredict.networks.trunks.resnet import ResNet, ResNetName, make_resnet

#: Of the pixels that the transformer is shown, in 0..1.
MEAN, STD = (0.5476, 0.5218, 0.6881), (0.2461, 0.2101, 0.1649)
#: What the correlation's loss is divided by is at least this.
EPSILON = 1e-8


@dataclass(frozen=True)
class EgnConfig:
    """Sizes of one EGN, by default those of its README, and the number of spots in its `bank`.

    Without `bridge_norm` and `linear_projection` it is what TRIPLEX's authors compare with.
    Raises ValueError for sizes that cannot be.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = (
        "exemplars", "channels", "depth", "heads", "mlp_dim", "bridge_heads", "bridge_dim", "bridge_every",
        "exemplar_depth", "linear_projection", "bridge_norm", "trunk", "trunk_width",
    )  # fmt: skip

    n_genes: int
    bank: int = 0
    exemplars: int = 6
    channels: int = 1024
    depth: int = 8
    heads: int = 16
    head_dim: int = 64
    mlp_dim: int = 4096
    bridge_heads: int = 8
    bridge_dim: int = 64
    bridge_every: int = 2
    exemplar_depth: int = 2
    linear_projection: bool = True
    bridge_norm: bool = True
    trunk: ResNetName = "resnet50"
    trunk_width: int = 64
    frozen_pixels: Literal["imagenet", "half"] = "imagenet"  # half: 0.5 off, over 0.5, as in the released code
    token_px: int = 32
    patch_px: int = 224
    link: Link = "identity"

    def __post_init__(self) -> None:
        sizes = (
            self.exemplars, self.channels, self.depth, self.heads, self.head_dim, self.mlp_dim, self.bridge_heads,
            self.bridge_dim, self.bridge_every, self.exemplar_depth, self.trunk_width,
        )  # fmt: skip
        if min(sizes) < 1:
            raise ValueError("sizes are positive")
        if self.patch_px % self.token_px:
            raise ValueError(f"it takes patches of a multiple of {self.token_px} px, not of {self.patch_px}")


def make_mlp(channels: int, hidden: int) -> nn.Sequential:
    """A normalised feed-forward network."""
    return nn.Sequential(
        nn.LayerNorm(channels), nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels)
    )  # fmt: skip


class Exemplars(nn.Module):
    """The patch, the exemplars and their expression, each as `channels`."""

    def __init__(self, config: EgnConfig, n_features: int) -> None:
        super().__init__()
        c, genes = config.channels, config.n_genes
        self.embed_patch = nn.Linear(n_features, c)
        self.embed_exemplars = nn.Linear(n_features + genes, c)
        self.layers = nn.ModuleList(make_mlp(c, c) for _ in range(config.exemplar_depth))  # of both
        self.embed_expression: nn.Module = nn.Linear(genes, c)
        if not config.linear_projection:
            self.embed_expression = nn.Sequential(nn.Linear(genes, c), nn.GELU(), nn.Linear(c, c))

    def forward(self, own: Tensor, features: Tensor, expression: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the patch (N x 1 x C), of its exemplars, and of their expression (N x K x C)."""
        patch, exemplars = self.embed_patch(own), self.embed_exemplars(torch.cat([features, expression], dim=-1))
        for layer in self.layers:
            patch, exemplars = patch + layer(patch), exemplars + layer(exemplars)
        return patch, exemplars, self.embed_expression(expression)


class Bridge(nn.Module):
    """What the exemplars have to say of each token, and the tokens of the patch as a whole."""

    def __init__(self, config: EgnConfig, n_tokens: int) -> None:
        super().__init__()
        c, heads, inner = config.channels, config.bridge_heads, config.bridge_heads * config.bridge_dim
        self.heads = heads
        self.expression = nn.Linear(c, c)
        self.compare = nn.Sequential(
            nn.Linear(2 * c, 4 * config.bridge_dim), nn.SiLU(), nn.Linear(4 * config.bridge_dim, 2 * c)
        )
        self.norm = nn.LayerNorm(c) if config.bridge_norm else nn.Identity()
        self.gate = nn.Sequential(nn.LayerNorm(c), nn.Linear(c, heads * n_tokens))
        self.values = nn.Sequential(nn.LayerNorm(c), nn.Linear(c, inner))
        self.to_tokens = nn.Linear(inner, c, bias=False)
        self.to_patch = nn.Linear(inner, c, bias=False)

    def forward(
        self, tokens: Tensor, patch: Tensor, exemplars: Tensor, expression: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same three as they come: tokens (N x tokens x C), the patch (N x 1 x C), exemplars (N x K x C)."""
        n, n_tokens, _ = tokens.shape
        said = self.expression(expression)
        both = torch.cat([patch - exemplars, exemplars], dim=-1)
        to_patch, to_exemplars = torch.sigmoid(self.compare(both)).chunk(2, dim=-1)
        asked = (to_patch * said).mean(dim=1, keepdim=True) + patch
        exemplars = self.norm(to_exemplars * said + exemplars)
        gate = torch.sigmoid(self.gate(asked)).reshape(n, self.heads, n_tokens, 1)
        values = self.values(tokens).reshape(n, n_tokens, self.heads, -1).transpose(1, 2)
        gated = (values * gate).transpose(1, 2).flatten(2)
        return tokens + self.to_tokens(gated), patch + self.to_patch(gated.mean(dim=1, keepdim=True)), exemplars


class Layer(nn.Module):
    """Attention among the tokens, the bridge where there is one, then each token alone: parts that `Egn.read` runs."""

    def __init__(self, config: EgnConfig, n_tokens: int, bridged: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.channels)
        self.attention = Attention(config.channels, config.heads, 0.0, config.head_dim)
        self.bridge = Bridge(config, n_tokens) if bridged else None
        self.mlp = make_mlp(config.channels, config.mlp_dim)


class Egn(nn.Module):
    """Expression of `n_genes` from one square patch per spot and the measured spots that look most alike."""

    def __init__(self, config: EgnConfig) -> None:
        super().__init__()
        self.config = config
        c, n_tokens = config.channels, (config.patch_px // config.token_px) ** 2
        halves = 3 * (0.5,)
        self.trunk_pixels = Pixels(halves, halves) if config.frozen_pixels == "half" else ImageNetPixels()
        self.token_pixels = Pixels(MEAN, STD)
        self.frozen = make_resnet(config.trunk, config.trunk_width).requires_grad_(False)
        self.bank = Bank(config.bank, self.frozen.n_features, config.n_genes)
        self.embed_tokens = nn.Linear(3 * config.token_px**2, c)
        self.position_embedding = nn.Parameter(torch.randn(1, n_tokens, c))
        self.exemplars = Exemplars(config, self.frozen.n_features)
        bridged = ((i + 1) % config.bridge_every == 0 for i in range(config.depth))
        self.layers = nn.ModuleList(Layer(config, n_tokens, one) for one in bridged)
        self.pool = nn.Linear(c, c)
        self.norm = nn.LayerNorm(2 * c)
        self.head = Head(2 * c, config.n_genes, config.link)

    @property
    def first_trunk(self) -> ResNet:
        """The trunk that is taught, or begins with weights of the user's."""
        return self.frozen

    def forward(self, patches: Tensor) -> Tensor:
        """Patches, uint8 N x P x P x 3, to float32 N x genes."""
        features = self.features(patches)
        with no_autocast(features):
            return self.head(features.float())  # type: ignore[no-any-return]

    def features(self, patches: Tensor) -> Tensor:
        """What the head reads, N x 2C, with exemplars from the bank."""
        with no_autocast(patches):
            own = self.describe(patches)
            nearest = self.bank.nearest(own, self.config.exemplars)
        return self.read(patches, own, self.bank.keys[nearest], self.bank.expression[nearest])

    def describe(self, patches: Tensor) -> Tensor:
        """The frozen features by which spots are found, N x features, in fp32."""
        with torch.no_grad():
            return self.frozen(self.trunk_pixels(patches))  # type: ignore[no-any-return]

    def read(self, patches: Tensor, own: Tensor, features: Tensor, expression: Tensor) -> Tensor:
        """What the head reads of patches, N x 2C, given their `own` frozen features (N x features) and, of their
        exemplars, the `features` (N x K x features) and the `expression` (N x K x genes)."""
        tokens = self.embed_tokens(self.tokens(self.token_pixels(patches))) + self.position_embedding
        patch, exemplars, measured = self.exemplars(own[:, None], features, expression)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            placed = tokens + self.position_embedding
            tokens = tokens + layer.attention(layer.norm(placed), *layer.attention.remember(placed, layer.norm))
            if layer.bridge is not None:
                tokens, patch, exemplars = layer.bridge(tokens, patch, exemplars, measured)
            tokens = tokens + layer.mlp(tokens)
        pooled = self.pool(tokens)
        weighted = (pooled * torch.softmax(0.1 * pooled, dim=1)).sum(dim=1)
        return self.norm(torch.cat([pooled.mean(dim=1) + 0.5 * weighted, patch[:, 0]], dim=1))  # type: ignore[no-any-return]

    def tokens(self, pixels: Tensor) -> Tensor:
        """Normalised pixels, N x 3 x P x P, cut into tokens; within one they lie by row, column and colour."""
        n, _, side, _ = pixels.shape
        p, grid = self.config.token_px, side // self.config.token_px
        return pixels.reshape(n, 3, grid, p, grid, p).permute(0, 2, 4, 3, 5, 1).reshape(n, grid * grid, 3 * p * p)

    def fill(self, keys: Tensor, targets: Tensor) -> None:
        """Make measured spots, by their frozen features (spots x features), the bank.

        `targets` (spots x genes) is what was measured, as it is trained on.
        """
        self.bank.fill(keys, targets)
        self.config = replace(self.config, bank=len(keys))

    def cast(self, _dtype: torch.dtype) -> Egn:
        """Nothing is cast: which spots are the nearest few hangs on the last bits."""
        return self

    def train(self, mode: bool = True) -> Egn:
        """The frozen ResNet stays as it is."""
        super().train(mode)
        self.frozen.eval()
        return self


def correlation_loss(predicted: Tensor, measured: Tensor) -> Tensor:
    """1 minus the mean over genes of the correlation over a batch, N x genes each; that of a constant gene is 0."""
    predicted, measured = (x - x.mean(dim=0) for x in (predicted, measured))
    norm: Tensor = predicted.norm(dim=0) * measured.norm(dim=0)
    correlation: Tensor = (predicted * measured).sum(dim=0) / (norm + EPSILON)
    return 1 - correlation.mean()
