"""Arrays of spots x genes a piece at a time, so that what is computed of many spots takes little memory.

Such an array may be float32. A piece of it is float64, so that sums over spots lose no digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from stpredict.arrays import Float, Int, Labels, Real

#: Values of one array that are in memory at a time as float64.
VALUES_AT_A_TIME = 2**21


class Table(Protocol):
    """Spots x genes: an array, or what is read or computed when rows are asked for.

    Rows are asked for by a slice, a mask, or indices of spots.
    """

    @property
    def shape(self) -> tuple[int, int]: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


def rows_of_sections(section: Labels) -> list[Int]:
    """The indices of each section's spots; sections are sorted."""
    return [np.flatnonzero(section == name) for name in np.unique(section)]


def blocks(number: int, others: int) -> Iterator[slice]:
    """All of a `number` of rows or columns, as many at a time as fit; each has so many `others`."""
    step = max(1, VALUES_AT_A_TIME // max(others, 1))
    return (slice(start, min(start + step, number)) for start in range(0, max(number, 1), step))


def gene_by_gene(score: Callable[..., Float], rows: Int, *values: Real) -> Float:
    """`score` of some spots' `values`, each spots x genes, a few genes at a time; joined along the last axis."""
    genes = blocks(values[0].shape[1], len(rows))
    return np.concatenate([score(*(one[rows, some].astype(float) for one in values)) for some in genes], axis=-1)


def per_section(score: Callable[..., Float], section: Labels, depth: Float, *values: Real) -> Float:
    """`score` of the depths and the `values` (spots x genes) of each section: sections (sorted) x genes."""
    found = np.full((len(np.unique(section)), values[0].shape[1]), np.nan)
    for own, rows in zip(found, rows_of_sections(section), strict=True):
        of_spots = depth[rows]
        own[:] = gene_by_gene(lambda *some, of_spots=of_spots: score(of_spots, *some), rows, *values)
    return found
