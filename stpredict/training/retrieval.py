"""Train a network with a bank of measured spots.

In training, validation and testing, no spot is predicted from its own patient's measurements, but from other patients'
or, if there is one patient, from other sections'. Only the finished model's bank holds all spots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stpredict.arrays import Float, Float32, Int, Labels
from stpredict.data.tiles import Measured, Tiles
from stpredict.data.twins import with_twins
from stpredict.errors import UsageError
from stpredict.networks import BankNetwork
from stpredict.networks.bank import MAX_SPOTS
from stpredict.networks.bleep import Bleep, contrastive_loss
from stpredict.networks.draws import whole_batch
from stpredict.networks.egn import Egn, correlation_loss
from stpredict.networks.whole_batch import gather_rows
from stpredict.statistics.blocks import Table
from stpredict.statistics.objectives import Objective
from stpredict.storage.files import atomic_path
from stpredict.training.fit import Course, Step, predict_z
from stpredict.training.folds import Fold
from stpredict.training.processes import in_bf16, is_main_process, wait_for_all
from stpredict.training.triplex import teach_trunk

#: In a network's folder, the file of its frozen trunk's features of each spot.
FROZEN = "frozen.npy"
#: The weight of the correlation in EGN's loss.
CORRELATION = 0.5
#: If there is one section, it is divided, in the order of its spots, into this many parts that are kept apart.
PARTS = 5
NONE = np.empty(0, np.int64)
BATCH = 64


@dataclass(frozen=True)
class Measurements:
    """The source of banks, a row per spot: targets and expression (spots x genes), and a group's label.

    Spots of one group are not predicted from one another. Only `rows` may be in a bank.
    """

    targets: Table
    expression: Table
    group: Labels
    rows: Int
    seed: int
    features: Tensor | None = None  # by these EGN finds spots

    def of(self, rows: Int, tiles: Tiles) -> Measurements:
        """The same, with banks of these rows alone."""
        return replace(self, rows=rows, group=groups_apart(tiles, rows))


def groups_apart(tiles: Tiles | Measured, rows: Int) -> Labels:
    """A label per spot: its patient's or, if the `rows` belong to one patient, its section's.

    Sections that are there twice have one label. If the rows belong to one section, its parts have labels.
    """
    if len(set(tiles.kin[rows])) > 1:
        return tiles.kin
    names = {name: "+".join(sorted(with_twins([name], tiles.twins))) for name in set(tiles.section.tolist())}
    labels = np.array([names[name] for name in tiles.section.tolist()])
    if len(set(labels[rows])) > 1 or not len(rows):
        return labels
    parts = labels.astype(object)
    parts[rows] = [f"{labels[rows[0]]}, part {number}" for number in np.arange(len(rows)) * PARTS // len(rows)]
    return parts.astype(str)


def finds_exemplars(architecture: str, found: Tiles | Measured, sections: Sequence[str]) -> bool:
    """Whether these sections are enough to train a network. EGN needs exemplars of another section for each spot."""
    named = {"+".join(sorted(with_twins([name], found.twins))) for name in sections}
    return not architecture.startswith("egn") or len(named) > 1


def check_exemplars(architecture: str, found: Tiles | Measured, folds: Sequence[Fold]) -> None:
    """Raises UsageError if a network cannot be trained without one of the parts."""
    everything = sorted(set(found.section.tolist()))
    for fold in (*folds, None):
        left = everything
        if fold is not None:
            left = list(fold.train or [name for name in everything if name not in fold.test_sections])
        demand_exemplars(architecture, found, left, f"without {fold.name} " if fold else "")


def demand_exemplars(architecture: str, found: Tiles | Measured, left: Sequence[str], without: str = "") -> None:
    """Raises UsageError if a network cannot be trained on the sections that are `left`."""
    if not finds_exemplars(architecture, found, left):
        raise UsageError(
            f"--arch {architecture}: each spot is shown exemplars of other sections, and {without}there is one alone, "
            f"{' and '.join(left)}; hold out less, or take more sections."
        )


def prepare_bank(
    network: BankNetwork, weights: Mapping[str, Tensor] | None, measured: Measurements, tiles: Tiles,
    unlabelled_features: Float, places: Int, course: Course,
) -> Measurements:  # fmt: skip
    """Begin with the user's `weights`, or teach the trunk at the unlabelled `places`, and freeze EGN's.

    Returns the measurements, with the features of all spots by EGN's frozen trunk, which are stored beside the network.
    Raises UsageError as `demand_exemplars` does.
    """
    if isinstance(network, Egn):
        demand_exemplars(course.settings.architecture, tiles, sorted(set(tiles.section[measured.rows].tolist())))
    trunk = network.first_trunk.requires_grad_(True)
    if weights is not None:
        trunk.load_state_dict(weights)
    elif course.settings.teach_patches and len(places):
        teach_trunk(trunk, tiles, unlabelled_features, places, course)
    else:
        course.log.report("the trunk has random weights: nothing taught it, and --encoder-weights names none")
    if not isinstance(network, Egn):
        return measured
    trunk.requires_grad_(False)
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.copy_(parameter.half())  # as it will be stored
    return replace(measured, features=describe_spots(network, tiles, course.folder / FROZEN, course))


def describe_spots(network: Egn, tiles: Tiles, cache: Path, course: Course) -> Tensor:
    """The features of each spot by EGN's frozen trunk, spots x features, in half precision, stored in `cache`."""
    if not cache.exists() and is_main_process():
        course.log.report(f"frozen features of {len(tiles.spot)} spots")
        network.to(course.device).eval()
        parts = []
        for start in range(0, len(tiles.spot), BATCH):
            patches = tiles.read_patches(range(start, min(start + BATCH, len(tiles.spot))))
            parts.append(network.describe(torch.from_numpy(patches).to(course.device)).half().cpu().numpy())
        with atomic_path(cache) as temporary, temporary.open("wb") as file:
            np.save(file, np.concatenate(parts))
    wait_for_all()
    return torch.from_numpy(np.load(cache))


def on(device: torch.device, values: Float32) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32, device=device)


def fill_bank(network: BankNetwork, measured: Measurements, rows: Int) -> Int:
    """Make some spots the network's bank, a random MAX_SPOTS of them if there are more; returns their rows."""
    if len(rows) > MAX_SPOTS:
        rows = np.sort(np.random.default_rng(measured.seed).choice(rows, MAX_SPOTS, replace=False))
    network.eval()
    device = next(network.parameters()).device
    if isinstance(network, Bleep):
        network.fill(on(device, measured.targets[rows]), on(device, measured.expression[rows]))
    else:
        assert measured.features is not None
        network.fill(measured.features[rows].to(device), on(device, measured.targets[rows]))
    return rows


def predict_apart(
    network: BankNetwork, measured: Measurements, tiles: Tiles, rows: Int, device: torch.device, keep: bool = False
) -> Float:
    """The network's predictions for some spots, spots x genes, each from a bank without its own group.

    Afterwards the bank holds all spots that may be in it; without `keep`, none.
    """
    network.to(device)
    parts, places = [np.empty((0, network.config.n_genes))], [NONE]
    for group in np.unique(measured.group[rows]):
        here = np.flatnonzero(measured.group[rows] == group)
        fill_bank(network, measured, measured.rows[measured.group[measured.rows] != group])
        parts.append(predict_z(network, tiles, rows[here], device))
        places.append(here)
    fill_bank(network, measured, measured.rows if keep else NONE)
    found = np.concatenate(parts[1:]) if len(parts) > 1 else parts[0]
    return found[np.argsort(np.concatenate(places))]


def bank_step(network: BankNetwork, measured: Measurements, objective: Objective, device: torch.device) -> Step:
    """The loss of a batch: BLEEP's contrast of images and targets, or EGN's error and correlation."""
    if isinstance(network, Bleep):
        return contrast_step(network, measured, device)
    return exemplar_step(network, measured, objective, device)


def contrast_step(network: Bleep, measured: Measurements, device: torch.device) -> Step:
    """The contrastive loss of a batch: how badly its images and targets find one another."""

    def step(_model: nn.Module, patches: Tensor, items: Int) -> Tensor:
        with in_bf16(device):
            images = network.features(patches)
        spots = network.spot_projection(on(device, measured.targets[items]))
        return contrastive_loss(gather_rows(spots), gather_rows(images.float()), network.config.temperature)

    return step


def exemplar_step(network: Egn, measured: Measurements, objective: Objective, device: torch.device) -> Step:
    """The objective's loss plus half of (1 - correlation over the batch). Exemplars are found beforehand."""
    features = measured.features
    assert features is not None
    nearest = find_exemplars(network, measured, device)

    def step(_model: nn.Module, patches: Tensor, items: Int) -> Tensor:
        found = nearest[items]
        known = (features[items], features[found], on(device, measured.targets[found]))
        with in_bf16(device):
            read = network.read(patches, *(values.float().to(device) for values in known))
        z, whole = gather_rows(network.head(read.float())), whole_batch(items)
        wanted = on(device, measured.targets[whole])
        return objective.loss(z, torch.from_numpy(whole)) + CORRELATION * correlation_loss(z, wanted)

    return step


def find_exemplars(network: Egn, measured: Measurements, device: torch.device) -> Int:
    """The exemplars of each spot that may be in a bank, spots x K. They come from the other groups."""
    assert measured.features is not None
    network.to(device)
    n_exemplars = min(network.config.exemplars, smallest_bank(measured))
    nearest = np.zeros((len(measured.group), n_exemplars), np.int64)
    for group in np.unique(measured.group[measured.rows]):
        own = measured.group[measured.rows] == group
        bank = fill_bank(network, measured, measured.rows[~own])
        for part in np.array_split(measured.rows[own], -(-int(own.sum()) // BATCH)):
            queries = measured.features[part].float().to(device)
            nearest[part] = bank[network.bank.nearest(queries, n_exemplars).cpu().numpy()]
    fill_bank(network, measured, NONE)
    return nearest


def smallest_bank(measured: Measurements) -> int:
    """The number of spots that are left without the largest group."""
    _, n_spots = np.unique(measured.group[measured.rows], return_counts=True)
    return int(n_spots.sum() - n_spots.max())
