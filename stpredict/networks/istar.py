"""iStar's reading of HIPT's features: a network of each superpixel, of which a spot is the mean (Zhang et al. 2024,
Nature Biotechnology 42:1372).

A superpixel is 16 px wide. Three things describe it: what HIPT's upper network, which reads the whole slide at once,
says of its tile (mean over 16 x 16 superpixels); what the lower one says of the superpixel (mean over 4 x 4); and its
mean colour. Four layers and a linear head read that. They learn from spots, each of which is the mean of its
superpixels, and can be asked for every superpixel.

Two things of the released code are options. Several states of layers and head are trained beside one another, and their
median counts. The slide is laid out in tiles several times, each time shifted, and the mean of what is said counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stpredict.networks.head import Head, Link
from stpredict.networks.hierarchy import ACROSS, Hierarchy, HierarchySizes, box_means, in_disk

#: Sides of the squares of superpixels that are averaged over, of what is said of tiles and of superpixels.
TILE_BOX, SUPERPIXEL_BOX = 16, 4
SLOPE = 0.1


@dataclass(frozen=True)
class IStarConfig(HierarchySizes):
    """Sizes of the frozen networks and of the four layers, how many states these have, and the `radius` of a spot in
    superpixels. There are `shifts` x `shifts` layouts of tiles; released iStar has 4 x 4."""

    OPTIONS: ClassVar[tuple[str, ...]] = ("hidden", "layers", "states", "shifts")

    n_genes: int = 1
    hidden: int = 256
    layers: int = 4
    states: int = 1
    shifts: int = 1
    radius: float = 6.25
    patch_px: int = 224
    link: Link = "identity"


class MedianHead(Head):
    """The median of what several states say, each reading its own part of the features; they share a bias."""

    def __init__(self, n_features: int, n_genes: int, link: Link, states: int) -> None:
        super().__init__(states * n_features, n_genes, link)
        self.states = states

    def each(self, features: Tensor) -> Tensor:
        """What each state says before the link, N x features to N x states x genes."""
        own, theirs = (x.reshape(len(x), self.states, -1) for x in (features, self.weight))
        return torch.einsum("nsf,gsf->nsg", own, theirs) + self.bias

    def linear(self, features: Tensor) -> Tensor:
        return self.each(features).median(dim=1).values


class IStar(nn.Module):
    """Expression of `n_genes` from the superpixels of a spot."""

    def __init__(self, config: IStarConfig) -> None:
        super().__init__()
        if config.radius + TILE_BOX // 2 > ACROSS:
            raise ValueError(
                f"a spot of {config.radius:g} superpixels about its centre reaches beyond the tiles about it"
            )
        if config.states < 1:
            raise ValueError("it has one state at least")
        if config.shifts < 1 or ACROSS % config.shifts:
            raise ValueError(f"shifts are 1, 2, 4, 8 or 16, as tiles have {ACROSS} superpixels along a side")
        self.config = config
        self.frozen = Hierarchy(config, None)
        widths = [self.frozen.n_superpixel] + config.layers * [config.hidden]
        self.layers = nn.ModuleList(nn.Linear(n, m) for _ in range(config.states) for n, m in pairwise(widths))
        several = config.states > 1
        self.head = (
            MedianHead(config.hidden, config.n_genes, config.link, config.states)
            if several
            else Head(config.hidden, config.n_genes, config.link)
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Patches, uint8 N x P x P x 3, to float32 N x genes, as if each spot were all that there is of its slide."""
        return self.head(self.features(patches))  # type: ignore[no-any-return]

    def features(self, patches: Tensor) -> Tensor:
        """What the head reads, N x hidden, as if each spot were all that there is of its slide."""
        return self.latent(self.spot(**self.frozen.alone(patches), radius=self.config.radius)).mean(dim=1)

    def spot(self, described: Tensor, absent: Tensor, tile_tokens: Tensor, inside: Tensor, radius: float) -> Tensor:
        """The superpixels within N spots, N x superpixels x features; `Hierarchy.superpixels` says of what.

        Where there are several layouts of tiles, what it says of one stands behind that of the other, in the second
        axis, and the mean is taken.
        """
        n_layouts = inside.shape[1] // 2
        tiles, off, tokens, where = (x.chunk(n_layouts, dim=1) for x in (described, absent, tile_tokens, inside))
        of_each = [self.in_layout(*one, radius) for one in zip(tiles, off, tokens, where, strict=True)]
        return torch.stack(of_each).mean(dim=0)

    def in_layout(
        self, described: Tensor, absent: Tensor, tile_tokens: Tensor, inside: Tensor, radius: float
    ) -> Tensor:
        """The same by one layout of tiles."""
        disk = in_disk(radius, inside.device)
        r, half, quarter = len(disk) // 2, TILE_BOX // 2, SUPERPIXEL_BOX // 2
        values = self.frozen.superpixels(described, absent, tile_tokens, inside, (r + half, r + half - 1))
        n_tokens, inner = self.config.region_width, slice(half - quarter, quarter - half)
        of_tiles = box_means(values[..., :n_tokens], TILE_BOX)
        of_superpixels = box_means(values[:, inner, inner, n_tokens:-3], SUPERPIXEL_BOX)
        colours = values[:, half : 1 - half, half : 1 - half, -3:]
        return torch.cat([of_tiles, of_superpixels, colours], dim=3)[:, disk]

    def latent(self, superpixels: Tensor) -> Tensor:
        """What the four layers make of superpixels, ... x features to ... x hidden, of one state after the other."""
        said, n_layers = [], self.config.layers
        for state in range(self.config.states):
            x = superpixels.float()
            for layer in self.layers[state * n_layers : (state + 1) * n_layers]:
                x = F.leaky_relu(layer(x), SLOPE)
            said.append(x)
        return torch.cat(said, dim=-1)

    def read_tiles(
        self, described: Tensor, absent: Tensor, tile_tokens: Tensor, inside: Tensor, radius: float
    ) -> Tensor:
        """Expression, N x genes, of N spots of a `radius` in superpixels, below 1 of one superpixel each."""
        spots = self.spot(described, absent, tile_tokens, inside, radius)
        return self.head(self.latent(spots).mean(dim=1))  # type: ignore[no-any-return]

    def cast(self, _dtype: torch.dtype) -> IStar:
        """Nothing is cast: it was tried in fp32 alone."""
        return self
