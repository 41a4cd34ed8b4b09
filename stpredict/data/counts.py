"""Counts of spots x genes that stay where they are stored, and are read by blocks of spots."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy.sparse import csr_array

from stpredict.arrays import Float, Int
from stpredict.data.hdf5 import opened_hdf5

#: A block has at most so many spots and, unless one spot has more, so many entries.
BLOCK_SPOTS, BLOCK_ENTRIES = 4096, 1 << 21
#: Spots that are not wanted are read all the same if they have fewer entries: they share a compressed chunk.
GAP_ENTRIES = 1 << 16


@dataclass(frozen=True, eq=False)
class Counts:
    """Counts of spots x genes, of which `starts` are in memory: where each spot's entries begin, and the last's end.

    `opened` lends the entries, spot after spot: the `data` (counts) and their `indices` (genes), which it reads when
    they are sliced. All methods raise StpredictError if that fails, and DatasetError if a file's entries are damaged.
    """

    shape: tuple[int, int]
    starts: Int
    opened: Callable[[], AbstractContextManager[Mapping[str, Any]]]
    held: bool = False  # whether the entries are in memory, too

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        with self.opened() as entries:
            dtype: np.dtype[Any] = entries["data"].dtype
            return dtype

    @property
    def n_entries(self) -> int:
        return int(self.starts[-1])

    def blocks(self, index: Int | None = None) -> Iterator[tuple[slice, csr_array]]:
        """The counts of all spots, or those of a rising `index`, by blocks, each with its place among them.

        Raises IndexError for spots that are not there.
        """
        index = self._spots(index)
        with self.opened() as entries:
            at = 0
            while at < len(index):
                n = self._n_together(index[at : at + BLOCK_SPOTS])
                first, wanted = index[at], index[at : at + n]
                block = self._read(entries, int(first), int(wanted[-1]) + 1)
                yield slice(at, at + n), block if block.shape[0] == n else block[wanted - first]
                at += n

    def _spots(self, index: Int | None) -> Int:
        if index is None:
            return np.arange(self.shape[0])
        if len(index) and not 0 <= np.min(index) <= np.max(index) < self.shape[0]:
            raise IndexError(f"there are {self.shape[0]} spots.")
        return np.asarray(index, dtype=np.int64)

    def _n_together(self, index: Int) -> int:
        """How many of the first spots to read at once."""
        begin, end = self.starts[index], self.starts[index + 1]
        far = (begin[1:] - end[:-1] > GAP_ENTRIES) | (end[1:] - begin[0] > BLOCK_ENTRIES)
        return int(np.argmax(far)) + 1 if far.any() else len(index)

    def _read(self, entries: Mapping[str, Any], first: int, end: int) -> csr_array:
        begin, stop = int(self.starts[first]), int(self.starts[end])
        parts = entries["data"][begin:stop], entries["indices"][begin:stop], self.starts[first : end + 1] - begin
        block = csr_array(parts, (end - first, self.shape[1]))
        block.check_format(full_check=True)  # later code trusts its indices
        return block

    def rows(self, index: Int | None = None) -> csr_array:
        """The counts of all spots, or of some in the order of an `index`. Raises IndexError for others."""
        if index is None:
            with self.opened() as entries:
                return self._read(entries, 0, self.shape[0])  # of counts in memory it copies nothing
        wanted = self._spots(index)
        rising = np.unique(wanted)
        starts = np.concatenate([[0], np.cumsum(np.diff(self.starts)[rising])])
        data, indices = np.empty(0), np.empty(0, np.int32)
        for place, block in self.blocks(rising):
            if not place.start:
                data, indices = (np.empty(starts[-1], part.dtype) for part in (block.data, block.indices))
            own = slice(starts[place.start], starts[place.stop])
            data[own], indices[own] = block.data, block.indices
        found = csr_array((data, indices, starts), (len(rising), self.shape[1]))
        return found if np.array_equal(rising, wanted) else found[np.searchsorted(rising, wanted)]

    @cached_property
    def _sums(self) -> tuple[Float, Float]:
        of_spots, of_genes = np.zeros(self.shape[0]), np.zeros(self.shape[1])
        for place, block in self.blocks():
            of_spots[place] = block @ np.ones(self.shape[1])
            of_genes += np.bincount(block.indices, block.data, minlength=self.shape[1])
        return of_spots, of_genes

    @property
    def per_spot(self) -> Float:
        """The sum of each spot's counts."""
        return self._sums[0]

    @property
    def per_gene(self) -> Float:
        """The sum of each gene's counts."""
        return self._sums[1]


def in_memory(counts: Any) -> Counts:
    """Counts that are in memory already, sparse or dense."""
    matrix = csr_array(counts)
    entries = {"data": matrix.data, "indices": matrix.indices}
    return Counts(matrix.shape, matrix.indptr.astype(np.int64), partial(_lent, entries), held=True)


def _lent(entries: Mapping[str, Any]) -> AbstractContextManager[Mapping[str, Any]]:
    return nullcontext(entries)


def stored_counts(path: Path, file: h5py.File, name: str, shape: tuple[int, int]) -> Counts:
    """The counts of the group `name` of an HDF5 file, of which all entries are read once, to check them.

    Raises ValueError, LookupError or DatasetError if they are damaged.
    """
    group = file[name]
    starts, n = group["indptr"][:].astype(np.int64, casting="safe"), len(group["data"])
    if starts.shape != (shape[0] + 1,) or starts[0] or starts[-1] != n or (np.diff(starts) < 0).any():
        raise ValueError(f"the entries of {name} do not fit {shape[0]} spots")
    kinds = group["data"].dtype.kind, group["indices"].dtype.kind
    if group["data"].shape != group["indices"].shape or kinds[0] not in "biuf" or kinds[1] not in "iu":
        raise ValueError(f"the entries of {name} are not a count and a gene each")
    counts = Counts(shape, starts, partial(_opened, path, name, starts))
    _ = counts.per_spot  # reads all
    return counts


@contextmanager
def _opened(path: Path, name: str, starts: Int) -> Iterator[h5py.Group]:
    with opened_hdf5(path, check_heaps=False) as file:
        if not np.array_equal(file[name]["indptr"][:], starts):
            raise ValueError("it is not the file any more that was opened before")
        yield file[name]
