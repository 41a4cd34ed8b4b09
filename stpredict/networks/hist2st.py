"""Hist2ST (Zeng et al. 2022, Briefings in Bioinformatics 23:bbac297).

All spots of a section are read at once. A small convolutional network makes one token of each patch; learnt embeddings
of column and row are added, and pre-norm blocks let all tokens read one another. In each of four graph layers a spot
then reads its four nearest, and an LSTM reads the outputs of these layers; a norm and a linear head follow. Pixels are
0 to 255, as in the released code, and laid out column by column.

Further heads are for training alone: they say how the counts are distributed, and how far a view is to be believed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch.nn import functional as F

from stpredict.networks.head import Head, Link
from stpredict.networks.histogene import POSITIONS, Places, middle_columns
from stpredict.networks.mixing import Block, by_rows

#: Spots that one reads, and how far away they are at most, in columns and rows.
N_NEAREST, NEAR = 4, 2.0
#: Candidates for these; of equally near ones those that come first in the spots' order are taken.
CANDIDATES = 16
#: Spots at a time whose graph is followed, and that the LSTM reads.
GRAPH_ROWS, LSTM_ROWS = 4096, 512
#: Bounds of the distribution's mean and dispersion, as released, and what keeps logarithms finite.
MEAN_BOUNDS, DISPERSION_BOUNDS, EPSILON = (1e-5, 1e6), (1e-4, 1e4), 1e-10


@dataclass(frozen=True)
class Hist2STConfig:
    """Sizes of one Hist2ST; by default those of its authors.

    It looks at the middle `image_px` of patches of `patch_px`, in squares of `square_px`; a spot's token has `squares`
    channels of each square. Spots lie in as many columns and rows as there are `positions`, or in fewer;
    the first `learnt` of them had spots in training.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = (
        "image_px", "square_px", "channels", "squares", "kernel", "mixers", "depth", "heads", "head_dim", "graph_depth",
        "dropout",
    )  # fmt: skip

    n_genes: int
    image_px: int = 112
    square_px: int = 7
    channels: int = 32
    squares: int = 4
    kernel: int = 5
    mixers: int = 2
    depth: int = 8
    heads: int = 16
    head_dim: int = 64
    graph_depth: int = 4
    dropout: float = 0.2
    positions: int = POSITIONS
    learnt: int = POSITIONS
    patch_px: int = 224
    link: Link = "identity"

    @property
    def width(self) -> int:
        """Channels of a spot's token."""
        return (self.image_px // self.square_px) ** 2 * self.squares


#: The authors', and as M2ORT's authors ran it, of 224 px.
HIST2STS: dict[str, dict[str, Any]] = {"hist2st": {}, "hist2st-224": {"image_px": 224}}


def nearest_spots(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Of each spot in `cells` (n x 2): its four nearest, n x 4, and their weights, which are equal and sum to 1.

    Those farther than 2 are left out; a spot without any reads itself, where the released code divides 0 by 0.
    """
    places = cells.cpu().numpy()
    k = min(CANDIDATES, len(places))
    distance, index = (
        np.reshape(found, (len(places), k))
        for found in cKDTree(places).query(places, k, distance_upper_bound=NEAR + 1e-6)
    )
    own = np.arange(len(places))[:, None]
    distance = np.where(index == own, np.inf, distance)
    order = np.lexsort((index, distance), axis=1)[:, :N_NEAREST]
    there = np.isfinite(np.take_along_axis(distance, order, axis=1))
    nearest = np.where(there, np.take_along_axis(index, order, axis=1), own)
    there[:, 0] |= ~there.any(axis=1)  # itself
    weights = there / there.sum(axis=1, keepdims=True)
    return torch.from_numpy(nearest).to(cells.device), torch.from_numpy(weights).float().to(cells.device)


def row_by_row(cells: Tensor) -> Tensor:
    """The spots in `cells` (n x 2) in the order of their rows, and in a row of their columns: n."""
    row, column = (cells - cells.min(dim=0).values).unbind(dim=1)
    return torch.argsort(row * (column.max() + 1) + column, stable=True)


class Mixer(nn.Module):
    """Maps N x channels x s x s: each channel is mixed over places and added to, then the channels of each place."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()

        def over_places() -> list[nn.Module]:
            return [nn.Conv2d(channels, channels, kernel, groups=channels, padding="same"), nn.BatchNorm2d(channels),
                    nn.GELU()]  # fmt: skip

        self.places = nn.Sequential(*over_places(), *over_places())
        self.channels = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GELU(), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.channels(x + self.places(x))  # type: ignore[no-any-return]


class Hist2ST(nn.Module):
    """Expression of `n_genes` from the patches of all spots of a slide and where they lie."""

    side = 1  # of the patches around a spot that it looks at: its own alone

    def __init__(self, config: Hist2STConfig) -> None:
        super().__init__()
        if config.image_px > config.patch_px or config.image_px % config.square_px:
            raise ValueError(
                f"it looks at {config.image_px} px in squares of {config.square_px}, of patches of {config.patch_px} px"
            )
        self.config = config
        c, width, n_genes = config.channels, config.width, config.n_genes
        self.n_described, self.positions, self.learnt = width, config.positions, config.learnt
        self.patch_embedding = nn.Conv2d(3, c, config.square_px, stride=config.square_px)
        self.dropout = nn.Dropout(config.dropout)
        self.mixers = nn.Sequential(*(Mixer(c, config.kernel) for _ in range(config.mixers)))
        self.down = nn.Conv2d(c, config.squares, 1)
        self.places = Places(config.positions, width)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, width, config.dropout, config.head_dim) for _ in range(config.depth)
        )
        self.graph = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(config.graph_depth))
        for layer in self.graph:
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
        self.lstm = nn.LSTM(width, width, 2)
        self.norm = nn.LayerNorm(width)
        self.head = Head(width, n_genes, config.link)
        self.mean, self.dispersion, self.dropped = (nn.Linear(width, n_genes) for _ in range(3))
        self.belief = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def describe(self, patches: Tensor) -> Tensor:
        """A token of each patch, uint8 N x P x P x 3, wherever it lies: N x C."""
        pixels = middle_columns(patches, self.config.image_px).permute(0, 3, 1, 2)
        maps = self.mixers(self.dropout(self.patch_embedding(pixels)))
        return self.down(maps).flatten(1)  # type: ignore[no-any-return]

    def spot_states(self, features: Tensor, cells: Tensor) -> Tensor:
        """What all heads read, n x C, of all spots of a slide: their patches' tokens (n x C) and their cells."""
        return self.gather(self.mix(self.places(features, cells)[None]), *nearest_spots(cells), row_by_row(cells))

    def mix(self, x: Tensor) -> Tensor:
        """Tokens of slides, N x spots x C, after they have read one another, those of all slides in one list: n x C."""
        for block in self.blocks:
            x = block(x)
        return x.flatten(0, 1)

    def gather(self, x: Tensor, nearest: Tensor, weights: Tensor, order: Tensor | None = None) -> Tensor:
        """Tokens n x C after each has read its `nearest` (n x 4) so often, and the LSTM all that came of it.

        Some spots at a time, so that no layer is held of all. Those of a part read few others where it is compact, so
        the parts are cut from an `order` (n) in which near spots follow one another.
        """
        order = torch.arange(len(x), device=x.device) if order is None else order
        states = torch.empty_like(x)
        for spots in torch.split(order, GRAPH_ROWS):
            states[spots] = self.follow(spots, x, nearest, weights)
        return states

    def follow(self, spots: Tensor, x: Tensor, nearest: Tensor, weights: Tensor) -> Tensor:
        """What `gather` gives of some spots (k): k x C.

        Each graph layer is computed of these and of those that the next layer reads.
        """
        wanted = [spots]
        for _ in self.graph[1:]:
            wanted.insert(0, torch.unique(torch.cat([spots, nearest[wanted[0]].flatten()])))
        place = torch.arange(len(x), device=x.device)  # of each spot among those that the layer before was computed of
        layers = []
        for layer, rows in zip(self.graph, wanted, strict=True):
            x = self.read_nearest(x, layer, place[nearest[rows]], weights[rows])
            place[rows] = torch.arange(len(rows), device=x.device)
            layers.append(x[place[spots]])
        numbers = torch.arange(len(spots), device=x.device)[None]
        return by_rows(lambda part: self.lstm(torch.stack([g[part[0]] for g in layers]))[0].mean(0)[None],
                       numbers, LSTM_ROWS)[0]  # fmt: skip

    def read_nearest(self, x: Tensor, layer: Callable[[Tensor], Tensor], nearest: Tensor, weights: Tensor) -> Tensor:
        """One graph layer: of some spots (k) whose `nearest` (k x 4) are rows of `x`, k x C."""

        def work(part: Tensor) -> Tensor:
            mean = sum(weights[part[0], i, None] * x[nearest[part[0], i]] for i in range(nearest.shape[1]))
            return F.normalize(F.relu(layer(mean)), dim=1)[None]  # type: ignore[arg-type]

        return by_rows(work, torch.arange(len(nearest), device=x.device)[None])[0]

    def global_tokens(self, features: Tensor, cells: Tensor) -> Tensor:
        """What the head reads, n x C, of all spots of a slide: their patches' tokens (n x C) and their cells.

        `cells` (n x 2, int64) are row and column of each spot in the slide's own grid.
        """
        return self.norm(self.spot_states(features, cells))  # type: ignore[no-any-return]

    def read_spots(self, _patches: Tensor, _neighbours: Tensor, _absent: Tensor, global_tokens: Tensor) -> Tensor:
        """Expression, N x genes, of N spots from their global tokens (N x C), which hold all that there is."""
        return self.head(global_tokens)  # type: ignore[no-any-return]

    def forward(self, patches: Tensor) -> Tensor:
        """Patches, uint8 N x P x P x 3, to float32 N x genes, as if each spot were all that there is of its slide."""
        return self.head(self.features(patches))  # type: ignore[no-any-return]

    def features(self, patches: Tensor) -> Tensor:
        """What the head reads, N x C, as if each spot were all that there is of its slide."""
        n, device = len(patches), patches.device
        x = self.mix(self.places(self.describe(patches), torch.zeros(n, 2, dtype=torch.int64, device=device))[:, None])
        itself = torch.arange(n, device=device)[:, None]
        return self.norm(self.gather(x, itself, torch.ones(n, 1, device=device)))  # type: ignore[no-any-return]

    def distribution(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, dispersion and share of dropped counts, n x genes each, that the counts are distributed with."""
        return (
            self.mean(states).exp().clamp(*MEAN_BOUNDS),
            F.softplus(self.dispersion(states)).clamp(*DISPERSION_BOUNDS),
            torch.sigmoid(self.dropped(states)),
        )

    def cast(self, _dtype: torch.dtype) -> Hist2ST:
        """Nothing is cast: it was tried in fp32 alone."""
        return self


def zinb_loss(counts: Tensor, size: Tensor, mean: Tensor, dispersion: Tensor, dropped: Tensor) -> Tensor:
    """Mean negative log likelihood of counts, n x genes, by a zero-inflated negative binomial distribution.

    Its mean is `mean` times the spots' `size`, n: their sum of counts over that of the section's median spot.
    """
    mean = mean * size[:, None]

    def log(x: Tensor) -> Tensor:
        return torch.log(x + EPSILON)

    no_counts = torch.pow(dispersion / (dispersion + mean + EPSILON), dispersion)
    counted = (
        torch.lgamma(dispersion + EPSILON) + torch.lgamma(counts + 1) - torch.lgamma(counts + dispersion + EPSILON)
        + (dispersion + counts) * torch.log(1 + mean / (dispersion + EPSILON))
        + counts * (log(dispersion) - log(mean)) - log(1 - dropped)
    )  # fmt: skip
    return torch.where(counts == 0, -log(dropped + (1 - dropped) * no_counts), counted).mean()


def distil(predictions: Tensor, beliefs: Tensor) -> Tensor:
    """One prediction, n x genes, of several views', by how far each spot's is believed, views x n x 1."""
    return (torch.softmax(beliefs, dim=0) * predictions).sum(dim=0)


def turned(images: Tensor, degrees: float) -> Tensor:
    """Images, N x P x P x 3, turned about their centre: nearest pixels, black beyond the edges."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    about = torch.tensor([[c, -s, 0], [s, c, 0]], device=images.device).expand(len(images), -1, -1)
    maps = images.permute(0, 3, 1, 2).float()
    places = F.affine_grid(about, list(maps.shape), align_corners=False)
    return F.grid_sample(maps, places, mode="nearest", align_corners=False).permute(0, 2, 3, 1)


#: Names of the released code (biomed-AI/Hist2ST 7480e5d), and those here.
RELEASED = (
    (r"vit\.transformer\.layer1\.(\d+)\.dw\.", r"mixers.\1.places."),
    (r"vit\.transformer\.layer1\.(\d+)\.pw\.", r"mixers.\1.channels."),
    (r"vit\.transformer\.down\.0\.", "down."),
    (r"vit\.transformer\.layer2\.(\d+)\.attn\.norm\.", r"blocks.\1.norm."),
    (r"vit\.transformer\.layer2\.(\d+)\.attn\.fn\.to_qkv\.", r"blocks.\1.attention.qkv."),
    (r"vit\.transformer\.layer2\.(\d+)\.attn\.fn\.to_out\.0\.", r"blocks.\1.attention.out."),
    (r"vit\.transformer\.layer2\.(\d+)\.ff\.norm\.", r"blocks.\1.mlp.0."),
    (r"vit\.transformer\.layer2\.(\d+)\.ff\.fn\.net\.0\.", r"blocks.\1.mlp.1."),
    (r"vit\.transformer\.layer2\.(\d+)\.ff\.fn\.net\.3\.", r"blocks.\1.mlp.4."),
    (r"vit\.transformer\.layer3\.(\d+)\.weight", r"graph.\1.weight"),
    (r"vit\.transformer\.jknet\.0\.", "lstm."),
    (r"x_embed\.", "places.column."),
    (r"y_embed\.", "places.row."),
    (r"gene_head\.0\.", "norm."),
    (r"gene_head\.1\.", "head."),
    (r"mean\.0\.", "mean."),
    (r"disp\.0\.", "dispersion."),
    (r"pi\.0\.", "dropped."),
    (r"coef\.", "belief."),
)
