"""Pearson residuals of a panel's genes, which are read from counts on disk when spots are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
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
        index, place = np.unique(np.arange(self.shape[0])[rows], return_inverse=True)  # counts are read in order
        found = np.empty((len(index), self.shape[1]))
        section = self.tiles.section[index]
        for name in np.unique(section):
            own = np.flatnonzero(section == name)
            found[own] = self._of_section(str(name), index[own])
        found *= self.scale
        return found if len(place) == len(index) and (np.diff(place) > 0).all() else found[place]

    def of(self, genes: Sequence[str]) -> Residuals:
        """The residuals of some of the genes, not scaled."""
        place = {gene: i for i, gene in enumerate(self.genes)}
        chosen = [place[gene] for gene in genes]
        return Residuals(self.tiles, genes, _counts={name: sums[chosen] for name, sums in self._counts.items()})

    def _of_section(self, name: str, rows: Int) -> Float:
        """The residuals of some spots of a section, not scaled."""
        whole = self._rows[name]
        share = self.counts_of(name) / max(self.tiles.depth[whole].sum(), 1)
        counts = self.tiles.panel_counts(self.genes, rows)
        return residuals_of(counts, self.tiles.depth[rows], share, len(whole))

    @cached_property
    def _rows(self) -> dict[str, Int]:
        """The spots of each section."""
        names, of_spot = np.unique(self.tiles.section, return_inverse=True)
        order, ends = np.argsort(of_spot, kind="stable"), np.cumsum(np.bincount(of_spot))
        return dict(zip(names.tolist(), np.split(order, ends[:-1]), strict=True))

    @cached_property
    def _columns(self) -> Int:
        """The columns of the genes among all of the tiles; one after the last for a gene that is not there."""
        place = {gene: i for i, gene in enumerate(self.tiles.genes)}
        return np.array([place.get(gene, len(place)) for gene in self.genes], dtype=np.int64)

    def counts_of(self, name: str) -> Float:
        """The sum of each gene's counts in a section; NaN if it did not measure the gene."""
        if name not in self._counts:
            sums = np.zeros(len(self.tiles.genes) + 1)
            for _, block in self.tiles.counts.blocks(self._rows[name]):
                sums[:-1] += np.bincount(block.indices, block.data, minlength=len(sums) - 1)
            measured = self.tiles.measured_by([name], self.genes)[0]
            self._counts[name] = np.where(measured, sums[self._columns], np.nan)
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
