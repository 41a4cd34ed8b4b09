"""Heads that others fitted to the features of an encoder: layers whose tensors are in the model file, or a program.

How a further published head joins: a frozen dataclass that says how to build it, a module that reads N x features (or
what else its encoder gives of a patch) and gives N x genes, and a line in KINDS. `GENE_AXES` of the module names its
tensors that hold a number, or a row, per gene, and the axis of the genes, so that `--genes` costs what is asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stpredict.networks.deepspot import DeepSpotConfig, DeepSpotHead
from stpredict.networks.ensemble_head import Ensemble, EnsembleConfig
from stpredict.networks.gene_query_head import GeneQueries, GeneQueryConfig
from stpredict.networks.histoprism import HistoPrismConfig, HistoPrismHead
from stpredict.networks.stpath import STPathConfig, STPathHead

Activation = Literal["none", "relu", "gelu", "silu", "tanh", "softplus", "elu", "leaky-relu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "elu": F.elu,
    "leaky-relu": F.leaky_relu,
}


@dataclass(frozen=True)
class LayersConfig:
    """Layers of a linear map or an MLP: the width of each between the features and the genes."""

    hidden: Sequence[int] = ()
    activation: Activation = "none"  # between layers
    last_activation: Activation = "none"

    def __post_init__(self) -> None:
        if {self.activation, self.last_activation} - set(ACTIVATIONS) or min(self.hidden, default=1) < 1:
            raise ValueError("its head's layers are not described as layers are")


@dataclass(frozen=True)
class ProgramConfig:
    """A program, exported or TorchScript, from features to genes, in a `file` beside the model."""

    file: str
    sha256: str


class Layers(nn.Module):
    """A linear map, or several with an activation between them; the last one's rows are genes."""

    GENE_AXES: ClassVar[Mapping[str, int]] = {"last.weight": 0, "last.bias": 0}

    def __init__(self, config: LayersConfig, n_features: int, n_genes: int) -> None:
        super().__init__()
        self.config = config
        widths = (n_features, *config.hidden)
        self.hidden = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(widths))
        self.last = nn.Linear(widths[-1], n_genes)

    def forward(self, features: Tensor) -> Tensor:
        """N x features to N x genes."""
        for layer in self.hidden:
            features = ACTIVATIONS[self.config.activation](layer(features))
        return ACTIVATIONS[self.config.last_activation](self.last(features))


class Program(nn.Module):
    """A program of the user's, once it is attached. It computes all genes, whichever are asked for."""

    GENE_AXES: ClassVar[Mapping[str, int]] = {}

    def __init__(self, config: ProgramConfig, n_features: int, n_genes: int) -> None:
        super().__init__()
        self.config, self.n_features, self.n_genes = config, n_features, n_genes
        self.program: nn.Module | None = None

    def forward(self, features: Tensor) -> Tensor:
        """N x features to N x genes."""
        assert self.program is not None, "no program is attached"
        return self.program(features)  # type: ignore[no-any-return]


HeadConfig = (
    LayersConfig | ProgramConfig | EnsembleConfig | GeneQueryConfig | STPathConfig | DeepSpotConfig | HistoPrismConfig
)
#: By the name that a card has for it, how a head is described and built.
KINDS: dict[str, tuple[Any, Any]] = {
    "layers": (LayersConfig, Layers),
    "program": (ProgramConfig, Program),
    "ensemble": (EnsembleConfig, Ensemble),
    "gene-queries": (GeneQueryConfig, GeneQueries),
    "stpath": (STPathConfig, STPathHead),
    "deepspot": (DeepSpotConfig, DeepSpotHead),
    "histoprism": (HistoPrismConfig, HistoPrismHead),
}
#: Those whose module looks at other spots of the slide, by `describe`, `among` and `read`.
READ_SLIDES = (STPathHead, DeepSpotHead, HistoPrismHead)


def build_head(config: HeadConfig, n_features: int, n_genes: int) -> nn.Module:
    """A head with random weights, a program yet to be attached."""
    module: nn.Module = next(m for kind, m in KINDS.values() if type(config) is kind)(config, n_features, n_genes)
    return module


def read_head_config(said: Mapping[str, Any]) -> HeadConfig:
    """A card's description of a head. Raises KeyError, TypeError or ValueError for anything else."""
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in said.items() if key != "kind"}
    config: HeadConfig = KINDS[said["kind"]][0](**fields)
    return config


def describe_head(config: HeadConfig) -> dict[str, Any]:
    """What a card says of a head, as `read_head_config` reads it."""
    kind = next(name for name, (known, _) in KINDS.items() if type(config) is known)
    return {"kind": kind, **vars(config)}
