"""Pixels as the trunks take them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Pixels(nn.Module):
    """Patches, uint8 N x P x P x 3, to N x 3 x P x P over 255, less a mean, over a deviation. No tensors."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, patches: Tensor) -> Tensor:
        # With channels last, torch 2.13 was seen to break its memory in narrow trunks' gradients on a CPU.
        return (patches.permute(0, 3, 1, 2).float().contiguous() / 255 - self.mean) / self.std


class ImageNetPixels(Pixels):
    """Those of ImageNet."""

    def __init__(self) -> None:
        super().__init__(IMAGENET_MEAN, IMAGENET_STD)
