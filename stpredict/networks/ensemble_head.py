"""The head of Path2Space: the mean of many small MLPs of the same features (Shulman et al. 2026, Cell,
10.1016/j.cell.2026.04.023).

Each is a hidden layer, ReLU, a layer of genes, ReLU. All read the same features, so their first layers are one product.
Behind the second each has a ReLU of its own, so these are added member by member.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class EnsembleConfig:
    """So many MLPs, with a hidden layer of `hidden` units each."""

    members: int
    hidden: int

    def __post_init__(self) -> None:
        if min(self.members, self.hidden) < 1:
            raise ValueError("its head's ensemble has no members, or these no units")


class Ensemble(nn.Module):
    """The mean over MLPs of what each makes of the features."""

    #: Tensors with an axis of genes, and which it is: `--genes` computes no others.
    GENE_AXES: ClassVar[Mapping[str, int]] = {"second_weight": 1, "second_bias": 1}

    def __init__(self, config: EnsembleConfig, n_features: int, n_genes: int) -> None:
        super().__init__()
        self.config = config
        self.first = nn.Linear(n_features, config.members * config.hidden)
        self.second_weight = nn.Parameter(torch.empty(config.members, n_genes, config.hidden))
        self.second_bias = nn.Parameter(torch.empty(config.members, n_genes))
        nn.init.normal_(self.second_weight, std=config.hidden**-0.5)
        nn.init.zeros_(self.second_bias)

    def forward(self, features: Tensor) -> Tensor:
        """N x features to N x genes."""
        hidden = F.relu(self.first(features)).view(-1, self.config.members, self.config.hidden)
        total = torch.zeros((), device=features.device)
        for member in range(self.config.members):
            total = total + F.relu(F.linear(hidden[:, member], self.second_weight[member], self.second_bias[member]))
        return total / self.config.members


def join_members(members: Iterable[tuple[int, Mapping[str, Tensor]]], count: int) -> dict[str, Tensor]:
    """The ensemble of `count` MLPs under Path2Space's names, `layer0.0` and `layer1.0` each, by their places.

    Each member is let go before the next is asked for. Raises ValueError, in words, for members that are no such MLPs,
    or not all of one size, and where some are missing.
    """
    joined: dict[str, Tensor] = {}
    found = set()
    for place, tensors in members:
        check_member(tensors)
        if not joined:
            joined = {name: torch.empty(count, *tensor.shape) for name, tensor in tensors.items()}
        if any(tensor.shape != joined[name].shape[1:] for name, tensor in tensors.items()):
            raise ValueError("its members are not all of one size")
        for name, tensor in tensors.items():
            joined[name][place] = tensor
        found.add(place)
    if len(found) != count:
        raise ValueError(f"it has {len(found)} of {count} members, result_I_J_0/model_trained.pth each")
    return {
        "first.weight": joined["layer0.0.weight"].flatten(0, 1),
        "first.bias": joined["layer0.0.bias"].flatten(),
        "second_weight": joined["layer1.0.weight"],
        "second_bias": joined["layer1.0.bias"],
    }


def check_member(tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError, in words, for tensors that are no MLP of Path2Space's."""
    wanted = {"layer0.0.weight", "layer0.0.bias", "layer1.0.weight", "layer1.0.bias"}
    if set(tensors) != wanted:
        stray = sorted(set(tensors) ^ wanted)[0]
        raise ValueError(f"a member is no MLP of layer0.0 and layer1.0 ({stray[:60]})")
    (hidden, _), (n_genes, inner) = tensors["layer0.0.weight"].shape, tensors["layer1.0.weight"].shape
    if (hidden,) != tensors["layer0.0.bias"].shape or (n_genes,) != tensors["layer1.0.bias"].shape or hidden != inner:
        raise ValueError("a member's layers do not follow one another")
