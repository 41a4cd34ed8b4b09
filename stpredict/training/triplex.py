"""Train a TRIPLEX: its frozen trunk, the features of surroundings, and a loss of four heads.

The spots' own patches are turned and their stains varied as for other networks. Features of surroundings are computed
once and stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from stpredict.arrays import Float, Int
from stpredict.data.section import Section
from stpredict.data.tiles import Tiles
from stpredict.data.tissue import places_of
from stpredict.engines.eager import two_passes
from stpredict.networks.draws import sharing, whole_batch
from stpredict.networks.mixing import Block
from stpredict.networks.triplex import Triplex, fusion_loss
from stpredict.networks.trunks.pixels import ImageNetPixels
from stpredict.networks.trunks.resnet import ResNet
from stpredict.prediction.surroundings import Surroundings, predict_in_sections
from stpredict.statistics.objectives import Objective
from stpredict.training.dense import TrunkTokens, teach_tokens
from stpredict.training.fit import TAUGHT_LIMIT, Course, Step, teach_values
from stpredict.training.processes import in_bf16
from stpredict.training.surroundings import look_around_together
from stpredict.training.teachers import Teacher

#: The folder of the frozen trunk's features of patches; it is removed when the network is done.
SURROUNDINGS = "surroundings"


class Describing(nn.Module):
    """A trunk that predicts colour and texture of patches, uint8 N x P x P x 3."""

    def __init__(self, trunk: ResNet, n_features: int) -> None:
        super().__init__()
        self.pixels = ImageNetPixels()
        self.trunk = trunk
        self.head = nn.Linear(trunk.n_features, n_features)

    def forward(self, patches: Tensor) -> Tensor:
        return self.head(self.trunk(self.pixels(patches)))  # type: ignore[no-any-return]


def teach_trunk(trunk: ResNet, tiles: Tiles, unlabelled_features: Float, places: Int, course: Course) -> None:
    """Teach the trunk the colour and texture features of the unlabelled `places`. No counts are looked at."""
    mean, spread = unlabelled_features[places].mean(axis=0), unlabelled_features[places].std(axis=0) + 1e-9
    standardised = np.clip((unlabelled_features - mean) / spread, -TAUGHT_LIMIT, TAUGHT_LIMIT)
    wanted = torch.as_tensor(standardised, dtype=torch.float32)
    teach_values(Describing(trunk, wanted.shape[1]), tiles, wanted, places, course)


def freeze_trunk(network: Triplex) -> None:
    """Copy the trunk to the frozen trunk, rounded as it will be stored."""
    network.frozen.load_state_dict(network.first_trunk.state_dict())
    network.frozen.requires_grad_(False)
    with torch.no_grad():
        for parameter in network.frozen.parameters():
            parameter.copy_(parameter.half())


def prepare_triplex(
    network: Triplex, weights: Mapping[str, Tensor] | None, sections: Sequence[Section], trained_on: Sequence[str],
    tiles: Tiles, unlabelled_features: Float, make_teacher: Callable[[], Teacher], course: Course,
) -> dict[str, Surroundings]:  # fmt: skip
    """Begin with the user's `weights`, or teach the trunk; returns the surroundings of all sections' spots, if read.

    A teacher is made only for a trunk that is taught densely.

    The trunk's features of patches are stored beside the run if all its networks begin alike, else beside the network.
    """
    places = places_of(tiles, trained_on)
    if weights is not None:
        network.first_trunk.load_state_dict(weights)
    elif course.settings.trunk_taught_densely and len(places):
        teach_tokens(TrunkTokens(network.first_trunk.requires_grad_(True)), make_teacher(), tiles, places, course)
    elif course.settings.teach_patches and len(places):
        teach_trunk(network.first_trunk.requires_grad_(True), tiles, unlabelled_features, places, course)
    else:
        course.log.report("the ResNet18 has random weights: nothing taught it, and --encoder-weights names none")
    if not network.config.reads_slide:
        return {}
    freeze_trunk(network)
    cache = (course.folder if weights is None else course.folder.parent) / SURROUNDINGS
    passes = two_passes(network.to(course.device).eval(), course.device)
    return look_around_together(sections, tiles, passes, cache, course.log.report)


def triplex_step(
    network: Triplex, known: Mapping[str, Surroundings], tiles: Tiles, objective: Objective, detach: bool,
    device: torch.device,
) -> Step:  # fmt: skip
    """The fusion loss of a batch. Each spot is seen among all spots of its section, whoever computes the others."""
    place = np.empty(len(tiles.section), np.int64)
    slides = {}
    for name, one in known.items():
        rows = np.flatnonzero(tiles.section == name)
        place[rows] = np.arange(len(rows))
        slides[name] = tuple(torch.from_numpy(array).to(device) for array in (one.own(), one.around.cells))

    def tokens_of(groups: Mapping[str, Int], items: Int) -> Tensor:
        """The global tokens of the items, group by group. What is drawn is drawn for all sections of the batch."""
        tokens, of_batch = [], np.unique(tiles.section[whole_batch(items)]).tolist()
        with sharing(None):
            for name in of_batch:
                if name in groups:
                    tokens.append(network.global_tokens(*slides[name])[place[items[groups[name]]]])
                else:
                    pass_over(network, len(slides[name][1]))
        return torch.cat(tokens)

    def step(_network: nn.Module, patches: Tensor, items: Int) -> Tensor:
        names = tiles.section[items]
        groups = {str(name): np.flatnonzero(names == name) for name in np.unique(names)}
        around = [known[name].neighbours(place[items[here]]) for name, here in groups.items()]
        order = np.argsort(np.concatenate(list(groups.values())))
        neighbours, absent = (
            torch.from_numpy(np.concatenate(parts)[order]).to(device) for parts in zip(*around, strict=True)
        )
        with in_bf16(device):
            outputs = network.all_outputs(patches, neighbours, absent, tokens_of(groups, items)[order])
        index = torch.from_numpy(items)
        outputs = [output.float() for output in outputs]
        return fusion_loss(outputs, lambda z: objective.loss(z, index), network.config.alpha, detach)

    return step


def pass_over(network: Triplex, n: int) -> None:
    """Draw the random numbers that the global tokens of n spots take, which are computed elsewhere."""
    if "global" not in network.config.reads:
        return
    device = network.distance.device
    autocast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if autocast else torch.float32
    for block in network.global_blocks:
        assert isinstance(block, Block)
        block.pass_over(torch.zeros(1, n, network.config.channels, dtype=dtype, device=device))


def predict_triplex(
    network: Triplex, known: Mapping[str, Surroundings], tiles: Tiles, rows: Int, device: torch.device
) -> Float:
    """The network's raw output for some spots, in fp32, spots x genes."""
    return predict_in_sections(two_passes(network.to(device).eval(), device), known, tiles, rows)
