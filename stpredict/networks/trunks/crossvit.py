"""CrossViT (Chen, Fan and Panda 2021, ICCV, "CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image
Classification"), without its classifiers.

Two Vision Transformers look at one patch, one in small tokens, one in large ones. After some blocks of their own the
class token of each asks the other's tokens of the patch, and takes back what it learnt. Tensors have the released
code's names.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stpredict.networks.attention import join_heads, split_heads

EPSILON = 1e-6
#: Side of a token of the small and the large branch, in pixels; the small one sees the patch enlarged 15 / 14 times.
TOKEN_PX = (12, 16)
ENLARGED = 15 / 14
HEAD_WIDTH = 32  # of the small branch; the large one has as many heads, twice as wide
#: Blocks of the small and the large branch before each exchange, of CrossViT-Small (192 wide) and -Base (384).
SMALL_AND_BASE = (1, 4, 1, 4, 1, 4)


def norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, EPSILON)


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        return self.proj(join_heads(F.scaled_dot_product_attention(q, k, v)))  # type: ignore[no-any-return]


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention among a branch's tokens, then each alone; normalised before, added to after."""

    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(width)
        self.attn = SelfAttention(width, heads)
        self.mlp = MLP(width, mlp * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """What the first token reads of all."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.wq, self.wk, self.wv, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(y, self.heads) for y in (self.wq(x[:, :1]), self.wk(x), self.wv(x)))
        return self.proj(join_heads(F.scaled_dot_product_attention(q, k, v)))  # type: ignore[no-any-return]


class Asking(nn.Module):
    """The first token and what it reads of all, added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = norm(width)
        self.attn = CrossAttention(width, heads)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1] + self.attn(self.norm1(x))  # type: ignore[no-any-return]


def projection(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(norm(inputs), nn.GELU(), nn.Linear(inputs, outputs))


class Exchange(nn.Module):
    """Each branch's own blocks, then its class token among the other branch's tokens and back in place of the old."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int], heads: Sequence[int], mlp: Sequence[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(*(Block(widths[d], heads[d], mlp[d]) for _ in range(depths[d]))) for d in (0, 1)
        )
        self.projs = nn.ModuleList(projection(widths[d], widths[1 - d]) for d in (0, 1))
        self.fusion = nn.ModuleList(Asking(widths[1 - d], heads[1 - d]) for d in (0, 1))
        self.revert_projs = nn.ModuleList(projection(widths[1 - d], widths[d]) for d in (0, 1))

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        own = [blocks(x) for blocks, x in zip(self.blocks, branches, strict=True)]
        exchanged = []
        for d, (to_other, ask, back) in enumerate(zip(self.projs, self.fusion, self.revert_projs, strict=True)):
            asked = ask(torch.cat([to_other(own[d][:, :1]), own[1 - d][:, 1:]], dim=1))
            exchanged.append(torch.cat([back(asked), own[d][:, 1:]], dim=1))
        return exchanged


class PatchEmbedding(nn.Module):
    """Tokens, N x tokens x width, of pixels."""

    def __init__(self, width: int, token_px: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, token_px, token_px)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class CrossViT(nn.Module):
    """The normalised class tokens of both branches, joined.

    The branches see the patch `sides` pixels wide; of these the large one's is the patch's own.
    """

    def __init__(
        self, widths: Sequence[int], depths: Sequence[int], heads: Sequence[int], mlp: Sequence[int],
        sides: Sequence[int],
    ) -> None:  # fmt: skip
        super().__init__()
        self.small_px, self.n_features = sides[0], sum(widths)
        counts = [(side // token_px) ** 2 for side, token_px in zip(sides, TOKEN_PX, strict=True)]
        self.patch_embed = nn.ModuleList(PatchEmbedding(w, p) for w, p in zip(widths, TOKEN_PX, strict=True))
        self.cls_token = nn.ParameterList(torch.zeros(1, 1, width) for width in widths)
        self.pos_embed = nn.ParameterList(torch.zeros(1, 1 + n, w) for n, w in zip(counts, widths, strict=True))
        self.blocks = nn.ModuleList(
            Exchange(widths, depths[start : start + 2], heads, mlp) for start in range(0, len(depths), 2)
        )
        self.norm = nn.ModuleList(norm(width) for width in widths)
        for parameter in (*self.cls_token, *self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        side = self.small_px
        seen = (F.interpolate(pixels, (side, side), mode="bicubic", align_corners=False), pixels)
        branches = []
        for image, embed, token, position in zip(seen, self.patch_embed, self.cls_token, self.pos_embed, strict=True):
            tokens = embed(image)
            branches.append(torch.cat([token.expand(tokens.shape[0], -1, -1), tokens], dim=1) + position)
        for block in self.blocks:
            branches = block(branches)
        return torch.cat([norm(x[:, 0]) for norm, x in zip(self.norm, branches, strict=True)], dim=1)


def two_branches(width: int, depths: Sequence[int], patch_px: int) -> CrossViT:
    """One of the usual kind, whose small branch is `width` wide and the large one twice so.

    Raises ValueError for patches that its tokens do not fill, and depths that are not in pairs.
    """
    if len(depths) % 2:
        raise ValueError("the depths of its two branches are not in pairs")
    small, large = TOKEN_PX
    if patch_px % large:
        raise ValueError(f"its tokens of {large} x {large} do not fill patches of {patch_px} px")
    sides = (small * round(patch_px * ENLARGED / small), patch_px)
    heads = max(1, width // HEAD_WIDTH)
    return CrossViT((width, 2 * width), depths, (heads, heads), (4, 4), sides)
