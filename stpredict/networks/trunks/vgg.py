"""VGG (Simonyan and Zisserman 2015, arXiv 1409.1556, "Very Deep Convolutional Networks for Large-Scale Image
Recognition"), without its last layer.

Tensors have torchvision's names, which are places in its sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from stpredict.networks.draws import Dropout

#: 3 x 3 convolutions of each stage of VGG16, whose first is 64 wide.
VGG16 = (2, 2, 3, 3, 3)
#: A stage is twice as wide as the one before, up to this many times the first.
WIDEST = 8
#: Side of the map that the classifier's layers read.
POOLED = 7
DROPOUT = 0.5


class VGG(nn.Module):
    """Stages of convolutions, each ended by a pooling, then two wide layers; 64 x `width` features."""

    def __init__(self, width: int = 64, depths: Sequence[int] = VGG16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage, depth in enumerate(depths):
            outputs = width * min(1 << stage, WIDEST)
            for _ in range(depth):
                layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.ReLU()]
                channels = outputs
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(POOLED)
        self.n_features = 64 * width
        self.classifier = nn.Sequential(
            nn.Linear(channels * POOLED**2, self.n_features), nn.ReLU(), Dropout(DROPOUT),
            nn.Linear(self.n_features, self.n_features), nn.ReLU(), Dropout(DROPOUT),
        )  # fmt: skip
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        # Channels are flattened first.
        return self.classifier(self.avgpool(self.features(pixels)).flatten(1))  # type: ignore[no-any-return]
