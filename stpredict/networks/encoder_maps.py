"""What an encoder sees in each square of a patch: its map, or its tokens, where others read one vector per patch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from stpredict.errors import ModelFileError, first_line
from stpredict.networks.trunks.densenet import DenseNet
from stpredict.networks.trunks.resnet import ResNet
from stpredict.networks.trunks.swin import Swin

#: Networks here that give the mean of a map.
HasMaps = ResNet | DenseNet | Swin
#: Of two numbers of patches, so that no size of the map is taken for that of the batch.
BATCHES = (2, 3)


class Maps(nn.Module):
    """An encoder's map, N x C x side x side, of normalised pixels, N x 3 x P x P."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> Tensor:
        return as_map(self.encoder.maps(pixels) if isinstance(self.encoder, HasMaps) else self.encoder(pixels))


def as_map(seen: Tensor) -> Tensor:
    """A map N x C x side x side from a map or from tokens, N x T x C, of which the first may be a class token.

    T is a square, or one more: then there is a class token, as no two squares are neighbours but 0 and 1.
    Raises ValueError, in words, for all that is no square map, and for a map of one square.
    """
    if not isinstance(seen, Tensor) or seen.ndim not in (3, 4):
        shape = tuple(seen.shape) if isinstance(seen, Tensor) else type(seen).__name__
        raise ValueError(f"it gives {shape}, which is no map of a patch")
    if seen.ndim == 3:
        side = math.isqrt(seen.shape[1])
        if seen.shape[1] - side**2 not in (0, 1):
            raise ValueError(f"its {seen.shape[1]} tokens are no square, nor a class token before one")
        seen = seen[:, seen.shape[1] - side**2 :].transpose(1, 2).reshape(len(seen), -1, side, side)
    if seen.shape[2] != seen.shape[3] or seen.shape[2] < 2:
        raise ValueError(f"its map of {seen.shape[2]} x {seen.shape[3]} is not of several squares")
    return seen


def count_channels(maps: Maps, patch_px: int, name: str) -> int:
    """How many numbers a teacher gives of each square. Raises ModelFileError, with what is needed, if it gives none."""
    try:
        with torch.inference_mode():
            shapes = {n: tuple(maps(torch.zeros(n, 3, patch_px, patch_px)).shape) for n in BATCHES}
        if any(n != shape[0] for n, shape in shapes.items()) or len({shape[1:] for shape in shapes.values()}) != 1:
            raise ValueError(f"it gives {list(shapes.values())} of 2 and 3 patches")
    except Exception as error:  # whatever the encoder raises
        raise ModelFileError(
            f"{name}: cannot teach tokens of patches of {patch_px} px ({first_line(error)}); a teacher gives a map, "
            "N x channels x side x side, or tokens, N x side^2 x channels, with or without a class token before them."
        ) from error
    return int(shapes[BATCHES[0]][1])
