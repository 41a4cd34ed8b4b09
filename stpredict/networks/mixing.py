"""Blocks that mix tokens by attention, as HisToGene, Hist2ST, EGN and TRIPLEX have them: normalised before, added to
after, queries, keys and values without bias (after Dosovitskiy et al. 2021, arXiv 2010.11929).

Tokens may be all spots of a slide. Keys and values are made of all of them, everything else of some rows at a time, so
that memory grows with the number of tokens, not with its square.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stpredict.networks.attention import join_heads, split_heads
from stpredict.networks.draws import Dropout

#: Attention weights at a time where there are very many: 256 MB in fp32.
MAX_WEIGHTS = 1 << 26
#: Tokens that are looked at or widened at a time.
ROWS = 8192


def by_rows(work: Callable[[Tensor], Tensor], tokens: Tensor, rows: int | None = None) -> Tensor:
    """What `work` makes of tokens (N x tokens x ...), each by itself. It is given so many `rows` (ROWS) at a time."""
    rows = rows or ROWS
    if tokens.shape[1] <= rows:
        return work(tokens)
    made: Tensor | None = None
    for start in range(0, tokens.shape[1], rows):
        part = work(tokens[:, start : start + rows])
        if made is None:
            made = part.new_empty(tokens.shape[0], tokens.shape[1], *part.shape[2:])
        made[:, start : start + rows] = part
    assert made is not None
    return made


class Attention(nn.Module):
    """What queries read of a context (N x tokens x C), with a `bias` on the attention weights' logarithms.

    Heads are `head_dim` wide, or else share the channels among them.
    """

    def __init__(self, channels: int, heads: int, dropout: float, head_dim: int | None = None) -> None:
        super().__init__()
        if head_dim is None and channels % heads:
            raise ValueError(f"{channels} channels do not divide into {heads} heads")
        self.heads = heads
        inner = heads * (head_dim or channels // heads)
        self.query, self.key, self.value = (nn.Linear(channels, inner, bias=False) for _ in range(3))
        self.out = nn.Linear(inner, channels)
        self.dropout = Dropout(dropout)

    def remember(self, context: Tensor, normalise: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Keys and values of a context, N x heads x tokens x head_dim."""
        keys, values = (
            by_rows(lambda part, make=make: make(normalise(part)), context)  # type: ignore[misc]
            for make in (self.key, self.value)
        )
        return split_heads(keys, self.heads), split_heads(values, self.heads)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
        q = split_heads(self.query(queries), self.heads)
        at_a_time = max(1, MAX_WEIGHTS // (q.shape[0] * q.shape[1] * keys.shape[2]))
        if bias is not None or q.shape[2] <= at_a_time:
            read = F.scaled_dot_product_attention(q, keys, values, bias)
        else:
            parts = torch.split(q, at_a_time, dim=2)
            read = torch.cat([F.scaled_dot_product_attention(part, keys, values) for part in parts], dim=2)
        return self.dropout(self.out(join_heads(read)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention to a context, or to the tokens themselves, then each token alone, in `mlp` hidden channels."""

    def __init__(self, channels: int, heads: int, mlp: int, dropout: float, head_dim: int | None = None) -> None:
        super().__init__()
        self.widened = mlp
        self.norm = nn.LayerNorm(channels)  # of queries and context alike
        self.attention = Attention(channels, heads, dropout, head_dim)
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, mlp), nn.GELU(), Dropout(dropout),
            nn.Linear(mlp, channels), Dropout(dropout),
        )  # fmt: skip

    def forward(self, x: Tensor, context: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """N x tokens x C to the same. A `bias` (to N x heads x tokens x context) is of few tokens, all at once."""
        keys, values = self.attention.remember(x if context is None else context, self.norm)

        def work(part: Tensor) -> Tensor:
            part = part + self.attention(self.norm(part), keys, values, bias)
            return part + self.mlp(part)  # type: ignore[no-any-return]

        return by_rows(work, x)

    def pass_over(self, x: Tensor) -> None:
        """Draw the random numbers that tokens (N x tokens x C) take in training, and compute nothing of them."""
        hidden = x.new_zeros(x.shape[0], x.shape[1], self.widened)
        for own, widened in zip(torch.split(x, ROWS, dim=1), torch.split(hidden, ROWS, dim=1), strict=True):
            self.attention.dropout(own)
            self.mlp[3](widened)
            self.mlp[5](own)
