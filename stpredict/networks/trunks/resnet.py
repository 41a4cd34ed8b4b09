"""ResNet (He et al. 2016, CVPR, "Deep Residual Learning for Image Recognition"), without its classifier.

Tensors have torchvision's names. As there, a bottleneck that halves the map does so in its 3 x 3 convolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stpredict.networks.whole_batch import BatchNorm2d

#: Blocks of each stage of the usual sizes: ResNet18 of basic blocks, ResNet50 of bottlenecks.
RESNET18, RESNET50 = (2, 2, 2, 2), (3, 4, 6, 3)
ResNetName = Literal["resnet18", "resnet50"]


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around which their input is added."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = BatchNorm2d(channels)
        self.downsample = make_downsample(inputs, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + kept)


class Bottleneck(nn.Module):
    """A 3 x 3 convolution between 1 x 1 ones, the last four times as wide, around which their input is added."""

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        outputs = channels * self.expansion
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, outputs, 1, bias=False)
        self.bn3 = BatchNorm2d(outputs)
        self.downsample = make_downsample(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(x)) + kept)


def make_downsample(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """What makes a block's input fit to be added to its output; None where it fits as it is."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), BatchNorm2d(outputs))


class ResNet(nn.Module):
    """A stage of blocks per entry of `depths`; each stage but the first halves the map and doubles the `width`."""

    def __init__(
        self, block: type[BasicBlock | Bottleneck] = BasicBlock, depths: Sequence[int] = RESNET18, width: int = 64
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = BatchNorm2d(width)
        inputs = width
        self.stages = [f"layer{stage}" for stage in range(1, len(depths) + 1)]
        for stage, (name, depth) in enumerate(zip(self.stages, depths, strict=True)):
            channels, stride = width << stage, 2 if stage else 1
            blocks = [block(inputs, channels, stride)]
            inputs = channels * block.expansion
            self.add_module(name, nn.Sequential(*blocks, *(block(inputs, channels, 1) for _ in range(depth - 1))))
        self.n_features = inputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def maps(self, pixels: Tensor) -> Tensor:
        """Normalised pixels, N x 3 x P x P, to features of places, N x features x P / 32 x P / 32."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(pixels))), 3, 2, 1)
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return x

    def tokens(self, pixels: Tensor) -> Tensor:
        """The same as N x (P / 32)^2 x features, in row-major order."""
        return self.maps(pixels).flatten(2).transpose(1, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.maps(pixels).mean(dim=(2, 3))


def resnet_of(tensors: Mapping[str, Tensor]) -> ResNet:
    """The network of these tensors, in fp32; its kind of block and its sizes follow from their names and shapes.

    Raises KeyError or RuntimeError, as torch does, for tensors of another network.
    """
    block = Bottleneck if "layer1.0.conv3.weight" in tensors else BasicBlock
    stages = sorted({name.split(".")[0] for name in tensors if name.startswith("layer")})
    depths = [len({name.split(".")[1] for name in tensors if name.startswith(f"{stage}.")}) for stage in stages]
    with torch.device("meta"):
        network = ResNet(block, depths, tensors["conv1.weight"].shape[0])
    load_counted(network, tensors)
    return network


def load_counted(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a network without memory its tensors, in fp32, and its batch norms counts of batches that no file needs."""
    own = {name: tensor.float() for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    counts = {name: torch.tensor(0) for name in network.state_dict() if name.endswith("num_batches_tracked")}
    network.load_state_dict(own | counts, assign=True)


def make_resnet(name: ResNetName, width: int) -> ResNet:
    """One of the usual sizes, its first layer `width` wide."""
    return ResNet(BasicBlock, RESNET18, width) if name == "resnet18" else ResNet(Bottleneck, RESNET50, width)
