"""BLEEP (Xie et al. 2023, NeurIPS, arXiv 2306.01859, "Spatially Resolved Gene Expression Prediction from H&E Histology
Images via Bi-modal Contrastive Learning").

A ResNet of the patch and the expression of the spot are projected into one space, where contrastive learning brings
those of one spot together. A patch is predicted as the mean expression of the measured spots that lie nearest to it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stpredict.networks.autocast import no_autocast
from stpredict.networks.bank import Bank
from stpredict.networks.draws import Dropout
from stpredict.networks.head import Link
from stpredict.networks.trunks.pixels import ImageNetPixels
from stpredict.networks.trunks.resnet import ResNet, ResNetName, make_resnet


@dataclass(frozen=True)
class BleepConfig:
    """Sizes of one BLEEP, and the number of spots in its `bank`. What it says is expression itself.

    `weights` of the `nearest` spots: equal, or falling with their distance to the image, as a variant of the authors'.
    Raises ValueError for sizes that cannot be.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = (
        "nearest", "weights", "projection", "dropout", "temperature", "trunk", "trunk_width",
    )  # fmt: skip

    n_genes: int
    bank: int = 0
    nearest: int = 50
    weights: Literal["equal", "distance"] = "equal"
    projection: int = 256
    dropout: float = 0.1
    temperature: float = 1.0
    trunk: ResNetName = "resnet50"
    trunk_width: int = 64
    colours: Literal["rgb", "bgr"] = "rgb"  # the released code reads them the other way round
    patch_px: int = 224
    link: Link = "identity"

    def __post_init__(self) -> None:
        if min(self.nearest, self.projection, self.trunk_width) < 1 or not self.temperature > 0:
            raise ValueError("sizes and the temperature are positive")
        if not 0 <= self.dropout < 1:
            raise ValueError("dropout is from 0 to below 1")


class Projection(nn.Module):
    """Features to the common space: a linear map, and what a small network adds to it, normalised."""

    def __init__(self, n_features: int, width: int, dropout: float) -> None:
        super().__init__()
        self.projection = nn.Linear(n_features, width)
        self.fc = nn.Linear(width, width)
        self.dropout = Dropout(dropout)
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        projected = self.projection(features)
        added: Tensor = self.layer_norm(self.dropout(self.fc(F.gelu(projected))) + projected)
        return added


class NearestSpots(nn.Module):
    """Expression as the mean of the measured spots whose embeddings are most alike an image's.

    Where `beside` is attached, what it makes of the embedding stands behind the genes, in further columns.
    """

    def __init__(self, config: BleepConfig) -> None:
        super().__init__()
        self.in_features, self.out_features = config.projection, config.n_genes
        self.n_nearest, self.weights = config.nearest, config.weights
        self.bank = Bank(config.bank, config.projection, config.n_genes)
        self.lengths: Tensor  # of the embeddings that the bank's keys are the directions of
        self.register_buffer("lengths", torch.ones(config.bank))
        self.beside: nn.Module | None = None

    def fill(self, embeddings: Tensor, expression: Tensor) -> None:
        """Make measured spots, by their embeddings (spots x projection), what is looked up."""
        self.lengths = embeddings.norm(dim=1).half().float().to(self.lengths.device)
        self.bank.fill(F.normalize(embeddings, dim=1), expression)

    def forward(self, embedding: Tensor) -> Tensor:
        """N x projection to N x genes, and more columns where something is attached."""
        nearest, cosine = self.bank.most_similar(embedding, self.n_nearest)
        expression = self.bank.expression[nearest]
        if self.weights == "equal":
            mean = expression.mean(dim=1)
        else:
            own, theirs = embedding.norm(dim=1, keepdim=True), self.lengths[nearest]
            distance = own.square() + theirs.square() - 2 * own * theirs * cosine  # its square
            weights = torch.softmax(-distance, dim=1)
            mean = (expression * weights[:, :, None]).sum(dim=1)
        return mean if self.beside is None else torch.cat([mean, self.beside(embedding)], dim=1)


class Bleep(nn.Module):
    """Expression of `n_genes` from one square patch per spot, as that of measured spots in its bank."""

    def __init__(self, config: BleepConfig) -> None:
        super().__init__()
        self.config = config
        self.pixels = ImageNetPixels()
        self.trunk = make_resnet(config.trunk, config.trunk_width)
        self.image_projection = Projection(self.trunk.n_features, config.projection, config.dropout)
        self.spot_projection = Projection(config.n_genes, config.projection, config.dropout)
        self.head = NearestSpots(config)

    @property
    def first_trunk(self) -> ResNet:
        """The trunk that is taught, or begins with weights of the user's."""
        return self.trunk

    def forward(self, patches: Tensor) -> Tensor:
        """Patches, uint8 N x P x P x 3, to float32 N x genes."""
        embedding = self.features(patches)
        with no_autocast(embedding):
            return self.head(embedding.float())  # type: ignore[no-any-return]

    def features(self, patches: Tensor) -> Tensor:
        """The embeddings of images, N x projection, which the head reads."""
        read = patches.flip(3) if self.config.colours == "bgr" else patches
        return self.image_projection(self.trunk(self.pixels(read)))  # type: ignore[no-any-return]

    def fill(self, targets: Tensor, expression: Tensor) -> None:
        """Make measured spots (spots x genes), embedded by what the spots' projection was trained on, the bank."""
        with torch.no_grad():
            self.head.fill(self.spot_projection(targets), expression)
        self.config = replace(self.config, bank=len(targets))

    def cast(self, _dtype: torch.dtype) -> Bleep:
        """Nothing is cast: which spots are the nearest hangs on the last bits."""
        return self


def contrastive_loss(spots: Tensor, images: Tensor, temperature: float = 1.0) -> Tensor:
    """How far the embeddings of spots and images, N x projection each, are from finding one another.

    Cross entropy both ways to the same targets: how alike spots are to one another, and images. The released code gives
    the images' side the transpose of the row-wise softmax, whose rows do not sum to 1.
    """
    logits = spots @ images.T / temperature
    likeness = (images @ images.T + spots @ spots.T) / (2 * temperature)
    targets = torch.softmax(likeness, dim=1)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
