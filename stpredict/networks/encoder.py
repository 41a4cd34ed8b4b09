"""A frozen encoder, read by a linear head. The encoder is a file of the user's own and is not part of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stpredict.networks.autocast import no_autocast
from stpredict.networks.head import Head, Link
from stpredict.networks.timm_vit import ViTReading


@dataclass(frozen=True)
class EncoderConfig:
    """What is known of the encoder's `file`, and the sizes around it. `mean` and `std` are of RGB in 0..1."""

    n_genes: int
    n_features: int
    file: str
    sha256: str
    mean: Sequence[float]
    std: Sequence[float]
    patch_px: int = 224
    link: Link = "identity"
    vit: ViTReading | None = None  # of a timm checkpoint


class Encoded(nn.Module):
    """Expression of `n_genes` from one square patch per spot, once an encoder is attached."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        if min(config.std) <= 0:
            raise ValueError("the encoder's deviation is not above 0")
        self.config = config
        self.encoder: nn.Module | None = None
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.feature_mean: Tensor
        self.feature_scale: Tensor
        for name, values in (("pixel_mean", config.mean), ("pixel_std", config.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("feature_mean", torch.zeros(config.n_features))
        self.register_buffer("feature_scale", torch.ones(config.n_features))
        self.head = Head(config.n_features, config.n_genes, config.link)
        self.encoder_dtype = torch.float32

    def forward(self, patches: Tensor) -> Tensor:
        """Patches, uint8 N x P x P x 3, to float32 N x genes."""
        return self.read(self.features(patches))

    def features(self, patches: Tensor) -> Tensor:
        """What the head reads, before it is standardised: N x features."""
        pixels = (patches.permute(0, 3, 1, 2).float() / 255 - self.pixel_mean) / self.pixel_std
        assert self.encoder is not None, "no encoder is attached"
        return self.encoder(pixels.to(self.encoder_dtype))  # type: ignore[no-any-return]

    def read(self, features: Tensor) -> Tensor:
        """What the head makes of features, N x genes, in fp32."""
        with no_autocast(features):
            return self.head((features.float() - self.feature_mean) * self.feature_scale)  # type: ignore[no-any-return]

    def cast(self, dtype: torch.dtype) -> Encoded:
        """Cast the encoder. The pixels' normalisation and the head stay in fp32."""
        assert self.encoder is not None, "no encoder is attached"
        self.encoder.to(dtype)
        self.encoder_dtype = dtype
        return self

    def train(self, mode: bool = True) -> Encoded:
        """The encoder stays as it is; exported ones do not even take the call."""
        self.training = mode
        self.head.train(mode)
        return self
