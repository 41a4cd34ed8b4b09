"""A bank of measured spots that a network looks things up in: what each is found by, and its expression."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: More spots than this are drawn from at random.
MAX_SPOTS = 100_000


class Bank(nn.Module):
    """Spots with their `keys` (spots x width) and `expression` (spots x genes), rounded as a model file stores them."""

    def __init__(self, n_spots: int, width: int, n_genes: int) -> None:
        super().__init__()
        self.keys: Tensor
        self.expression: Tensor
        self.n_spots = n_spots  # a number that tracing does not take for a result
        self.half_squares: Tensor  # of the keys, which would else be summed anew for each batch
        self.register_buffer("keys", torch.zeros(n_spots, width))
        self.register_buffer("expression", torch.zeros(n_spots, n_genes))
        self.register_buffer("half_squares", torch.zeros(n_spots), persistent=False)
        self.register_load_state_dict_post_hook(lambda bank, _: bank.measure())  # type: ignore[no-untyped-call]

    def fill(self, keys: Tensor, expression: Tensor) -> None:
        """Make these the bank's spots, in place of what it held."""
        device = self.keys.device
        self.keys, self.expression = (values.half().float().to(device) for values in (keys, expression))
        self.measure()

    def measure(self) -> None:
        """Count the keys, and sum their squares."""
        self.n_spots = len(self.keys)
        self.half_squares = self.keys.square().sum(dim=1) / 2

    def most_similar(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The `k` spots whose keys' cosine with the queries (N x width) is largest, and that: N x k each.

        Keys are of unit length.
        """
        found = (queries @ self.keys.T).topk(min(k, self.n_spots), dim=1)
        return found.indices, found.values / queries.norm(dim=1, keepdim=True)

    def nearest(self, queries: Tensor, k: int) -> Tensor:
        """The `k` spots with the nearest keys by Euclidean distance, N x k."""
        closeness = queries @ self.keys.T - self.half_squares  # less half of the query's own square, the same for all
        return closeness.topk(min(k, self.n_spots), dim=1).indices
