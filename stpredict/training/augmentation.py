"""Vary patches while a network is trained."""

from __future__ import annotations

import numpy as np
import torch
from skimage.color import rgb_from_hed
from torch import Tensor

from stpredict.arrays import Int, UInt8
from stpredict.networks.draws import draw
from stpredict.slides.symmetry import turn_into

#: How many patches' stains are varied at a time; a section may have thousands.
JITTERED = 128


def augment(patches: UInt8, symmetry: Int) -> UInt8:
    """Turn each patch, all its views alike, into one of the eight flips and rotations of the square, 0 to 7."""
    turned = np.empty_like(patches)
    for room, patch, code in zip(turned, patches, symmetry, strict=True):
        turn_into(room, patch, int(code))
    return turned


def jitter_stain(patches: Tensor, spread: float) -> Tensor:
    """Vary the stains of uint8 patches: each one's haematoxylin, eosin and rest are scaled at random, in all its views.

    After Tellez et al. 2018, IEEE Transactions on Medical Imaging 37:2126, with `spread` the standard deviation of
    the factors. Laboratories and scanners differ in just this, and a few sections do not show the whole range.
    """
    stains = torch.tensor(rgb_from_hed, dtype=torch.float32, device=patches.device)
    unmixing = torch.linalg.inv(stains)
    shape = (*[1] * (patches.ndim - 2), 3)
    drawn = draw(lambda n: torch.randn(n, *shape, device=patches.device), len(patches))
    factors = 1 + spread * drawn
    parts = []
    for part, by in zip(torch.split(patches, JITTERED), torch.split(factors, JITTERED), strict=True):
        density = -torch.log((part.float() + 1) / 256)
        varied = 256 * torch.exp(-(density @ unmixing * by) @ stains) - 1
        parts.append(varied.clamp(0, 255).round().to(torch.uint8))
    return torch.cat(parts)
