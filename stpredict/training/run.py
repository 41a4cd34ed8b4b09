"""What all networks of one training run share, and what training gives for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from stpredict.arrays import Float
from stpredict.console import Report
from stpredict.data.section import Section
from stpredict.data.tiles import Tiles
from stpredict.networks import Network, TileNetwork, says_z
from stpredict.networks.encoder import Encoded
from stpredict.prediction.surroundings import Surroundings
from stpredict.statistics.objectives import Objective
from stpredict.training.panels import Panel
from stpredict.training.retrieval import Measurements
from stpredict.training.settings import Settings
from stpredict.training.shared_sums import SharedSums


@dataclass(frozen=True)
class Trained:
    """A network whose head predicts z, or expression itself, with its training objective and data."""

    network: Network
    objective: Objective
    panel: list[str]
    sections: Sequence[str]
    epochs: int  # 0 if the network is fitted at once
    penalty: float | None = None  # a linear head's
    counts_from: Sequence[str] = ()  # sections that showed how genes vary together, if used
    surroundings: Mapping[str, Surroundings] = field(default_factory=dict)  # for a network that reads them
    measured: Measurements | None = None  # for a network with a bank, the bank's source

    def expression(self, predicted: Float) -> Float:
        """Expression, from the network's raw output."""
        return self.objective.expression(predicted) if says_z(self.network) else predicted


@dataclass(frozen=True)
class Run:
    """Shared by all networks of one training run."""

    tiles: Tiles
    features: Float
    unlabelled_features: Float
    panel: Panel
    settings: Settings
    licence: str
    device: torch.device
    report: Report
    encoder: Encoded | TileNetwork | None = None  # with one gene and a head that is not fitted yet
    encoded: Float | None = None  # its features of each spot, spots x features, or of the spot's superpixels
    sections: Sequence[Section] = ()  # for a network that looks at slides beyond the spots' patches
    weights: Mapping[str, torch.Tensor] | None = None  # with which its trunk begins
    accumulate: int = 1  # the parts, one after the other, in which a batch is computed
    anonymous: bool = False  # cards name neither sections nor patients
    sums: SharedSums | None = None  # over spots, which serve all held-out parts
    teacher: Encoded | None = None  # whose maps tokens learn; without one, a dictionary teaches
