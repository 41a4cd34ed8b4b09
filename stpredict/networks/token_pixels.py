"""What a patch embedding sees: a coarser level, and of its pixels each token's normalised or their optical density.

The papers normalise the pixels of a token before anything reads them (LayerNorm). That hides how densely the tissue is
stained there, which carries over to other patients better than anything else does that a patch shows.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stpredict.networks.autocast import no_autocast

#: Antialiased bilinear reduction as image libraries do it: one filter per level, not two halvings.
DOWNSAMPLE_KERNELS = {2: (1, 3, 3, 1), 4: (1, 3, 5, 7, 7, 5, 3, 1)}
Pixels = Literal["normalised", "density"]
#: Optical density of tissue stained with H&E, roughly: its mean, and one over its spread.
DENSITY_MEAN, DENSITY_SCALE = 0.35, 3.0


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


def token_pixels(pixels: Tensor, how: Pixels) -> Tensor:
    """Pixels in 0..255 as float32: their difference from white, or optical density of mean 0 and spread 1, about."""
    if how == "density":
        return DENSITY_SCALE * (-torch.log((pixels.float() + 1) / 256) - DENSITY_MEAN)
    return pixels.float() / 255 - 1  # LayerNorm does not see the 1, but white glass is then exactly flat to it


def token_norm(values: int, how: Pixels) -> nn.Module:
    """What normalises the values of one token."""
    return nn.LayerNorm(values) if how == "normalised" else nn.Identity()
