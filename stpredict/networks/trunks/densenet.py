"""DenseNet (Huang et al. 2017, CVPR, "Densely Connected Convolutional Networks"), without its classifier.

Each layer appends its output to its input, so that later layers read all earlier ones. Tensors have torchvision's
names.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stpredict.networks.trunks.resnet import load_counted
from stpredict.networks.whole_batch import BatchNorm2d

#: Layers of each block of DenseNet121, whose growth is 32.
DENSENET121 = (6, 12, 24, 16)
#: Channels of a layer's 1 x 1 convolution, over its growth.
BOTTLENECK = 4


class DenseLayer(nn.Module):
    """BN, ReLU, 1 x 1, BN, ReLU, 3 x 3: `growth` channels, appended to the input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, BOTTLENECK * growth, 1, bias=False)
        self.norm2 = BatchNorm2d(BOTTLENECK * growth)
        self.conv2 = nn.Conv2d(BOTTLENECK * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return torch.cat([x, new], dim=1)


class Transition(nn.Module):
    """Half the channels, and the means of 2 x 2 places."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm = BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, inputs // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


class DenseNet(nn.Module):
    """Blocks of as many layers as `depths` says, each of which adds `growth` channels; the stem has twice as many."""

    def __init__(self, growth: int = 32, depths: Sequence[int] = DENSENET121) -> None:
        super().__init__()
        channels = 2 * growth
        parts: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=nn.Conv2d(3, channels, 7, 2, 3, bias=False), norm0=BatchNorm2d(channels), relu0=nn.ReLU(),
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
        parts["norm5"] = BatchNorm2d(channels)
        self.features = nn.Sequential(parts)
        self.n_features = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def maps(self, pixels: Tensor) -> Tensor:
        """Normalised pixels, N x 3 x P x P, to features of places, N x features x side x side."""
        return F.relu(self.features(pixels))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.maps(pixels).mean(dim=(2, 3))


def densenet_of(tensors: Mapping[str, Tensor]) -> DenseNet:
    """The network of these tensors, in fp32; its sizes follow from their names and shapes.

    torchvision's oldest files, which it still publishes, have a point in the names of a layer's parts. Raises KeyError
    or RuntimeError, as torch does, for tensors of another network.
    """
    own = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name): x for name, x in tensors.items()}
    layers = {found[1]: set[str]() for name in own if (found := re.match(r"features\.denseblock(\d+)\.", name))}
    for name in own:
        if found := re.match(r"features\.denseblock(\d+)\.denselayer(\d+)\.", name):
            layers[found[1]].add(found[2])
    growth = own["features.denseblock1.denselayer1.conv2.weight"].shape[0]
    with torch.device("meta"):
        network = DenseNet(growth, [len(layers[str(block + 1)]) for block in range(len(layers))])
    load_counted(network, own)
    return network
