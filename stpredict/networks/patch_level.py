"""Networks of one patch: a trunk, and one linear head. Most systems that the papers compare with are such.

ST-Net (He et al. 2020, Nature Biomedical Engineering 4:827) is a DenseNet121, DeepSpaCE (Monjo et al. 2022, Scientific
Reports 12:4133) a VGG16. M2ORT and M2OST are also compared with a ResNet50, a ViT-B/16 and CrossViT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stpredict.networks.autocast import no_autocast
from stpredict.networks.head import Head, Link
from stpredict.networks.trunks import TRUNKS
from stpredict.networks.trunks.crossvit import SMALL_AND_BASE
from stpredict.networks.trunks.densenet import DENSENET121
from stpredict.networks.trunks.pixels import ImageNetPixels
from stpredict.networks.trunks.resnet import RESNET50
from stpredict.networks.trunks.vgg import VGG16
from stpredict.networks.trunks.vit import VIT_B

#: A batch norm needs more than one value; maps of smaller patches may be of one place.
MIN_PATCH_PX = 64
#: Trunks whose published networks begin with a head of zeros, that is with the training mean.
ZERO_HEADS = ("densenet", "vit")


@dataclass(frozen=True)
class PatchConfig:
    """Which trunk of TRUNKS, and its sizes; each trunk's file says what they are of."""

    n_genes: int
    trunk: str
    width: int
    depths: Sequence[int]
    patch_px: int = 224
    link: Link = "identity"


#: The systems by name.
SYSTEMS: dict[str, dict[str, Any]] = {
    "stnet": {"trunk": "densenet", "width": 32, "depths": DENSENET121},
    "resnet50": {"trunk": "resnet", "width": 64, "depths": RESNET50},
    "vit-b16": {"trunk": "vit", "width": 768, "depths": VIT_B},
    "deepspace": {"trunk": "vgg", "width": 64, "depths": VGG16},
    "crossvit-small": {"trunk": "crossvit", "width": 192, "depths": SMALL_AND_BASE},
    "crossvit-base": {"trunk": "crossvit", "width": 384, "depths": SMALL_AND_BASE},
}


class PatchNetwork(nn.Module):
    """Expression of `n_genes` from one square patch per spot."""

    def __init__(self, config: PatchConfig) -> None:
        super().__init__()
        if config.patch_px < MIN_PATCH_PX:
            raise ValueError(f"it takes patches of {MIN_PATCH_PX} px or more, not of {config.patch_px}")
        self.config = config
        self.pixels = ImageNetPixels()
        self.trunk = TRUNKS[config.trunk](config.width, config.depths, config.patch_px)
        self.head = Head(int(self.trunk.n_features), config.n_genes, config.link)  # type: ignore[arg-type]
        if config.trunk in ZERO_HEADS:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        self.trunk_dtype = torch.float32

    def forward(self, patches: Tensor) -> Tensor:
        """Patches, uint8 N x P x P x 3, to float32 N x genes."""
        features = self.features(patches)
        with no_autocast(features):
            return self.head(features.float())  # type: ignore[no-any-return]

    def features(self, patches: Tensor) -> Tensor:
        """What the head reads, N x features."""
        return self.trunk(self.pixels(patches).to(self.trunk_dtype))  # type: ignore[no-any-return]

    def cast(self, dtype: torch.dtype) -> PatchNetwork:
        """Cast the trunk. Pixels' normalisation, batch norms, whose statistics need it, and the head stay in fp32."""
        self.trunk.to(dtype)
        for module in self.trunk.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.float()  # and so is its input, as TensorRT takes no two types
                module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
                module.register_forward_hook(lambda _, __, output: output.to(dtype))
        self.trunk_dtype = dtype
        return self
