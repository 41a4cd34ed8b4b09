"""Rows of numbers in a nameless file, for what is computed once and read again and again, but not all at a time."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stpredict.arrays import Float32
from stpredict.errors import StpredictError


@dataclass(frozen=True, eq=False)
class RowsOnDisk:
    """Rows x columns in single precision. The file is gone once nobody holds it, and if the process is killed."""

    shape: tuple[int, int]
    file: Any

    def __getitem__(self, rows: Any, /) -> Float32:
        """Some rows, by a slice, a mask, or indices of any shape. Rows that follow one another are read together.

        Raises IndexError for a row that is not there.
        """
        index = rows if isinstance(rows, np.ndarray) and rows.dtype.kind == "i" else np.arange(self.shape[0])[rows]
        flat = index.reshape(-1)
        if len(flat) and not 0 <= flat.min() <= flat.max() < self.shape[0]:
            raise IndexError(f"there are {self.shape[0]} rows.")
        found = np.empty((len(flat), self.shape[1]), np.float32)
        ends = np.flatnonzero(np.diff(flat) != 1) + 1
        for begin, end in zip([0, *ends.tolist()], [*ends.tolist(), len(flat)], strict=True):
            if begin < end:
                self._read(int(flat[begin]), found[begin:end])
        return found.reshape(*index.shape, self.shape[1])

    def _read(self, first: int, found: Float32) -> None:
        self.file.seek(4 * first * self.shape[1])
        data = found.reshape(-1).data.cast("B")
        while len(data):
            n_bytes = self.file.readinto(data)
            if not n_bytes:
                raise StpredictError("a temporary file ends early.")
            data = data[n_bytes:]


def rows_on_disk(parts: Iterable[Float32], shape: tuple[int, int], folder: Path) -> RowsOnDisk:
    """Put the rows of `parts`, one after the other, into a file in a `folder`.

    Raises StpredictError if it cannot hold it.
    """
    try:
        file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (it is closed with its last user)
        rows = RowsOnDisk(shape, file)
        weakref.finalize(rows, _close, file)
        for part in parts:
            _write(file, np.ascontiguousarray(part, np.float32).data.cast("B"))
    except OSError as error:
        size = 4 * shape[0] * shape[1] / 1e6
        raise StpredictError(
            f"{folder}: cannot hold a temporary file of {size:,.0f} MB ({error.strerror or error})."
        ) from error
    return rows


def _write(file: Any, data: memoryview) -> None:
    while len(data):
        data = data[file.write(data) :]


def _close(file: Any) -> None:
    with suppress(OSError):
        file.close()
