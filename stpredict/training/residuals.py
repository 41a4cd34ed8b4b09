"""Pearson residuals of a panel's genes, which are read from counts on disk when spots are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from stpredict.arrays import Bool, Float, Int
from stpredict.data.tiles import Tiles
from stpredict.statistics.masks import patterns_of
from stpredict.statistics.metrics import PER_MILLION, residuals_of
from stpredict.statistics.objectives import Objective, residual_objective


@dataclass(frozen=True)
class Residuals:
    """Pearson residuals within each section, spots x genes, times a `scale` per gene; NaN if a gene was not measured.

    They are the targets of an `Objective`, indexed by a mask or indices of spots.
    """

    tiles: Tiles
    genes: Sequence[str]
    scale: Float | float = 1.0
    _counts: dict[str, Float] = field(default_factory=dict, repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.tiles.spot), len(self.genes)

    def __getitem__(self, rows: Any) -> Float:
        index = np.arange(self.shape[0])[rows]
        section, found = self.tiles.section[index], np.empty((len(index), self.shape[1]))
        for name in np.unique(section):
            places = np.flatnonzero(section == name)
            places = places[np.argsort(index[places], kind="stable")]  # counts are read in order
            found[places] = self._of_section(str(name), index[places])
        return found * self.scale

    def of(self, genes: Sequence[str]) -> Residuals:
        """The residuals of some of the genes."""
        place = {gene: i for i, gene in enumerate(self.genes)}
        chosen = [place[gene] for gene in genes]
        return Residuals(self.tiles, genes, _counts={name: sums[chosen] for name, sums in self._counts.items()})

    def _of_section(self, name: str, rows: Int) -> Float:
        """The residuals of some spots of a section, not scaled."""
        whole = self.tiles.section == name
        share = self.counts_of(name) / self.tiles.depth[whole].sum()
        counts = self.tiles.panel_counts(self.genes, rows)
        return residuals_of(counts, self.tiles.depth[rows], share, int(whole.sum()))

    def counts_of(self, name: str) -> Float:
        """The sum of each gene's counts in a section; NaN if it did not measure the gene."""
        if name not in self._counts:
            tiles = self.tiles
            place = {gene: i for i, gene in enumerate(tiles.genes)}
            sums = np.zeros(len(place) + 1)  # the last is of genes that nothing measured
            for _, block in tiles.counts.blocks(np.flatnonzero(tiles.section == name)):
                sums[:-1] += np.bincount(block.indices, block.data, minlength=len(place))
            own = sums[[place.get(gene, -1) for gene in self.genes]]
            self._counts[name] = np.where(tiles.measured_by([name], self.genes)[0], own, np.nan)
        return self._counts[name]


def objective_of(
    residuals: Residuals, sections: Sequence[str], spread: Float, depth: Float, fit: Bool, per: float = PER_MILLION
) -> Objective:
    """As `make_objective` of residuals, fitted on the spots `fit` of some sections, without an array of all targets.

    `spread` is that of each gene's residuals in these spots, `depth` that of all spots.
    """
    tiles = residuals.tiles
    counts = np.array([residuals.counts_of(name) for name in sections])
    total, share, median = np.nansum(counts, axis=0), *np.full((2, counts.shape[1]), np.nan)
    for genes, there in patterns_of(~np.isnan(counts)):
        rows = fit & np.isin(tiles.section, np.array(sections, dtype=object)[there])
        if rows.any():
            share[genes] = (total[genes] + 0.5) / depth[rows].sum()
            median[genes] = np.median(depth[rows])
    return residual_objective(share, median, spread, replace(residuals, scale=1 / spread), depth, per)
