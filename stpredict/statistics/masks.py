"""Genes that only some sections measured: in spots of the others a gene is NaN, never zero. No gene is dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stpredict.arrays import Bool, Float, Int, Labels, Real


@dataclass(frozen=True)
class Alike:
    """Columns of an array that are NaN in the same rows, and the rows in which they are known.

    Both are slices if nothing in the array is NaN.
    """

    columns: Int | slice
    rows: Int | slice

    @property
    def whole(self) -> bool:
        """Whether these are all columns, known in all rows."""
        return isinstance(self.columns, slice)

    @property
    def empty(self) -> bool:
        """Whether no row knows these columns."""
        return not isinstance(self.rows, slice) and not len(self.rows)

    def among(self, chosen: Bool) -> Bool:
        """The mask of those `chosen` rows (a mask, too) in which the columns are known."""
        if isinstance(self.rows, slice):
            return chosen
        known = np.zeros_like(chosen)
        known[self.rows] = chosen[self.rows]
        return known

    def of(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The known values of these columns, rows x columns. No copy if they are all."""
        if isinstance(self.rows, slice) or isinstance(self.columns, slice):
            return values[self.rows, self.columns]
        return values[np.ix_(self.rows, self.columns)]


@dataclass(frozen=True)
class Kinds:
    """Rows of an array by the columns that they know: the kind of each row, and kinds x columns."""

    kind: Int
    known: Bool

    def of(self, group: Alike) -> Int:
        """The kinds whose rows know the columns of a group."""
        first = 0 if isinstance(group.columns, slice) else group.columns[0]
        return np.flatnonzero(self.known[:, first])

    def columns_known(self, group: Alike) -> Int:
        """All columns that are known wherever those of a group are."""
        return np.flatnonzero(self.known[self.of(group)].all(axis=0))


def kinds_of(values: Float) -> Kinds:
    """The kinds of rows of `values`, spots x genes."""
    unknown = np.isnan(values)
    _, first, kind = np.unique(np.packbits(unknown, axis=1), axis=0, return_index=True, return_inverse=True)
    return Kinds(kind.reshape(-1), ~unknown[first])


def measured_alike(values: Real) -> list[Alike]:
    """Group the columns of `values`, spots x genes, by the spots that measured them."""
    unknown = np.isnan(values)
    if not unknown.any():
        return [Alike(slice(None), slice(None))]
    patterns: dict[bytes, list[int]] = {}
    for column, pattern in enumerate(np.packbits(unknown, axis=0).T):
        patterns.setdefault(pattern.tobytes(), []).append(column)
    return [Alike(np.array(columns), np.flatnonzero(~unknown[:, columns[0]])) for columns in patterns.values()]


def patterns_of(member: Bool) -> Iterator[tuple[Int, Bool]]:
    """Groups of columns of a table that are true in the same rows, and these rows' mask."""
    patterns, which = np.unique(member, axis=1, return_inverse=True)
    for number, rows in enumerate(patterns.T):
        yield np.flatnonzero(which.reshape(-1) == number), rows


def known_among(values: Float, chosen: Bool) -> Iterator[tuple[Int | slice, Bool]]:
    """Groups of columns of `values`, each with the mask of `chosen` rows that measured it, if there are any."""
    for group in measured_alike(values):
        rows = group.among(chosen)
        if rows.any():
            yield group.columns, rows


def of_rows(values: Float, rows: Bool, columns: Int | slice) -> Float:
    """Some rows and columns of `values`, without a copy of all columns."""
    if isinstance(columns, slice):
        return values[rows][:, columns]
    return values[np.ix_(np.flatnonzero(rows), columns)]


def per_gene(values: Float, chosen: Bool, number: Callable[[Float], Float]) -> Float:
    """A `number` for each column, from the `chosen` rows that measured it; NaN if none did."""
    found = np.full(values.shape[1], np.nan)
    for columns, rows in known_among(values, chosen):
        found[columns] = number(of_rows(values, rows, columns))
    return found


def measured_by_section(counts: Real, section: Labels) -> Bool:
    """Which section measured which gene: sections (sorted) x genes, from counts (spots x genes)."""
    _, first = np.unique(section, return_index=True)
    measured: Bool = ~np.isnan(counts[first])  # a section measured a gene in all of its spots or in none
    return measured
