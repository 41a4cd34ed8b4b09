"""Tables of spots x genes whose rows are computed when they are asked for, from counts that may be read then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from stpredict.arrays import Bool, Float, Int
from stpredict.statistics.blocks import Table, blocks
from stpredict.statistics.metrics import log_cpm, residuals_of


@dataclass(frozen=True)
class Chosen:
    """The rows of a table at an `index`."""

    table: Table
    index: Int

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.index), self.table.shape[1]

    def __getitem__(self, rows: Any, /) -> Any:
        return self.table[self.index[rows]]


@dataclass(frozen=True)
class Columns:
    """Some columns of a table."""

    table: Table
    columns: Int

    @property
    def shape(self) -> tuple[int, int]:
        return self.table.shape[0], len(self.columns)

    def __getitem__(self, rows: Any, /) -> Any:
        return self.table[rows][:, self.columns]


@dataclass(frozen=True)
class LogShares:
    """ln(1 + `per` x share), of counts over the `depth` of their spots."""

    counts: Table
    depth: Float
    per: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.counts.shape

    def __getitem__(self, rows: Any, /) -> Float:
        return log_cpm(self.counts[rows], self.depth[rows], self.per)


@dataclass(frozen=True)
class PearsonResiduals:
    """Pearson residuals within each section, as `metrics.pearson_residuals` has them.

    `of_spot` is the number of each spot's section; `sums` are the counts of each section, sections x genes.
    """

    counts: Table
    depth: Float
    of_spot: Int
    sums: Float

    @property
    def shape(self) -> tuple[int, int]:
        return self.counts.shape

    @cached_property
    def _of_sections(self) -> tuple[Float, Int]:
        """The shares of genes, sections x genes, and how many spots each section has."""
        depths = np.bincount(self.of_spot, self.depth, len(self.sums))
        return self.sums / np.maximum(depths, 1)[:, None], np.bincount(self.of_spot, minlength=len(self.sums))

    def __getitem__(self, rows: Any, /) -> Float:
        (shares, n_spots), of_row = self._of_sections, self.of_spot[rows]
        counts, depth = self.counts[rows], self.depth[rows]
        found = np.empty(counts.shape)
        for number in np.unique(of_row):
            own = of_row == number
            found[own] = residuals_of(counts[own], depth[own], shares[number], int(n_spots[number]))
        return found


@dataclass(frozen=True)
class Averaged:
    """Each row a mean of rows of a table, by `weights`, spots x spots."""

    table: Table
    weights: csr_array

    @property
    def shape(self) -> tuple[int, int]:
        return self.table.shape

    def __getitem__(self, rows: Any, /) -> Float:
        weights = self.weights[np.arange(self.shape[0])[rows]]
        read = np.unique(weights.indices)
        averaged: Float = weights[:, read] @ self.table[read]
        return averaged


@dataclass(frozen=True)
class Scaled:
    """A table less a number per gene, over another."""

    table: Table
    less: Float | float
    over: Float | float

    @property
    def shape(self) -> tuple[int, int]:
        return self.table.shape

    def __getitem__(self, rows: Any, /) -> Float:
        scaled: Float = (self.table[rows] - self.less) / self.over
        return scaled


def in_memory(table: Table) -> Table:
    """The table as an array in single precision."""
    whole = np.empty(table.shape, dtype=np.float32)
    for some in blocks(*table.shape):
        whole[some] = table[some]
    return whole


#: Computes a table once, in single precision, and puts it where its rows are at hand.
Keep = Callable[[Table], Table]


@dataclass(frozen=True)
class Kept:
    """A table that is kept once a row of it was asked for."""

    table: Table
    keep: Keep = in_memory

    @property
    def shape(self) -> tuple[int, int]:
        return self.table.shape

    @cached_property
    def _at_hand(self) -> Table:
        return self.keep(self.table)

    def of(self, columns: Int | slice) -> Kept:
        """Some columns, which are kept by themselves, as they are read again and again; a slice is all of them."""
        return self if isinstance(columns, slice) else Kept(Columns(self, columns), self.keep)

    def __getitem__(self, rows: Any, /) -> Any:
        return self._at_hand[rows]


@dataclass(frozen=True)
class Summary:
    """Of each column, over the rows that know it: mean, standard deviation, and range; NaN if none does."""

    mean: Float
    spread: Float
    extent: Float


def summary_of(table: Table, chosen: Bool) -> Summary:
    """The summary of the `chosen` rows, a mask, some at a time.

    Source: Chan, Golub and LeVeque 1983, The American Statistician 37:242, for squares of parts.
    """
    index, n_columns = np.flatnonzero(chosen), table.shape[1]
    n, mean, squares = np.zeros((3, n_columns))
    low, high = np.full(n_columns, np.inf), np.full(n_columns, -np.inf)
    for some in blocks(len(index), n_columns):
        values = table[index[some]]
        known = ~np.isnan(values)
        n_own = known.sum(axis=0)
        total = n + n_own
        own = np.divide(values.sum(axis=0, where=known), n_own, out=np.zeros(n_columns), where=n_own > 0)
        away, weight = own - mean, np.divide(n_own, total, out=np.zeros(n_columns), where=total > 0)
        squares += np.square(values - own).sum(axis=0, where=known) + away**2 * n * weight
        mean, n = mean + away * weight, total
        low = np.minimum(low, values.min(axis=0, where=known, initial=np.inf))
        high = np.maximum(high, values.max(axis=0, where=known, initial=-np.inf))
    unknown = n == 0
    for each in (mean, squares):
        each[unknown] = np.nan
    return Summary(mean, np.sqrt(squares / np.maximum(n, 1)), np.where(unknown, np.nan, high - low))


def counts_of_sections(counts: Table, of_spot: Int, chosen: Bool) -> tuple[Float, Float]:
    """The sum of each gene's counts in a section: over all spots, and over the `chosen` ones; sections x genes.

    `of_spot` is the number of each spot's section. Sums are NaN if a section did not measure the gene.
    """
    n = int(of_spot.max()) + 1
    sums = np.zeros((2 * n, counts.shape[1]))
    for some in blocks(*counts.shape):
        own, also = of_spot[some], np.flatnonzero(chosen[some])
        section, spot = np.concatenate([own, n + own[also]]), np.concatenate([np.arange(len(own)), also])
        sums += csr_array((np.ones(len(spot)), (section, spot)), (2 * n, len(own))) @ counts[some]
    whole, part = sums[:n], sums[n:]
    part[np.isnan(whole)] = np.nan
    return whole, part
