"""Genes that only some sections measured: in spots of the others a gene is NaN, never zero. No gene is dropped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stpredict.arrays import Bool, Int, Labels, Real
from stpredict.statistics.blocks import Table, blocks


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


def kinds_of(values: Table) -> Kinds:
    """The kinds of rows of `values`, spots x genes, which are read some at a time."""
    kind, seen = np.empty(values.shape[0], dtype=np.int64), dict[bytes, int]()
    width = -(-values.shape[1] // 8)
    for rows in blocks(*values.shape):
        packed = np.packbits(np.isnan(values[rows]), axis=1)
        if not packed.any():  # as in most data
            kind[rows] = seen.setdefault(bytes(width), len(seen))
            continue
        patterns, which = np.unique(packed, axis=0, return_inverse=True)
        numbers = [seen.setdefault(pattern.tobytes(), len(seen)) for pattern in patterns]
        kind[rows] = np.array(numbers, dtype=np.int64)[which.reshape(-1)]
    found = np.frombuffer(b"".join(seen), np.uint8).reshape(len(seen), width)
    return Kinds(kind, np.unpackbits(found, axis=1, count=values.shape[1]) == 0)


def measured_alike(values: Table) -> list[Alike]:
    """Group the columns of `values`, spots x genes, by the spots that measured them."""
    kinds = kinds_of(values)
    if kinds.known.all():
        return [Alike(slice(None), slice(None))]
    patterns: dict[bytes, list[int]] = {}
    for column, known in enumerate(kinds.known.T):
        patterns.setdefault(known.tobytes(), []).append(column)
    return [Alike(np.array(own), np.flatnonzero(kinds.known[kinds.kind, own[0]])) for own in patterns.values()]


def patterns_of(member: Bool) -> Iterator[tuple[Int, Bool]]:
    """Groups of columns of a table that are true in the same rows, and these rows' mask."""
    patterns, which = np.unique(member, axis=1, return_inverse=True)
    for number, rows in enumerate(patterns.T):
        yield np.flatnonzero(which.reshape(-1) == number), rows


def measured_by_section(counts: Real, section: Labels) -> Bool:
    """Which section measured which gene: sections (sorted) x genes, from counts (spots x genes)."""
    _, first = np.unique(section, return_index=True)
    measured: Bool = ~np.isnan(counts[first])  # a section measured a gene in all of its spots or in none
    return measured
