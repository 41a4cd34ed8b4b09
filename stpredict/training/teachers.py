"""Teachers of tokens: what a dictionary, or an encoder of the user's, sees in each square of a patch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stpredict.arrays import Int
from stpredict.console import Report
from stpredict.data.tiles import Tiles
from stpredict.errors import ModelFileError
from stpredict.networks.dictionary import Dictionary, DictionaryConfig
from stpredict.networks.encoder import Encoded
from stpredict.slides.views import own_views

#: How many patches a teacher sees at a time.
BATCH = 16
#: Values of a lesson, at most; and how many patches tell in which directions an encoder's channels vary most.
MOST_VALUES, N_PATCHES = DictionaryConfig.centres, 300
#: A variance below this part of the mean square is that of rounding.
ROUNDING = 1e-10


class Teacher(Protocol):
    """It gives a lesson of so many `values` for each square of a patch."""

    @property
    def network(self) -> nn.Module: ...

    @property
    def values(self) -> int: ...

    def lessons(self, patches: Tensor, side: int) -> Tensor:
        """Of patches, uint8 N x P x P x 3: N x side x side x values."""


@dataclass(frozen=True)
class DictionaryTeacher:
    """A lesson is how near a square's windows are to the dictionary's centres."""

    network: Dictionary

    @property
    def values(self) -> int:
        return self.network.config.centres

    def lessons(self, patches: Tensor, side: int) -> Tensor:
        return token_means(self.network, patches, side)


def token_means(teacher: Dictionary, patches: Tensor, side: int) -> Tensor:
    """How near the windows in each of `side` x `side` squares of patches are to the centres, N x side x side x centres.

    A window belongs to the square in which its middle lies.
    """
    config = teacher.config
    near = teacher.nearness(patches)
    per_row = round(near.shape[2] ** 0.5)
    middle = torch.arange(per_row, device=near.device) * config.stride_px + config.window_px / 2
    square = (middle * side / config.patch_px).long().clamp(max=side - 1)
    member = F.one_hot(square, side).float().T
    member = member / member.sum(dim=1, keepdim=True)
    return torch.einsum("ay,nkyx,bx->nabk", member, near.reshape(*near.shape[:2], per_row, per_row), member)


@dataclass(frozen=True)
class EncoderTeacher:
    """A lesson is what an encoder sees in a square: its channels there, or the principal directions of many channels.

    `network` gives maps, N x channels x h x h. The directions are those of a few hundred of the unlabelled `places`,
    drawn by the `seed`.
    """

    network: Encoded
    tiles: Tiles
    places: Int
    seed: int
    report: Report

    @property
    def values(self) -> int:
        return min(self.network.config.n_features, MOST_VALUES)

    def lessons(self, patches: Tensor, side: int) -> Tensor:
        mean, directions = (each.to(patches.device) for each in self.projection)
        squares = resampled(self.maps(patches), side).permute(0, 2, 3, 1)
        return (squares - mean) @ directions

    def maps(self, patches: Tensor) -> Tensor:
        """N x channels x h x h. Some exported programs do not take a lone patch."""
        return self.network.features(patches if len(patches) > 1 else patches.repeat(2, 1, 1, 1))[
            : len(patches)
        ].float()

    @cached_property
    def projection(self) -> tuple[Tensor, Tensor]:
        """The channels' mean, and what makes lessons of their deviation from it: channels x values.

        It keeps lessons within half precision, whatever the encoder's scale. Raises ModelFileError for an encoder that
        sees the same everywhere, or values that are not finite.
        """
        file, channels = self.network.config.file, self.network.config.n_features
        rng = np.random.default_rng(self.seed)
        chosen = np.sort(rng.choice(self.places, min(N_PATCHES, len(self.places)), replace=False))
        self.report(f"{file}: lessons of {self.values} values on {len(self.places)} unlabelled patches")
        device = self.network.pixel_mean.device
        n, total, products = 0, torch.zeros(channels).double(), torch.zeros(channels, channels).double()
        for start in range(0, len(chosen), BATCH):
            read = self.tiles.read_patches(chosen[start : start + BATCH], unlabelled=True)
            patches = torch.from_numpy(own_views(read, self.tiles.views)).to(device)
            tokens = self.maps(patches).transpose(0, 1).flatten(1).cpu().double()
            n, total, products = n + tokens.shape[1], total + tokens.sum(dim=1), products + tokens @ tokens.T
        mean = total / n
        covariance = products / n - torch.outer(mean, mean)
        varies = float(covariance.trace()) > ROUNDING * float(products.trace()) / n
        if not bool(torch.isfinite(covariance).all()) or not varies:
            raise ModelFileError(f"{file}: cannot teach; what it sees is the same everywhere, or not finite.")
        if channels > self.values:
            variances, vectors = torch.linalg.eigh(covariance)
            largest = float(variances[-1])
            directions = vectors[:, -self.values :].flip(1)
        else:
            largest = float(covariance.diagonal().max())
            directions = torch.eye(channels).double()
        return mean.float(), (directions / largest**0.5).float()


def resampled(maps: Tensor, side: int) -> Tensor:
    """Maps N x C x h x h as N x C x side x side: means over squares of finer maps, coarser ones interpolated."""
    if maps.shape[2] >= side:
        return F.adaptive_avg_pool2d(maps, side)
    return F.interpolate(maps, size=(side, side), mode="bilinear", align_corners=False)
