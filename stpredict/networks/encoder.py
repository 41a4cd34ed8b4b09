"""A frozen encoder, read by a head. The encoder is a file of the user's own and is not part of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stpredict.networks.autocast import no_autocast
from stpredict.networks.head import Head, Link
from stpredict.networks.published_head import READ_SLIDES, HeadConfig, build_head
from stpredict.networks.timm_vit import ViTReading
from stpredict.stain.macenko import macenko

Stain = Literal["macenko"]
STAINS: tuple[Stain, ...] = ("macenko",)


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
    vit: ViTReading | None = None  # of a Vision Transformer's weights
    stain: Stain | None = None  # how patches are normalised before

    def __post_init__(self) -> None:
        if self.stain not in (None, *STAINS):
            raise ValueError(f"its stain normalisation {self.stain!r} is not known")


@dataclass(frozen=True)
class PublishedConfig(EncoderConfig):
    """An encoder's, and how the head is built that somebody published for it."""

    head: HeadConfig | None = None


class OnEncoder(nn.Module):
    """Expression of `n_genes` from one square patch per spot, once an encoder is attached. Subclasses have a `head`."""

    head: Any  # a Head, or one that others published

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
        for name, values in self.pixels_of(config).items():
            self.register_buffer(name, values, persistent=False)
        self.register_buffer("feature_mean", torch.zeros(config.n_features))
        self.register_buffer("feature_scale", torch.ones(config.n_features))
        self.encoder_dtype = torch.float32

    @staticmethod
    def pixels_of(config: EncoderConfig) -> dict[str, Tensor]:
        """What normalises pixels, which stands in the card and not among the tensors."""
        named = {"pixel_mean": config.mean, "pixel_std": config.std}
        return {name: torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for name, values in named.items()}

    def hold(self, tensors: Mapping[str, Tensor]) -> None:
        """Take tensors as they are, without copies, into a network that was made without memory (on "meta").

        Raises RuntimeError, as torch does, for tensors that do not fit.
        """
        self.load_state_dict(tensors, assign=True)
        for name, values in self.pixels_of(self.config).items():
            setattr(self, name, values)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches, uint8 N x P x P x 3, to float32 N x genes."""
        return self.read(self.features(patches))

    def features(self, patches: Tensor) -> Tensor:
        """What the head reads, before it is standardised: N x features."""
        images = patches.permute(0, 3, 1, 2).float()
        if self.config.stain == "macenko":
            with no_autocast(images):
                images = macenko(images)
        pixels = (images / 255 - self.pixel_mean) / self.pixel_std
        assert self.encoder is not None, "no encoder is attached"
        return self.encoder(pixels.to(self.encoder_dtype))  # type: ignore[no-any-return]

    def read(self, features: Tensor) -> Tensor:
        """What the head makes of features, N x genes, in fp32."""
        with no_autocast(features):
            return self.head((features.float() - self.feature_mean) * self.feature_scale)  # type: ignore[no-any-return]

    def cast(self, dtype: torch.dtype) -> OnEncoder:
        """Cast the encoder. The pixels' normalisation and the head stay in fp32."""
        assert self.encoder is not None, "no encoder is attached"
        self.encoder.to(dtype)
        self.encoder_dtype = dtype
        return self

    def train(self, mode: bool = True) -> OnEncoder:
        """The encoder stays as it is; exported ones do not even take the call."""
        self.training = mode
        return self


class Encoded(OnEncoder):
    """An encoder read by the linear head that `train --encoder` fits."""

    head: Head

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.head = Head(config.n_features, config.n_genes, config.link)


class Published(OnEncoder):
    """An encoder read by a head that somebody published."""

    config: PublishedConfig

    def __init__(self, config: PublishedConfig) -> None:
        super().__init__(config)
        if config.head is None:
            raise ValueError("it does not describe its head")
        self.head = build_head(config.head, config.n_features, config.n_genes)
        self.parts = getattr(self.head, "parts", 0)

    @property
    def reads_slide(self) -> bool:
        """Does its head look at other spots of the slide?"""
        return isinstance(self.head, READ_SLIDES)

    def features(self, patches: Tensor) -> Tensor:
        """What the head reads: N x features, or N x (1 + parts^2) x features of a patch and its parts."""
        if not self.parts:
            return super().features(patches)
        cut = cut_parts(patches, self.parts)
        features = super().features(cut.flatten(0, 1))
        return features.view(*cut.shape[:2], -1)

    def describe(self, patches: Tensor) -> Tensor:
        """What is kept of patches, uint8 N x P x P x 3, to read spots by: N x `described`."""
        features = self.features(patches)
        with no_autocast(features):
            standardised = (features.float() - self.feature_mean) * self.feature_scale
            return self.head.describe(standardised)  # type: ignore[no-any-return]

    def global_tokens(self, described: Tensor, places: Tensor) -> Tensor:
        """Of all spots of a slide, from what is kept of their patches and where they lie (n x 2)."""
        return self.head.among(described.float(), places.float())  # type: ignore[no-any-return]

    def read_spots(self, _patches: Tensor, neighbours: Tensor, absent: Tensor, global_tokens: Tensor) -> Tensor:
        """Expression, N x genes, from what is kept of the patches around, which of them are absent, and the tokens."""
        return self.head.read(neighbours.float(), absent, global_tokens)  # type: ignore[no-any-return]


def cut_parts(patches: Tensor, side: int) -> Tensor:
    """Patches, uint8 N x P x P x 3, with their `side` x `side` parts, made as large: N x (1 + side^2) x P x P x 3."""
    n, px = patches.shape[:2]
    small = px // side
    images = patches.permute(0, 3, 1, 2)[:, :, : small * side, : small * side].float()
    parts = images.reshape(n, 3, side, small, side, small).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    large = F.interpolate(parts, (px, px), mode="bilinear", align_corners=False).round().clamp(0, 255)
    cut = large.to(torch.uint8).permute(0, 2, 3, 1).reshape(n, side**2, px, px, 3)
    return torch.cat([patches[:, None], cut], dim=1)
