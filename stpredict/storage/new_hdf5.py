"""HDF5 files that are whole or not there, also where a disk is full.

A write that fails is kept from the library, which ends the process when it cannot close a file. It is raised later.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from stpredict.storage.files import atomic_path


@contextmanager
def new_hdf5(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file to write to, which takes the place of `path` when it is whole. Raises OSError if it cannot."""
    with atomic_path(path) as temporary, io.FileIO(temporary, "w+") as raw:
        file = _Forgiving(raw)
        try:
            with h5py.File(file, "w") as hdf5:
                yield hdf5
        finally:
            if file.error:  # whatever else was raised follows from it
                raise file.error


class _Forgiving(io.RawIOBase):
    """What h5py writes to: after the first error nothing is written any more, and zeros are read."""

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        left = memoryview(content)
        try:
            while left and not self.error:
                left = left[self._raw.write(left) :]
        except OSError as error:
            self.error = error
        return len(content)

    def readinto(self, buffer: Any) -> int:
        got = self._raw.readinto(buffer)
        buffer[got:] = bytes(len(buffer) - got)
        return len(buffer)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def truncate(self, size: int | None = None) -> int:
        return self._raw.truncate(size)
