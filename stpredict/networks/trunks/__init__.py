"""Trunks: what networks of patches begin with, a file per kind, their tensors named as torchvision names them.

Each takes normalised pixels, N x 3 x P x P, and gives features, N x `n_features`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from stpredict.networks.trunks.crossvit import two_branches
from stpredict.networks.trunks.densenet import DenseNet
from stpredict.networks.trunks.resnet import Bottleneck, ResNet
from stpredict.networks.trunks.vgg import VGG
from stpredict.networks.trunks.vit import random_vit

#: From width, depths and the patch's side in pixels to a trunk. What width and depths are, each says itself.
TRUNKS: dict[str, Callable[[int, Sequence[int], int], nn.Module]] = {
    "densenet": lambda width, depths, _patch_px: DenseNet(width, depths),
    "resnet": lambda width, depths, _patch_px: ResNet(Bottleneck, depths, width),
    "vgg": lambda width, depths, _patch_px: VGG(width, depths),
    "vit": random_vit,
    "crossvit": two_branches,
}
