"""TRIPLEX (Chung et al. 2024, CVPR, "Accurate Spatial Gene Expression Prediction by Integrating Multi-Resolution
Features").

Three views of a spot are read: the target, its patch, by a ResNet18 that is trained; the neighbours, the 5 x 5 patches
around and of it, through a frozen ResNet18; and the global view, what the frozen ResNet18 says of the patches of all
spots of the slide. The spot's global token asks the tokens of the other two, which gives the fused token. Four linear
heads read that token and the three views. Equation numbers are the paper's. What its ablations (tables 1, 3, 4 and 5)
leave out or exchange are fields of the configuration.

The frozen features do not depend on what is trained, so they are made once (`describe`) and given to `read_spots`.
Attention over all spots of a slide takes memory in proportion to them, not to their square.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stpredict.networks.draws import mean_of_items
from stpredict.networks.head import Head, Link
from stpredict.networks.mixing import Block
from stpredict.networks.trunks.pixels import ImageNetPixels
from stpredict.networks.trunks.resnet import ResNet

#: Patches along the side of the neighbourhood; the target is the middle one.
SIDE = 5
N_NEIGHBOURS = SIDE * SIDE
TARGET = N_NEIGHBOURS // 2
#: Of the fusion loss (eq. 14), how much the fused head's prediction counts against what was measured.
ALPHA = 0.3

View = Literal["target", "neighbour", "global"]
VIEWS: tuple[View, ...] = get_args(View)
PARTS = ("neighbour", "global", "fusion")


@dataclass(frozen=True)
class TriplexConfig:
    """Sizes and parts of one TRIPLEX; by default those of the paper's HER2+ data. `*_mlp` are widths over `channels`.

    `reads` are the views that it has; one alone is read by its own encoder and head (TEM, NEM or GEM), and without the
    global view the mean of the target's tokens asks in its place. `position` of spots: APEG, the usual PEG over tokens
    that lie in a square in their order (table 4), or none. `fusion`: the paper's layer, or of each view's mean token
    the sum, all joined, or attention pooling (table 5; Ilse et al. 2018, eq. 8). Without `fusion_loss` the fused head
    is trained alone (eq. 15); with an `alpha` of 0 the others are trained, but learn nothing from it.
    Raises ValueError for parts that do not go together.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = (
        "reads", "position", "fusion", "fusion_loss", "alpha", "channels", "fusion_depth", "fusion_heads", "fusion_mlp",
        "fusion_dropout", "global_depth", "global_heads", "global_mlp", "global_dropout", "neighbour_depth",
        "neighbour_heads", "neighbour_mlp", "neighbour_dropout", "trunk_width",
    )  # fmt: skip

    n_genes: int
    channels: int = 512
    fusion_depth: int = 1
    fusion_heads: int = 4
    fusion_mlp: int = 4
    fusion_dropout: float = 0.2
    global_depth: int = 3
    global_heads: int = 16
    global_mlp: int = 4
    global_dropout: float = 0.1
    neighbour_depth: int = 3
    neighbour_heads: int = 16
    neighbour_mlp: int = 1
    neighbour_dropout: float = 0.3
    patch_px: int = 224
    trunk_width: int = 64  # of a ResNet18's first layer; its features are eight times as wide
    neighbour_norm: bool = True  # a norm after the neighbour blocks, as released; models of older versions have none
    link: Link = "identity"
    reads: tuple[View, ...] = VIEWS
    position: Literal["apeg", "peg", "none"] = "apeg"
    fusion: Literal["layer", "sum", "concat", "attention"] = "layer"
    fusion_loss: bool = True
    alpha: float = ALPHA

    def __post_init__(self) -> None:
        object.__setattr__(self, "reads", tuple(self.reads))  # of a card it is a list
        if not self.reads or self.reads != tuple(view for view in VIEWS if view in self.reads):
            raise ValueError(f"reads are some of {', '.join(VIEWS)}, in this order")
        if not 0 <= self.alpha <= 1 or not all(0 <= self.sizes(part)[2] < 1 for part in PARTS):
            raise ValueError("alpha is from 0 to 1, and a dropout from 0 to below 1")
        if min(self.channels, self.trunk_width, *(size for part in PARTS for size in self.sizes(part)[:2])) < 1:
            raise ValueError("sizes are positive")

    def sizes(self, part: str) -> tuple[int, int, float]:
        """Depth, heads and dropout of one of PARTS."""
        depth, heads, dropout = (getattr(self, f"{part}_{size}") for size in ("depth", "heads", "dropout"))
        return depth, heads, dropout

    @property
    def reads_slide(self) -> bool:
        """Is more read than the spot's own patch?"""
        return self.reads != ("target",)


#: The paper's settings for HER2+ (Andersson et al.), for breast cancer (He et al.), and for squamous cell carcinoma.
SETTINGS: dict[str, dict[str, Any]] = {
    "triplex": {},
    "triplex-bc2": {
        "fusion_depth": 3, "fusion_heads": 16, "fusion_mlp": 4, "fusion_dropout": 0.4,
        "global_depth": 3, "global_heads": 8, "global_mlp": 2, "global_dropout": 0.1,
        "neighbour_depth": 4, "neighbour_heads": 8, "neighbour_mlp": 4, "neighbour_dropout": 0.3,
    },
    "triplex-scc": {
        "fusion_depth": 2, "fusion_heads": 8, "fusion_mlp": 4, "fusion_dropout": 0.1,
        "global_depth": 2, "global_heads": 16, "global_mlp": 1, "global_dropout": 0.1,
        "neighbour_depth": 4, "neighbour_heads": 16, "neighbour_mlp": 1, "neighbour_dropout": 0.3,
    },
}  # fmt: skip


class PositionEncoding(nn.Module):
    """The atypical position encoding generator, APEG (section 3.3): a 3 x 3 convolution of each channel over the grid
    that the slide's spots lie on. Spots of one cell share their mean; cells without spots are zero.

    Only cells with spots are held, however far apart they lie. As in the released code, what comes out replaces the
    tokens, and is not added to them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.uniform_(self.weight, -1 / 3, 1 / 3)  # as torch's convolutions begin

    def forward(self, tokens: Tensor, cells: Tensor) -> Tensor:
        """Tokens n x C of spots in `cells` (n x 2, row and column) to n x C."""
        cells = cells - cells.min(dim=0).values + 1
        width = int(cells[:, 1].max()) + 2  # an empty column on either side keeps rows apart
        keys, cell_of = torch.unique(cells[:, 0] * width + cells[:, 1], return_inverse=True)
        count = torch.bincount(cell_of, minlength=len(keys)).to(tokens.dtype)
        held = torch.zeros(len(keys), tokens.shape[1], dtype=tokens.dtype, device=tokens.device)
        held = held.index_add(0, cell_of, tokens) / count[:, None]
        out = self.bias.expand_as(held)
        for row in range(3):
            for column in range(3):
                wanted = keys + (row - 1) * width + (column - 1)
                found = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
                there = (keys[found] == wanted).to(tokens.dtype)
                out = out + self.weight[:, row, column] * held[found] * there[:, None]
        return out[cell_of]


class Triplex(nn.Module):
    """Expression of `n_genes` from a spot's patch, its neighbours and all spots of its slide."""

    positions = learnt = None  # it knows as many columns and rows of spots as there are

    def __init__(self, config: TriplexConfig) -> None:
        super().__init__()
        self.config = config
        self.neighbour_blocks: nn.ModuleList
        self.global_blocks: nn.ModuleList
        self.fusion_blocks: nn.ModuleList
        c, width, reads, several = config.channels, 8 * config.trunk_width, config.reads, len(config.reads) > 1
        self.n_described = width
        self.pixels = ImageNetPixels()
        if config.reads_slide:
            self.frozen = ResNet(width=config.trunk_width).requires_grad_(False)
        if "target" in reads:
            self.trunk = ResNet(width=config.trunk_width)
            self.embed_target = nn.Linear(width, c)
        self.embed_features = nn.Identity() if c == width or reads == ("target",) else nn.Linear(width, c)
        with_blocks = (*reads, "fusion") if several and config.fusion == "layer" else reads
        for part in (part for part in PARTS if part in with_blocks):
            depth, heads, dropout = config.sizes(part)
            mlp = c * getattr(config, f"{part}_mlp")
            self.add_module(f"{part}_blocks", nn.ModuleList(Block(c, heads, mlp, dropout) for _ in range(depth)))
        if "neighbour" in reads:
            of_distances = (config.neighbour_depth, config.neighbour_heads, N_NEIGHBOURS)
            self.position_bias = nn.Parameter(torch.zeros(of_distances))
            self.neighbour_norm = nn.LayerNorm(c) if config.neighbour_norm else nn.Identity()
        if "global" in reads:
            self.position_encoding = PositionEncoding(c) if config.position != "none" else None
            self.global_norm = nn.LayerNorm(c)
        joined = c * len(reads) if config.fusion == "concat" else c
        if several:
            self.fusion_norm = nn.LayerNorm(joined)
        if several and config.fusion == "attention":
            self.attention_pooling = nn.Sequential(nn.Linear(c, c), nn.Tanh(), nn.Linear(c, 1))
        self.head = Head(joined, config.n_genes, config.link)
        for view in reads if several and config.fusion_loss else ():
            self.add_module(f"{view}_head", Head(c, config.n_genes, config.link))
        rows, columns = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")).flatten(1)
        apart = [(places[:, None] - places).abs() for places in (rows, columns)]
        self.distance: Tensor
        self.register_buffer("distance", apart[0] * SIDE + apart[1], persistent=False)  # 25 x 25, 0 to 24

    @property
    def first_trunk(self) -> ResNet:
        """The ResNet18 that is taught, or begins with weights of the user's; the frozen one begins as it."""
        return self.trunk if "target" in self.config.reads else self.frozen

    @property
    def side(self) -> int:
        """Patches along the side of what is looked at around a spot."""
        return SIDE if "neighbour" in self.config.reads else 1

    def describe(self, patches: Tensor) -> Tensor:
        """The frozen features of patches, uint8 N x P x P x 3: N x 8 widths, in half precision."""
        with torch.no_grad():
            return self.frozen(self.pixels(patches)).half()  # type: ignore[no-any-return]

    def target_tokens(self, patches: Tensor) -> Tensor:
        """Tokens N x (P / 32)^2 x C of spots' own patches, uint8 N x P x P x 3."""
        return self.embed_target(self.trunk.tokens(self.pixels(patches)))  # type: ignore[no-any-return]

    def global_tokens(self, features: Tensor, cells: Tensor) -> Tensor:
        """Tokens n x C of all spots of a slide from their patches' `features`, n x 8 widths; n x 0 if none are read.

        `cells` (n x 2, int64) are row and column of each spot in the slide's own grid.
        """
        if "global" not in self.config.reads:
            return features.float()[:, :0]
        if self.config.position == "peg":
            side = math.isqrt(len(cells) - 1) + 1  # of the smallest square that holds all
            order = torch.arange(len(cells), device=cells.device)
            cells = torch.stack([order // side, order % side], dim=1)
        x = self.embed_features(features.float())[None]
        for i, block in enumerate(self.global_blocks):
            x = block(x)
            if i == 0 and self.position_encoding is not None:
                x = self.position_encoding(x[0], cells)[None]
        return self.global_norm(x[0])  # type: ignore[no-any-return]

    def neighbour_tokens(self, features: Tensor, absent: Tensor) -> Tensor:
        """Tokens N x 25 x C of neighbourhoods, N x 25 x 8 widths; those `absent` (N x 25) are not attended to."""
        x = self.embed_features(features.float())
        unseen = hide(absent)
        for block, bias in zip(self.neighbour_blocks, self.position_bias, strict=True):
            x = block(x, bias=bias[:, self.distance] + unseen)
        return self.neighbour_norm(x)  # type: ignore[no-any-return]

    def forward(self, patches: Tensor) -> Tensor:
        """Patches, uint8 N x P x P x 3, to float32 N x genes, as if each spot were all that there is of its slide.

        Engines are checked by it: it runs all of the network. Slides are read by `read_spots`.
        """
        return self.head(self.features(patches))  # type: ignore[no-any-return]

    def features(self, patches: Tensor) -> Tensor:
        """What the head reads, N x C, as if each spot were all that there is of its slide."""
        if not self.config.reads_slide:
            return self.target_tokens(patches).mean(dim=1)
        described, nowhere = self.describe(patches), torch.zeros(1, 2, dtype=torch.int64, device=patches.device)
        neighbours = described.new_zeros(len(described), N_NEIGHBOURS, described.shape[1])
        neighbours[:, TARGET] = described
        absent = (torch.arange(N_NEIGHBOURS, device=patches.device) != TARGET).expand(len(described), -1)
        tokens = torch.cat([self.global_tokens(one[None], nowhere) for one in described])
        return self.fuse(self.views(patches, neighbours, absent, tokens), absent)

    def read_spots(self, patches: Tensor, neighbours: Tensor, absent: Tensor, global_tokens: Tensor) -> Tensor:
        """Expression, N x genes, of N spots: their patches (uint8 N x P x P x 3), the frozen features of their
        neighbours (N x 25 x 8 widths), which of them lie off the slide, and their global tokens (N x C)."""
        views = self.views(patches, neighbours, absent, global_tokens)
        return self.head(self.fuse(views, absent))  # type: ignore[no-any-return]

    def all_outputs(self, patches: Tensor, neighbours: Tensor, absent: Tensor, global_tokens: Tensor) -> list[Tensor]:
        """What the heads say, N x genes each: of the fused token, and of each view where the fusion loss wants it."""
        views = self.views(patches, neighbours, absent, global_tokens)
        outputs = [self.head(self.fuse(views, absent))]
        if len(views) > 1 and self.config.fusion_loss:
            outputs += [self.get_submodule(f"{view}_head")(mean) for view, mean in mean_tokens(views, absent).items()]
        return outputs

    def views(self, patches: Tensor, neighbours: Tensor, absent: Tensor, global_tokens: Tensor) -> dict[View, Tensor]:
        """The tokens of each view that is read, N x tokens x C."""
        made: dict[View, Callable[[], Tensor]] = {
            "target": lambda: self.target_tokens(patches),
            "neighbour": lambda: self.neighbour_tokens(neighbours, absent),
            "global": lambda: global_tokens[:, None],
        }
        return {view: made[view]() for view in self.config.reads}

    def fuse(self, views: Mapping[View, Tensor], absent: Tensor) -> Tensor:
        """What the head reads of the `views`, N x C, or N x C of each where they are joined.

        By the paper's layer (eq. 11 to 13) the global token asks the target's and the neighbours', each on its own,
        through the same blocks.
        """
        means = mean_tokens(views, absent)
        if len(views) == 1:
            return next(iter(means.values()))
        if self.config.fusion == "sum":
            return self.fusion_norm(torch.stack(list(means.values())).sum(dim=0))  # type: ignore[no-any-return]
        if self.config.fusion == "concat":
            return self.fusion_norm(torch.cat(list(means.values()), dim=1))  # type: ignore[no-any-return]
        if self.config.fusion == "attention":
            tokens = torch.stack(list(means.values()), dim=1)
            weights = torch.softmax(self.attention_pooling(tokens), dim=1)
            return self.fusion_norm((weights * tokens).sum(dim=1))  # type: ignore[no-any-return]
        asking = means["global" if "global" in views else "target"][:, None]
        read = []
        for view in (view for view in views if view != "global"):
            x, unseen = asking, hide(absent) if view == "neighbour" else None
            for block in self.fusion_blocks:
                x = block(x, views[view], unseen)
            read.append(x)
        return self.fusion_norm(torch.stack(read).sum(dim=0)[:, 0])  # type: ignore[no-any-return]

    def cast(self, _dtype: torch.dtype) -> Triplex:
        """Nothing is cast: it was tried in fp32 alone."""
        return self

    def train(self, mode: bool = True) -> Triplex:
        """The frozen ResNet18 stays as it is."""
        super().train(mode)
        if self.config.reads_slide:
            self.frozen.eval()
        return self


def hide(absent: Tensor) -> Tensor:
    """What keeps attention from tokens that are `absent` (N x tokens): N x 1 x 1 x tokens, minus infinity or 0."""
    return torch.zeros(absent.shape, device=absent.device).masked_fill(absent, -torch.inf)[:, None, None]


def mean_tokens(views: Mapping[View, Tensor], absent: Tensor) -> dict[View, Tensor]:
    """The mean token of each view, N x C; of neighbours, that of those which are there."""
    seen = (~absent)[:, :, None]
    return {
        view: (tokens * seen).sum(dim=1) / seen.sum(dim=1) if view == "neighbour" else tokens.mean(dim=1)
        for view, tokens in views.items()
    }


def fusion_loss(
    outputs: Sequence[Tensor], loss: Callable[[Tensor], Tensor], alpha: float = ALPHA, detach: bool = True
) -> Tensor:
    """The loss of `all_outputs` (eq. 14 to 16): what each misses by `loss`, and the three others miss of the fused.

    With `detach` the three learn from the fused prediction, which does not move towards them; the released code lets
    it move, and the paper does not say.
    """
    fused, *others = outputs
    teacher = fused.detach() if detach else fused
    own = [(1 - alpha) * loss(other) + alpha * mean_of_items(F.mse_loss(other, teacher)) for other in others]
    return torch.stack([loss(fused), *own]).sum()
