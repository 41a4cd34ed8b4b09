"""A Swin Transformer (Liu et al. 2021, arXiv 2103.14030) behind a stem of convolutions, as CTransPath is.

CTransPath (Wang et al. 2022, Medical Image Analysis 81:102559) is a Swin-T of windows of 7 x 7 tokens. Tensors have its
names, and sizes are those of the tensors. What the tensors tell of positions in a window is put together once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Tensors = Mapping[str, Tensor]
#: A tensor that no other network here has.
KNOWN = "layers.0.blocks.0.attn.relative_position_bias_table"
#: What a token that was rolled in from the other side of the map is kept from reading with.
APART = -100.0
#: Pixels of a token's side after the stem, which halves the map twice.
TOKEN_PX = 4


def build_swin(tensors: Tensors, patch_px: int) -> Swin:
    """The network of these tensors, in fp32, for patches of `patch_px`. A classifier (`head.*`) is left out.

    Raises ValueError, in words, for tensors of another network and for patches that its windows do not fill.
    """
    own = {name: tensor for name, tensor in published_names(tensors).items() if not name.startswith("head.")}
    try:
        with torch.device("meta"):
            network = Swin(own, patch_px)
        own = {name: tensor.float() for name, tensor in own.items() if not name.endswith(("index", "attn_mask"))}
        for name, module in network.named_modules():
            if isinstance(module, WindowAttention):
                table = own.pop(f"{name}.relative_position_bias_table")
                own[f"{name}.bias"] = window_bias(table, module.window, module.side, module.shift)
        own |= {f"patch_embed.proj.{i}.num_batches_tracked": torch.tensor(0) for i in (1, 4)}
        network.load_state_dict(own, assign=True)
    except KeyError as error:
        raise ValueError(f"it has no tensor {error}") from error
    except RuntimeError as error:  # torch's, of names and shapes, one a line
        raise ValueError("; ".join(line.strip() for line in str(error).splitlines()[1:3]) or str(error)) from error
    return network


def published_names(tensors: Tensors) -> dict[str, Tensor]:
    """Newer files have what makes a map smaller in the stage that reads it; CTransPath's in the one before."""
    if "layers.0.downsample.reduction.weight" in tensors or "layers.1.downsample.reduction.weight" not in tensors:
        return dict(tensors)
    return {
        re.sub(r"^layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", name): tensor
        for name, tensor in tensors.items()
    }


def window_bias(table: Tensor, window: int, side: int, shift: int) -> Tensor:
    """What is added to attention in each window, windows x heads x tokens x tokens, of a map of `side` x `side`.

    `table`, (2 * window - 1)^2 x heads, is of relative positions. Where the map was rolled by `shift`, tokens that were
    no neighbours before are kept apart.
    """
    place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    relative = place[:, :, None] - place[:, None, :] + window - 1
    bias = table[relative[0] * (2 * window - 1) + relative[1]].permute(2, 0, 1)[None]
    if not shift:
        return bias.contiguous()
    stretch = torch.zeros(side, dtype=torch.int64)
    stretch[-window:-shift], stretch[-shift:] = 1, 2
    region = split_windows((3 * stretch[:, None] + stretch)[None, :, :, None], window)[0, :, :, 0]
    apart = APART * (region[:, :, None] != region[:, None, :]).to(table.dtype)
    return bias + apart[:, None]


def split_windows(maps: Tensor, window: int) -> Tensor:
    """Maps, N x side x side x width, to N x windows x tokens x width."""
    n, side, _, width = maps.shape
    across = side // window
    return maps.view(n, across, window, across, window, width).transpose(2, 3).reshape(n, across**2, window**2, width)


def join_windows(windows: Tensor, side: int) -> Tensor:
    """What `split_windows` takes apart."""
    n, n_windows, tokens, width = windows.shape
    across, window = math.isqrt(n_windows), math.isqrt(tokens)
    return windows.view(n, across, across, window, window, width).transpose(2, 3).reshape(n, side, side, width)


class Swin(nn.Module):
    """Features, N x width, of normalised pixels, N x 3 x P x P: the mean of its last map."""

    def __init__(self, tensors: Tensors, patch_px: int) -> None:
        super().__init__()
        self.patch_embed = ConvolutionalStem(tensors)
        n_stages = len({name.split(".")[1] for name in tensors if name.startswith("layers.")})
        if patch_px % (TOKEN_PX << (n_stages - 1)):
            raise ValueError(f"its maps do not divide patches of {patch_px} px")
        side = patch_px // TOKEN_PX
        self.layers = nn.Sequential(*(Stage(tensors, f"layers.{i}.", side >> i) for i in range(n_stages)))
        self.n_features = tensors["norm.weight"].shape[0]
        self.norm = nn.LayerNorm(self.n_features)

    def maps(self, pixels: Tensor) -> Tensor:
        """The last map before its mean is taken, N x width x side x side."""
        return self.norm(self.layers(self.patch_embed(pixels))).permute(0, 3, 1, 2)  # type: ignore[no-any-return]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.maps(pixels).mean(dim=(2, 3))


class ConvolutionalStem(nn.Module):
    """Maps, N x P/4 x P/4 x width, of pixels: two 3 x 3 convolutions that halve the map, and one of 1 x 1."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        first, second, width = (tensors[f"patch_embed.proj.{i}.weight"].shape[0] for i in (0, 3, 6))
        self.proj = nn.Sequential(
            nn.Conv2d(3, first, 3, 2, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU(),
            nn.Conv2d(first, second, 3, 2, 1, bias=False), nn.BatchNorm2d(second), nn.ReLU(),
            nn.Conv2d(second, width, 1),
        )  # fmt: skip
        self.norm = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.norm(self.proj(pixels).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


class Stage(nn.Module):
    """Blocks over maps of `side` x `side`, every second of which rolls its windows by half, then a smaller map."""

    def __init__(self, tensors: Tensors, prefix: str, side: int) -> None:
        super().__init__()
        depth = len({name.split(".")[3] for name in tensors if name.startswith(f"{prefix}blocks.")})
        self.blocks = nn.Sequential(*(Block(tensors, f"{prefix}blocks.{i}.", side, i % 2 == 1) for i in range(depth)))
        reduces = f"{prefix}downsample.reduction.weight" in tensors
        self.downsample = Merging(tensors, f"{prefix}downsample.") if reduces else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        return self.downsample(self.blocks(maps))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, tensors: Tensors, prefix: str, side: int, shifted: bool) -> None:
        super().__init__()
        width = tensors[f"{prefix}norm1.weight"].shape[0]
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(tensors, f"{prefix}attn.", side, shifted)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, tensors[f"{prefix}mlp.fc1.weight"].shape[0])

    def forward(self, maps: Tensor) -> Tensor:
        maps = maps + self.attn(self.norm1(maps))
        return maps + self.mlp(self.norm2(maps))  # type: ignore[no-any-return]


class WindowAttention(nn.Module):
    """Attention among the tokens of each window of the map, which is rolled by half a window where it is `shifted`."""

    def __init__(self, tensors: Tensors, prefix: str, side: int, shifted: bool) -> None:
        super().__init__()
        n_relative, self.heads = tensors[f"{prefix}relative_position_bias_table"].shape
        window, width = (math.isqrt(n_relative) + 1) // 2, tensors[f"{prefix}proj.weight"].shape[0]
        if window > side or side % window or width % self.heads:
            raise ValueError(f"windows of {window} tokens do not fill its maps of {side}")
        self.side, self.window = side, window
        self.shift = window // 2 if shifted and side > window else 0
        n_windows = (side // window) ** 2 if self.shift else 1
        self.bias = nn.Parameter(torch.empty(n_windows, self.heads, window**2, window**2))
        self.qkv = nn.Linear(width, 3 * width, bias=f"{prefix}qkv.bias" in tensors)
        self.proj = nn.Linear(width, width)

    def forward(self, maps: Tensor) -> Tensor:
        n = maps.shape[0]
        if self.shift:
            maps = torch.roll(maps, (-self.shift, -self.shift), (1, 2))
        windows = split_windows(maps, self.window)
        n_windows, tokens, width = windows.shape[1:]
        q, k, v = (
            part.view(n, n_windows, tokens, self.heads, width // self.heads).transpose(2, 3)
            for part in self.qkv(windows).chunk(3, dim=-1)
        )
        weights = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + self.bias, dim=-1)
        read = (weights @ v).transpose(2, 3).reshape(n, n_windows, tokens, width)
        maps = join_windows(self.proj(read), self.side)
        return torch.roll(maps, (self.shift, self.shift), (1, 2)) if self.shift else maps


class MLP(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class Merging(nn.Module):
    """Each 2 x 2 tokens, put behind one another column by column, to one of another width."""

    def __init__(self, tensors: Tensors, prefix: str) -> None:
        super().__init__()
        outputs, inputs = tensors[f"{prefix}reduction.weight"].shape
        self.norm = nn.LayerNorm(inputs)
        self.reduction = nn.Linear(inputs, outputs, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        n, side, _, width = maps.shape
        squares = maps.view(n, side // 2, 2, side // 2, 2, width).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(squares))  # type: ignore[no-any-return]
