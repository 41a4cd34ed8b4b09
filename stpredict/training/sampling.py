"""Which items of a stage of training are seen in an epoch, in which batches, and how their patches are turned."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from stpredict.arrays import Int, Labels
from stpredict.data.tiles import Tiles
from stpredict.data.tissue import tissue_kin
from stpredict.networks.draws import Share
from stpredict.slides.symmetry import SYMMETRIES
from stpredict.training.settings import Balance, Settings


@dataclass(frozen=True)
class Stage:
    """A stage of training: the items that it trains on, how often, and the peak of its learning rate.

    A batch holds any items or, with labels `together` (one for each item of any stage), all items of one label. With
    `groups` (likewise a number for each), all groups count alike in an epoch. If `varied`, patches are turned and their
    stains varied at random; it is false if there are no patches, or if the step turns them with their lessons. The loss
    is a mean over values; `values` is their number per item, None if all items have equally many. If it `compares` a
    batch's items, each process computes that of the whole batch, at once.
    """

    name: str
    items: Int
    epochs: int
    learning_rate: float
    together: Labels | None = None
    varied: bool = True
    values: Int | None = None
    groups: Int | None = None
    compares: bool = False

    def n_values(self, items: Int) -> int:
        """The number of values in the mean loss of some items; of items, if all have equally many values."""
        return len(items) if self.values is None else int(self.values[items].sum())

    def n_steps(self, batch_size: int) -> int:
        """The number of batches in an epoch."""
        if self.together is None:
            return -(-len(self.items) // batch_size)
        return len(np.unique(self.together[self.items]))


@dataclass(frozen=True)
class Part:
    """What a process computes at once of a batch: its share, as items with their turns.

    `weight` is what its mean loss counts in that of the batch.
    """

    share: Share
    items: Int
    turns: Int
    weight: float


def divide(stage: Stage, items: Int, turns: Int, n_parts: int, world: int, rank: int) -> list[Part]:
    """What one of `world` processes computes of a batch: `n_parts` parts one after the other, or as many as there are.

    All processes have equally many parts.
    """
    found, n_parts = [], 1 if stage.compares else min(n_parts, -(-len(items) // world))
    for number in range(n_parts):
        share = Share(len(items), rank + world * number, world * n_parts, batch=items)
        by_items = len(share.counted) / len(items)
        by_values = stage.n_values(items[share.counted]) / max(1, stage.n_values(items))
        weight = 1 / world if stage.compares else by_values or by_items
        share = replace(share, by_items=by_items / weight if weight else 1.0)
        found.append(Part(share, items[share.own], turns[share.own], weight))
    return found


def draw_epoch(stage: Stage, settings: Settings, epoch: int) -> list[tuple[Int, Int]]:
    """The batches of an epoch: their items, and for each item the one of eight flips and rotations that turns it.

    The seed and the epoch determine them. An epoch has as many places as there are items or, if the batches are of
    labels, as many batches as there are labels. If groups count alike, items or labels of small ones come repeatedly.
    """
    rng = np.random.default_rng((settings.seed, epoch))
    if stage.together is None:
        order = _order(stage.items, stage.groups, rng)
        places = [np.arange(start, min(start + settings.batch_size, len(order)))
                  for start in range(0, len(order), settings.batch_size)]  # fmt: skip
    elif stage.groups is None:
        order = rng.permutation(stage.items)
        labels = stage.together[order]
        places = [np.flatnonzero(labels == label) for label in dict.fromkeys(labels.tolist())]
    else:
        _, first = np.unique(stage.together[stage.items], return_index=True)
        drawn = _order(stage.items[first], stage.groups, rng)  # one item stands for all of its label
        batches = [stage.items[stage.together[stage.items] == stage.together[item]] for item in drawn]
        order = np.concatenate(batches)
        places = np.split(np.arange(len(order)), np.cumsum([len(batch) for batch in batches])[:-1])
    turns = rng.integers(0, SYMMETRIES if settings.how.turns else 1, len(order))
    return [(order[here], turns[here]) for here in places]


def _order(items: Int, groups: Int | None, rng: np.random.Generator) -> Int:
    """The items in a random order; with groups as many items, of which each group has as many as the others.

    No item of a group comes more than once more often than another. If there are more groups than items, or the items
    do not divide, chance decides which groups have one more.
    """
    if groups is None:
        return rng.permutation(items)
    own = groups[items]
    _, sizes = np.unique(own, return_counts=True)
    members = np.split(items[np.argsort(own, kind="stable")], np.cumsum(sizes)[:-1])
    wanted = len(items) // len(sizes) + (rng.permutation(len(sizes)) < len(items) % len(sizes))
    drawn = [np.resize(rng.permutation(few), n) for few, n in zip(members, wanted, strict=True)]  # repeated if too few
    return rng.permutation(np.concatenate(drawn))


def groups_to_balance(tiles: Tiles, balance: Balance | None, section: Labels) -> Int | None:
    """For each item, which is of a `section`, the number of the group that counts alike; None if each item does.

    Patients who share a section under two names are one group. A slide without counts counts as a section.
    """
    if balance is None:
        return None
    label = tiles.section if balance == "sections" else tiles.kin
    group = dict(zip(tiles.section.tolist(), label.tolist(), strict=True))
    group |= {name: name if balance == "sections" else patient for name, patient in tissue_kin(tiles).items()}
    number = {name: i for i, name in enumerate(sorted(set(group.values())))}
    return np.array([number[group[name]] for name in section.tolist()], dtype=np.int64)
