"""Sums over sections' spots that several parts of a cross-validation share, so that a further part costs no reading."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from stpredict.arrays import Float
from stpredict.data.tiles import Tiles
from stpredict.training.covariances import KeptCovariances
from stpredict.training.head_sums import A_FEW, Describe, Observations, Sums, sum_up
from stpredict.training.panel_counts import SectionSums

#: The most memory of the sums that are kept, and that of the covariances.
MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class SharedSums:
    """Sums for `parts`, each the sections that it trains on. Sections that the same parts train on are summed together.

    They are of all genes that a part's panel has, and are made when a part first asks for them. As many are kept as
    MOST_BYTES hold.
    """

    counts: SectionSums
    parts: Sequence[frozenset[str]]
    describe: Describe
    covariances: KeptCovariances | None = None
    _kept: dict[frozenset[int], list[Sums]] = field(default_factory=dict, repr=False)

    @classmethod
    def of_parts(
        cls, tiles: Tiles, parts: Sequence[Sequence[str]], genes: Sequence[str], describe: Describe
    ) -> SharedSums:
        """The sums of parts, each the sections that it trains on, over the genes of all their panels."""
        sets = [frozenset(part) for part in parts]
        covariances = KeptCovariances.of_parts(tiles, genes, sets, MOST_BYTES) if len(parts) > 1 else None
        return cls(SectionSums(tiles, genes), sets, describe, covariances)

    def serves(self, sections: Sequence[str], panel: Sequence[str]) -> bool:
        """Whether these are the sections of a part, and all of its genes are here."""
        return frozenset(sections) in self.parts and set(panel) <= set(self.counts.genes)

    def of(self, sections: Sequence[str], panel: Sequence[str]) -> list[Sums]:
        """The sums of a part's sections over a panel's genes."""
        place = {gene: i for i, gene in enumerate(self.counts.genes)}
        genes, number = np.array([place[gene] for gene in panel]), self.parts.index(frozenset(sections))
        own = (sums for together in self.groups if number in together for sums in self._sums(together))
        return joined(sums.of(genes) for sums in joined(own))

    def observations(self, sections: Sequence[str], panel: Sequence[str]) -> Observations:
        """The residuals of a panel, and the features, of the spots with counts of some sections."""
        tiles = self.counts.tiles
        rows = np.flatnonzero(np.isin(tiles.section, sections) & (tiles.depth > 0))
        return Observations(self.counts.residuals(panel), tiles, panel, rows, self.describe)

    @cached_property
    def groups(self) -> dict[frozenset[int], list[str]]:
        """Sections by the parts that train on them."""
        groups: dict[frozenset[int], list[str]] = defaultdict(list)
        for name in sorted(frozenset[str]().union(*self.parts)):
            groups[frozenset(i for i, part in enumerate(self.parts) if name in part)].append(name)
        return groups

    def _sums(self, together: frozenset[int]) -> list[Sums]:
        if together in self._kept:
            return self._kept[together]
        made = sum_up(self.observations(self.groups[together], self.counts.genes), self.middle)
        if sum(sums.moments.products.nbytes for kept in (made, *self._kept.values()) for sums in kept) <= MOST_BYTES:
            self._kept[together] = made
        return made

    @cached_property
    def middle(self) -> Float:
        middle: Float = self.describe(np.arange(min(A_FEW, len(self.counts.tiles.spot)))).mean(axis=0)
        return middle


def joined(parts: Iterable[Sums]) -> list[Sums]:
    """The sums of all parts that are of the same genes; none of those without genes."""
    found: dict[bytes, Sums] = {}
    for sums in parts:
        key = sums.genes.tobytes()
        found[key] = found[key] + sums if key in found else sums
    return [sums for sums in found.values() if len(sums.genes)]
