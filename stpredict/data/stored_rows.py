"""Rows of bytes of an HDF5 file. If they lie one after the other, reading past the library is eight times as fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from stpredict.arrays import Int, UInt8
from stpredict.errors import DatasetError


@dataclass(frozen=True)
class StoredRows:
    """The data set `name` of a file: bytes of a `shape`. `offset` is the first one's in the file; None if in chunks."""

    path: Path
    name: str
    shape: tuple[int, ...]
    offset: int | None

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
        if self.offset is None:
            with h5py.File(self.path) as file:
                for row, place in zip(rows, places, strict=True):
                    row[...] = file[self.name][place]
            return rows
        with self.path.open("rb", buffering=0) as raw:
            for row, place in zip(rows, places, strict=True):
                raw.seek(self.offset + place * row.nbytes)
                if raw.readinto(row) != row.nbytes:
                    raise DatasetError(f"{self.path.name}: ends within its patches; cut them again.")
        return rows


def stored_rows(path: Path, name: str) -> StoredRows:
    """Find the rows of a data set in its file."""
    with h5py.File(path) as file:
        dataset = file[name]
        plain = dataset.chunks is None and dataset.dtype == np.uint8
        return StoredRows(path, name, dataset.shape, dataset.id.get_offset() if plain else None)
