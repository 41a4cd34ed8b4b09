"""A dictionary of image windows, read by a linear head (Coates, Lee and Ng 2011, AISTATS, "An Analysis of Single-Layer
Networks in Unsupervised Feature Learning").

Small windows of optical density are whitened and compared with centres that k-means found in unlabelled tissue. A patch
is described by how much nearer than average its windows are to each centre: mean and spread over the patch, and mean
within the spot. Distances to the centres differ by less than lower precisions can tell, so everything runs in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stpredict.networks.autocast import no_autocast
from stpredict.networks.head import Head, Link

POOLINGS = 3


@dataclass(frozen=True)
class DictionaryConfig:
    """Sizes of one dictionary. `components` are those kept of a whitened window, `spot_px` the spot's diameter."""

    n_genes: int
    spot_px: float
    components: int
    centres: int = 200
    window_px: int = 8
    stride_px: int = 3
    patch_px: int = 224
    link: Link = "identity"


def optical_density(patches: Tensor) -> Tensor:
    """Patches, uint8 N x P x P x 3, to natural optical density N x 3 x P x P."""
    return -torch.log((patches.permute(0, 3, 1, 2).float() + 1) / 256)


class Dictionary(nn.Module):
    """Expression of `n_genes` from one square patch per spot."""

    def __init__(self, config: DictionaryConfig) -> None:
        super().__init__()
        self.config = config
        k, c, window = config.centres, config.components, config.window_px
        n_features = POOLINGS * k
        self.centres: Tensor
        self.feature_mean: Tensor
        self.feature_scale: Tensor
        self.in_spot: Tensor
        self.whiten = nn.Conv2d(3, c, window, stride=config.stride_px)
        self.register_buffer("centres", torch.randn(k, c))
        self.register_buffer("feature_mean", torch.zeros(n_features))
        self.register_buffer("feature_scale", torch.ones(n_features))
        self.head = Head(n_features, config.n_genes, config.link)
        side = (config.patch_px - window) // config.stride_px + 1
        from_centre = (torch.arange(side) + 0.5) / side - 0.5
        radius = config.spot_px / config.patch_px / 2
        in_spot = (from_centre[:, None] ** 2 + from_centre**2 < radius**2).flatten()
        self.register_buffer("in_spot", in_spot / in_spot.sum().clamp(min=1), persistent=False)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches, uint8 N x P x P x 3, to float32 N x genes."""
        with no_autocast(patches):
            return self.read(self.features(patches))

    def read(self, features: Tensor) -> Tensor:
        """What the head makes of features, N x genes."""
        return self.head((features - self.feature_mean) * self.feature_scale)  # type: ignore[no-any-return]

    def features(self, patches: Tensor) -> Tensor:
        """What the head reads, before it is standardised: N x 3 centres."""
        near = self.nearness(patches)
        return torch.cat([near.mean(2), near.std(2), near @ self.in_spot], dim=1)

    def nearness(self, patches: Tensor) -> Tensor:
        """How much nearer than average each window is to each centre: N x centres x windows, row by row."""
        windows = self.whiten(optical_density(patches)).flatten(2)  # N x components x windows
        squares = (windows**2).sum(1, keepdim=True) + (self.centres**2).sum(1)[:, None]
        distance = (squares - 2 * (self.centres @ windows)).clamp(min=0).sqrt()  # N x centres x windows
        return (distance.mean(1, keepdim=True) - distance).clamp(min=0)  # type: ignore[no-any-return]

    def cast(self, _dtype: torch.dtype) -> Dictionary:
        """Nothing is cast: lower precisions cannot tell the distances apart."""
        return self
