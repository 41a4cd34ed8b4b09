"""The linear head that ends every network."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Link = Literal["identity", "softplus"]  # "softplus": the head predicts ln(CPM), the output is ln(1 + CPM)


class Head(nn.Linear):
    """Expression of `n_genes` from what a network ends in.

    Where `beside` is attached, what it makes of the same features stands behind the genes, in further columns.
    """

    def __init__(self, n_features: int, n_genes: int, link: Link) -> None:
        super().__init__(n_features, n_genes)
        self.link = link
        self.beside: nn.Module | None = None

    def forward(self, features: Tensor) -> Tensor:
        """N x features to N x genes, and more columns where something is attached."""
        output = self.linear(features)
        expression = F.softplus(output) if self.link == "softplus" else output
        return expression if self.beside is None else torch.cat([expression, self.beside(features)], dim=1)

    def linear(self, features: Tensor) -> Tensor:
        """What it says before the link, N x features to N x genes."""
        return super().forward(features)
