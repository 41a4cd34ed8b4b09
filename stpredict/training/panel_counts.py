"""Counts of a panel's genes, which are read from disk when spots are asked for, and Pearson residuals of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stpredict.arrays import Bool, Float, Int
from stpredict.data.tiles import Tiles
from stpredict.statistics.blocks import Table, blocks
from stpredict.statistics.metrics import PER_MILLION
from stpredict.statistics.objectives import Objective, residual_objective, shares_and_depths
from stpredict.statistics.targets import Keep, PearsonResiduals, Scaled, in_memory
from stpredict.storage.rows_on_disk import rows_on_disk

#: Up to this size, tables that are kept are in memory.
SMALL_TARGETS = 64 << 20


@dataclass(frozen=True)
class PanelCounts:
    """Counts of a panel's genes, spots x genes; NaN if the spot's section did not measure the gene."""

    tiles: Tiles
    panel: Sequence[str]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.tiles.spot), len(self.panel)

    def __getitem__(self, rows: Any, /) -> Float:
        return self.tiles.panel_counts(self.panel, np.arange(self.shape[0])[rows])


def kept_in(folder: Path) -> Keep:
    """What keeps tables in memory, up to SMALL_TARGETS in all, else in nameless files in a `folder`."""
    held = 0

    def keep(table: Table) -> Table:
        nonlocal held
        n_bytes = 4 * math.prod(table.shape)
        if held + n_bytes <= SMALL_TARGETS:
            held += n_bytes
            return in_memory(table)
        parts = (table[some].astype(np.float32) for some in blocks(*table.shape))
        return rows_on_disk(parts, table.shape, folder)

    return keep


@dataclass(frozen=True)
class SectionSums:
    """The sums of `genes`' counts in each section of tiles, which serve the panels of several parts of a run."""

    tiles: Tiles
    genes: Sequence[str]

    @cached_property
    def of_spot(self) -> Int:
        """The number of each spot's section, as sections are sorted."""
        return np.unique(self.tiles.section, return_inverse=True)[1]

    @cached_property
    def sums(self) -> Float:
        """Sections x genes; NaN if a section did not measure the gene."""
        tiles, names = self.tiles, np.unique(self.tiles.section).tolist()
        place = {gene: i for i, gene in enumerate(tiles.genes)}
        columns = [place.get(gene, len(place)) for gene in self.genes]  # one after the last has no counts
        sums = np.zeros((len(names), len(columns)))
        for own, name in zip(sums, names, strict=True):
            for _, block in tiles.counts.blocks(np.flatnonzero(tiles.section == name)):
                own += np.bincount(block.indices, block.data, minlength=len(place) + 1)[columns]
        return np.where(tiles.measured_by(names, self.genes), sums, np.nan)

    def of(self, panel: Sequence[str]) -> Float:
        """The sums of a panel, whose genes are among `genes`."""
        place = {gene: i for i, gene in enumerate(self.genes)}
        return self.sums[:, [place[gene] for gene in panel]]

    def residuals(self, panel: Sequence[str]) -> PearsonResiduals:
        """Pearson residuals of a panel within each section, spots x genes."""
        return PearsonResiduals(PanelCounts(self.tiles, panel), self.tiles.depth, self.of_spot, self.of(panel))


def objective_of(
    sums: SectionSums, panel: Sequence[str], spread: Float, depth: Float, fit: Bool, per: float = PER_MILLION
) -> Objective:
    """As `make_objective` of residuals, fitted on the spots `fit`, which must be all with counts of their sections.

    `spread` is that of each gene's residuals in these spots, `depth` that of all spots.
    """
    there = np.unique(sums.of_spot[fit])
    own = np.full((len(sums.sums), len(panel)), np.nan)
    own[there] = sums.of(panel)[there]
    share, median = shares_and_depths(own, depth, sums.of_spot, fit)
    targets = Scaled(sums.residuals(panel), 0.0, spread)
    return residual_objective(share, median, spread, targets, depth, per)
