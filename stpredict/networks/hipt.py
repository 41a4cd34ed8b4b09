"""HIPT's features of a spot, read by a linear head (Chen et al. 2022, CVPR), with which M2OST's authors compare.

They are what the lower network says of the spot's tile, the mean of what it says of the superpixels within the spot,
and what the upper one says of the tile in its region of 16 x 16 tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stpredict.networks.autocast import no_autocast
from stpredict.networks.head import Head, Link
from stpredict.networks.hierarchy import REGION, SIDE, Hierarchy, HierarchySizes, in_disk

OWN = SIDE**2 // 2


@dataclass(frozen=True)
class HiptConfig(HierarchySizes):
    """Sizes of the frozen networks, and the `radius` of a spot in superpixels."""

    n_genes: int = 1
    radius: float = 6.25
    patch_px: int = 224
    link: Link = "identity"


class Hipt(nn.Module):
    """Expression of `n_genes` from frozen features of the tiles about a spot."""

    def __init__(self, config: HiptConfig) -> None:
        super().__init__()
        self.config = config
        self.frozen = Hierarchy(config, REGION)
        self.n_features = 2 * config.tile_width + config.region_width
        self.feature_mean: Tensor
        self.feature_scale: Tensor
        self.register_buffer("feature_mean", torch.zeros(self.n_features))
        self.register_buffer("feature_scale", torch.ones(self.n_features))
        self.head = Head(self.n_features, config.n_genes, config.link)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches, uint8 N x P x P x 3, to float32 N x genes, as if each spot were all that there is of its slide."""
        return self.read(self.features(patches))

    def features(self, patches: Tensor) -> Tensor:
        """What the head reads, before it is standardised, as if each spot were all that there is of its slide."""
        return self.features_of(**self.frozen.alone(patches), radius=self.config.radius)

    def features_of(
        self, described: Tensor, absent: Tensor, tile_tokens: Tensor, inside: Tensor, radius: float
    ) -> Tensor:
        """What the head reads, N x features, before it is standardised; `superpixels` says of what."""
        width, disk = self.config.tile_width, in_disk(radius, inside.device)
        reach = (len(disk) // 2, len(disk) // 2)
        within = self.frozen.superpixels(described, absent, tile_tokens, inside, reach)[:, disk]
        of_superpixels = within[:, :, -width - 3 : -3].mean(dim=1)
        return torch.cat([described[:, OWN, :width].float(), of_superpixels, tile_tokens[:, OWN].float()], dim=1)

    def read_tiles(
        self, described: Tensor, absent: Tensor, tile_tokens: Tensor, inside: Tensor, radius: float
    ) -> Tensor:
        """Expression, N x genes, of N spots of a `radius` in superpixels; `superpixels` says what the others are."""
        return self.read(self.features_of(described, absent, tile_tokens, inside, radius))

    def read(self, features: Tensor) -> Tensor:
        """What the head makes of features, N x genes, in fp32."""
        with no_autocast(features):
            return self.head((features.float() - self.feature_mean) * self.feature_scale)  # type: ignore[no-any-return]

    def cast(self, _dtype: torch.dtype) -> Hipt:
        """Nothing is cast: it was tried in fp32 alone."""
        return self
