"""Rows of bytes of an HDF5 file. If each lies in one piece, reading past the library is eight times as fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from stpredict.arrays import Int, UInt8
from stpredict.errors import DatasetError

#: How messages on a damaged file of patches end.
CUT_AGAIN = "; replace the file, or remove it and cut the tiles again."


@dataclass(frozen=True)
class StoredRows:
    """The data set `name` of a file: bytes of a `shape`.

    If rows follow one another, `offset` is the place of the first one in the file. If each is a chunk of its own,
    `offsets` are those of all. Else both are None.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    offset: int | None
    offsets: Int | None = None

    @property
    def n(self) -> int:
        return self.shape[0]

    def read(self, index: Int | Sequence[int]) -> UInt8:
        """The rows of an `index`, in its order.

        Raises IndexError for a row that is not there, DatasetError if the file ends before it.
        """
        places = [int(i) for i in index]
        if any(not 0 <= place < self.shape[0] for place in places):
            raise IndexError(f"{self.path.name}: {self.name} has {self.shape[0]} rows.")
        rows = np.empty((len(places), *self.shape[1:]), np.uint8)
        if not len(places):
            return rows
        if self.offset is None and self.offsets is None:
            with h5py.File(self.path) as file:
                for row, place in zip(rows, places, strict=True):
                    row[...] = file[self.name][place]
            return rows
        with self.path.open("rb", buffering=0) as raw:
            for row, place in zip(rows, places, strict=True):
                raw.seek(self._offset(place, row.nbytes))
                if raw.readinto(row) != row.nbytes:
                    raise DatasetError(f"{self.path.name}: ends within its patches{CUT_AGAIN}")
        return rows

    def _offset(self, place: int, n_bytes: int) -> int:
        return int(self.offsets[place]) if self.offsets is not None else (self.offset or 0) + place * n_bytes


def stored_rows(path: Path, name: str) -> StoredRows:
    """Find the rows of a data set in its file."""
    with h5py.File(path) as file:
        dataset = file[name]
        plain = dataset.chunks is None and dataset.dtype == np.uint8
        offset = dataset.id.get_offset() if plain else None
        return StoredRows(path, name, dataset.shape, offset, _offsets(dataset))


def _offsets(dataset: h5py.Dataset) -> Int | None:
    """Where each row begins in the file, if it is a chunk of its own, as it is; else None."""
    if dataset.chunks != (1, *dataset.shape[1:]) or dataset.dtype != np.uint8:
        return None
    if dataset.id.get_create_plist().get_nfilters():
        return None
    found = np.full(dataset.shape[0], -1, dtype=np.int64)

    def note(chunk: h5py.h5d.StoreInfo) -> None:
        found[chunk.chunk_offset[0]] = chunk.byte_offset

    dataset.id.chunk_iter(note)
    return found if (found >= 0).all() else None  # a row that was never written has no chunk
