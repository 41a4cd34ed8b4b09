"""DenseNet (Huang et al. 2017, CVPR, "Densely Connected Convolutional Networks"), without its classifier.

Each layer's output is put behind its input, so that later layers read all earlier ones. Tensors have torchvision's
names.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Layers of each block of DenseNet121, whose growth is 32.
DENSENET121 = (6, 12, 24, 16)
#: Channels of a layer's 1 x 1 convolution, over its growth.
BOTTLENECK = 4


class DenseLayer(nn.Module):
    """BN, ReLU, 1 x 1, BN, ReLU, 3 x 3: `growth` channels, put behind the input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, BOTTLENECK * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(BOTTLENECK * growth)
        self.conv2 = nn.Conv2d(BOTTLENECK * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return torch.cat([x, new], dim=1)


class Transition(nn.Module):
    """Half the channels, and the means of 2 x 2 places."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, inputs // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


class DenseNet(nn.Module):
    """A block of `depths` layers each, which add `growth` channels; the stem has twice as many."""

    def __init__(self, growth: int = 32, depths: Sequence[int] = DENSENET121) -> None:
        super().__init__()
        channels = 2 * growth
        parts: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=nn.Conv2d(3, channels, 7, 2, 3, bias=False), norm0=nn.BatchNorm2d(channels), relu0=nn.ReLU(),
            pool0=nn.MaxPool2d(3, 2, 1),
        )  # fmt: skip
        for number, depth in enumerate(depths, start=1):
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            for i in range(depth):
                layers[f"denselayer{i + 1}"] = DenseLayer(channels + i * growth, growth)
            parts[f"denseblock{number}"] = nn.Sequential(layers)
            channels += depth * growth
            if number < len(depths):
                parts[f"transition{number}"] = Transition(channels)
                channels //= 2
        parts["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(parts)
        self.n_features = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, pixels: Tensor) -> Tensor:
        return F.relu(self.features(pixels)).mean(dim=(2, 3))
