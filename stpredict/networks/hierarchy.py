"""HIPT's frozen features of a slide, by two Vision Transformers one above the other (Chen et al. 2022, CVPR, "Scaling
Vision Transformers to Gigapixel Images via Hierarchical Self-Supervised Learning").

The slide is laid out in tiles of 256 px. The lower network looks at the squares of 16 px of a tile (here: superpixels,
8 um at 0.5 um per pixel) and says something of each and of the tile. The upper one looks at what was said of the tiles,
of a region or of the whole slide, and says more of each. The weights are the user's.

What the lower network says is made once of each tile (`describe`); the tiles about a spot are given to `superpixels`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stpredict.networks.trunks.vit import random_vit

TILE_PX, SUPERPIXEL_PX = 256, 16
#: Superpixels along the side of a tile, and in it.
ACROSS = TILE_PX // SUPERPIXEL_PX
IN_TILE = ACROSS**2
#: Tiles along the side of the square that a spot is read from, its own in the middle.
SIDE = 3
#: The networks' positions are of so many squares along a side.
POSITIONS = 14
#: Tiles along the side of a region of HIPT's.
REGION = 16


@dataclass(frozen=True)
class HierarchySizes:
    """Of the two networks; by default the published ones'."""

    tile_width: int = 384
    tile_depth: int = 12
    tile_heads: int = 6
    region_width: int = 192
    region_depth: int = 6
    region_heads: int = 6


def resample_positions(embedding: Tensor, rows: int, columns: int) -> Tensor:
    """Position embeddings, 1 x (1 + 14^2) x C, for a grid: HIPT's way, in which `(n + 0.1) / 14`, not the ratio of the
    sizes, is the step between places that are read, and nothing is smoothed before."""
    if (rows, columns) == (POSITIONS, POSITIONS):
        return embedding
    grid = embedding[:, 1:].reshape(1, POSITIONS, POSITIONS, -1).permute(0, 3, 1, 2)
    scale = ((rows + 0.1) / POSITIONS, (columns + 0.1) / POSITIONS)
    read = F.interpolate(grid, scale_factor=scale, mode="bicubic", align_corners=False, recompute_scale_factor=False)
    return torch.cat([embedding[:, :1], read.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


class RegionViT(nn.Module):
    """Of a grid of tiles, 1 x C x rows x columns, one token of all and one of each, row by row: 1 x tokens x width."""

    def __init__(self, channels: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        like = random_vit(width, (depth,), POSITIONS * SUPERPIXEL_PX, heads)
        self.cls_token, self.pos_embed, self.blocks, self.norm = like.cls_token, like.pos_embed, like.blocks, like.norm
        self.phi = nn.Sequential(nn.Linear(channels, width), nn.GELU())

    def forward(self, grid: Tensor) -> Tensor:
        assert self.cls_token is not None
        assert self.pos_embed is not None
        x = torch.cat([self.cls_token, self.phi(grid.flatten(2).transpose(1, 2))], dim=1)
        return self.norm(self.blocks(x + resample_positions(self.pos_embed, *grid.shape[2:])))  # type: ignore[no-any-return]


class Hierarchy(nn.Module):
    """Both networks, frozen. `region` is the tiles along the side of a region, None for the whole slide in one."""

    side = SIDE
    positions = learnt = None  # it knows as many columns and rows of spots as there are

    def __init__(self, sizes: HierarchySizes, region: int | None) -> None:
        super().__init__()
        if sizes.tile_width % sizes.tile_heads or sizes.region_width % sizes.region_heads:
            raise ValueError("its widths do not divide into its heads")
        self.region = region
        self.tile_vit = random_vit(sizes.tile_width, (sizes.tile_depth,), POSITIONS * SUPERPIXEL_PX, sizes.tile_heads)
        self.region_vit = RegionViT(sizes.tile_width, sizes.region_width, sizes.region_depth, sizes.region_heads)
        self.tile_width, self.region_width = sizes.tile_width, sizes.region_width
        self.n_described = sizes.tile_width + IN_TILE * (sizes.tile_width + 3)
        self.n_superpixel = sizes.region_width + sizes.tile_width + 3
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> Hierarchy:  # noqa: ARG002
        """It stays as it is."""
        return super().train(False)

    def describe(self, tiles: Tensor) -> Tensor:
        """Of tiles, uint8 N x 256 x 256 x 3: what is said of each, then of its superpixels, and their mean colours."""
        scaled = tiles.permute(0, 3, 1, 2).float() / 255
        assert self.tile_vit.pos_embed is not None
        tokens = self.tile_vit.tokens((scaled - 0.5) / 0.5, resample_positions(self.tile_vit.pos_embed, ACROSS, ACROSS))
        colours = F.avg_pool2d(scaled, SUPERPIXEL_PX).permute(0, 2, 3, 1).flatten(1, 2)
        return torch.cat([tokens[:, 0], torch.cat([tokens[:, 1:], colours], dim=2).flatten(1)], dim=1)

    def tile_tokens(self, of_tiles: Tensor, cells: Tensor) -> Tensor:
        """What the upper network says of tiles, m x region_width, from what the lower one said, m x tile_width.

        `cells` (m x 2, int64) are their rows and columns; those of each region fill a rectangle. Where there are
        several layouts of tiles, the number of a tile's layout stands before these (m x 3).
        """
        layout, cells = cells[:, :-2], cells[:, -2:]
        region = torch.cat([layout, cells // self.region if self.region else torch.zeros_like(cells)], dim=1)
        out = of_tiles.new_zeros(len(cells), self.region_width, dtype=torch.float32)
        for one in torch.unique(region, dim=0):
            own = (region == one).all(dim=1).nonzero()[:, 0]
            first, last = cells[own].amin(dim=0), cells[own].amax(dim=0)
            n_rows, n_columns = (last - first + 1).tolist()
            place = (cells[own] - first) @ cells.new_tensor([n_columns, 1])
            if len(own) != n_rows * n_columns:
                raise ValueError("some tiles of a region are missing")
            grid = of_tiles.new_empty(len(own), of_tiles.shape[1], dtype=torch.float32)
            grid[place] = of_tiles[own].float()
            said: Tensor = self.region_vit(grid.T.reshape(1, -1, n_rows, n_columns))
            out[own] = said[0, 1:][place]
        return out

    def superpixels(
        self, described: Tensor, absent: Tensor, tile_tokens: Tensor, inside: Tensor, reach: tuple[int, int]
    ) -> Tensor:
        """Superpixels about N spots, N x s x s x n_superpixel: what is said of their tiles and of them, their colours.

        The 3 x 3 tiles about a spot are `described` (N x 9 x n_described), some lie off the slide and are `absent`
        (N x 9), the upper network said `tile_tokens` of them (N x 9 x region_width); the spot's own superpixel is that
        `inside` the middle one (N x 2, row and column). Superpixels of `reach` before and after it are given. Those
        off the slide are mirrored, the outermost repeated.
        """
        here = torch.arange(-reach[0], reach[1] + 1, device=inside.device)
        rows, columns = (
            mirrored(ACROSS + inside[:, axis, None] + here, absent.view(-1, SIDE, SIDE).select(2 - axis, 1))
            for axis in (0, 1)
        )
        tile = (rows // ACROSS)[:, :, None] * SIDE + (columns // ACROSS)[:, None]
        place = (rows % ACROSS)[:, :, None] * ACROSS + (columns % ACROSS)[:, None]
        spot = torch.arange(len(inside), device=inside.device)[:, None, None]
        of_superpixels = described[:, :, self.tile_width :].reshape(*described.shape[:2], IN_TILE, self.tile_width + 3)
        return torch.cat([tile_tokens[spot, tile], of_superpixels[spot, tile, place].float()], dim=3)

    def alone(self, patches: Tensor) -> dict[str, Any]:
        """What `superpixels` takes, but for the reach, of patches as if each were all that there is of its slide.

        A smaller patch is the middle of a white tile; of a larger one the middle is the tile.
        """
        margin = TILE_PX - patches.shape[1]
        before = margin // 2
        tiles = F.pad(patches, (0, 0, before, margin - before, before, margin - before), value=255)
        described = self.describe(tiles)
        around = described.new_zeros(len(tiles), SIDE**2, described.shape[1])
        around[:, SIDE**2 // 2] = described
        tokens = described.new_zeros(len(tiles), SIDE**2, self.region_width)
        nowhere = torch.zeros(1, 2, dtype=torch.int64, device=patches.device)
        for i, one in enumerate(described[:, : self.tile_width]):
            tokens[i, SIDE**2 // 2] = self.tile_tokens(one[None], nowhere)[0]
        absent = torch.arange(SIDE**2, device=patches.device) != SIDE**2 // 2
        return {
            "described": around, "absent": absent.expand(len(tiles), -1), "tile_tokens": tokens,
            "inside": torch.full((len(tiles), 2), ACROSS // 2, device=patches.device),
        }  # fmt: skip


def mirrored(places: Tensor, absent: Tensor) -> Tensor:
    """Rows, or columns, of superpixels (N x s) in 3 tiles, of which some at either end are `absent` (N x 3)."""
    first, last = ACROSS * absent[:, :1].long(), ACROSS * (SIDE - absent[:, -1:].long())
    places = torch.where(places < first, 2 * first - 1 - places, places)
    return torch.where(places >= last, 2 * last - 1 - places, places)


def box_means(values: Tensor, width: int) -> Tensor:
    """Means over squares of `width` x `width` of N x s x t x C. Of s and t come `width` - 1 fewer."""
    return values.unfold(1, width, 1).mean(dim=-1).unfold(2, width, 1).mean(dim=-1)


def in_disk(radius: float, device: torch.device | None = None) -> Tensor:
    """Which superpixels (s x s) lie within a `radius` of the middle one, in superpixels."""
    away = torch.arange(-int(radius), int(radius) + 1, device=device)
    return away[:, None] ** 2 + away**2 <= radius**2
