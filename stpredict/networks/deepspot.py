"""The head of DeepSpot (Nonchev et al. 2025, medRxiv 2025.02.09.25321567): a spot, its parts and its neighbours.

Features of the spot's patch, of its 3 x 3 parts, each as large as a patch, and of the patches of neighbouring spots go
through the same layer, of which there are ten whose median counts. Those of the parts are added, of those of neighbours
the largest counts. What reads all three is linear, so that its ten layers and the genes' scaling are one when it is
brought in. Expression below 0 is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Along the side of a patch.
PARTS = 3
SIDE = 3
OWN = SIDE * SIDE // 2


@dataclass(frozen=True)
class DeepSpotConfig:
    """So many layers that read features, `width` wide each."""

    layers: int
    width: int

    def __post_init__(self) -> None:
        if min(self.layers, self.width) < 1:
            raise ValueError("its head has no layers, or these no units")


class DeepSpotHead(nn.Module):
    """Expression of a spot from the features of its patch, of this one's parts, and of its neighbours."""

    #: Tensors with an axis of genes, and which it is: `--genes` computes no others.
    GENE_AXES: ClassVar[Mapping[str, int]] = {"last.weight": 0, "last.bias": 0}
    #: Patches along the side of what is looked at around a spot, which are those of spots a pitch apart.
    side: ClassVar[int] = SIDE
    at_pitch: ClassVar[bool] = True
    #: The encoder gives features of a patch and of so many parts along its side.
    parts: ClassVar[int] = PARTS

    def __init__(self, config: DeepSpotConfig, n_features: int, n_genes: int) -> None:
        super().__init__()
        self.config = config
        self.first = nn.Linear(n_features, config.layers * config.width)
        self.last = nn.Linear(3 * config.width, n_genes)
        self.described = 2 * config.width

    def reduce(self, features: Tensor) -> Tensor:
        """... x features to ... x width: the median of the layers, of two in the middle the lower."""
        read = F.relu(self.first(features))
        read = read.view(*read.shape[:-1], self.config.layers, self.config.width)
        return torch.median(read, dim=-2).values

    def describe(self, features: Tensor) -> Tensor:
        """What is kept of each patch, N x 2 width, of its features and its parts', N x (1 + parts^2) x features."""
        read = self.reduce(features)
        return torch.cat([read[:, 0], read[:, 1:].sum(dim=1)], dim=1)

    def among(self, described: Tensor, _places: Tensor) -> Tensor:
        """Nothing is asked of spots that are not neighbours: n x 0."""
        return described[:, :0]

    def read(self, neighbours: Tensor, absent: Tensor, _tokens: Tensor) -> Tensor:
        """Expression, N x genes, of spots whose 3 x 3 patches, N x 9 x 2 width, are described; some may be absent.

        A spot without neighbours is read as if one had no features, as it is taught.
        """
        around = [i for i in range(SIDE * SIDE) if i != OWN]
        seen = neighbours[:, around, : self.config.width].masked_fill(absent[:, around, None], -torch.inf)
        nothing = self.reduce(torch.zeros(1, self.first.in_features, device=neighbours.device))
        largest = torch.where(absent[:, around].all(dim=1)[:, None], nothing, seen.max(dim=1).values)
        return F.relu(self.last(F.relu(torch.cat([neighbours[:, OWN], largest], dim=1))))

    def forward(self, features: Tensor) -> Tensor:
        """Expression, N x genes, as if each spot had no neighbours."""
        described = self.describe(features)
        neighbours = described.new_zeros(len(described), SIDE * SIDE, described.shape[1])
        neighbours[:, OWN] = described
        absent = torch.arange(SIDE * SIDE, device=features.device) != OWN
        return self.read(neighbours, absent.expand(len(described), -1), described[:, :0])


def deepspot_head(
    tensors: Mapping[str, Tensor], mean: Tensor, scale: Tensor
) -> tuple[DeepSpotConfig, dict[str, Tensor]]:
    """The head of DeepSpot's tensors, with the `mean` and the deviation (`scale`) of each gene's expression.

    Raises ValueError, in words, for another context than spot, parts and neighbours; KeyError for a missing tensor.
    """
    own = {name: tensor.float() for name, tensor in tensors.items()}
    n_first, n_last = (
        len({name.split(".")[1] for name in own if name.startswith(f"{part}.")}) for part in ("phi_spot", "rho")
    )
    if not n_first or not n_last:
        raise ValueError("it has no tensors phi_spot and rho")
    width = own["phi_spot.0.model.0.weight"].shape[0]
    weight, bias = (
        torch.stack([own[f"rho.{i}.model.2.{part}"] for i in range(n_last)]).mean(dim=0) for part in ("weight", "bias")
    )
    if weight.shape[1] != 3 * width:
        raise ValueError("it reads another context than a spot, its parts and its neighbours")
    if mean.shape != bias.shape or scale.shape != bias.shape:
        raise ValueError(f"it predicts {len(bias)} genes and scales {len(mean)}")
    return DeepSpotConfig(n_first, width), {
        "first.weight": torch.cat([own[f"phi_spot.{i}.model.0.weight"] for i in range(n_first)]),
        "first.bias": torch.cat([own[f"phi_spot.{i}.model.0.bias"] for i in range(n_first)]),
        "last.weight": weight * scale.float()[:, None],
        "last.bias": bias * scale.float() + mean.float(),
    }
