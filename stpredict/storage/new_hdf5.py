"""HDF5 files that are whole or missing, even if a disk is full.

The library would end the process if it could not close a file. So it does not see failed writes; they are raised later.
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
    """A new HDF5 file to write to. It replaces `path` when it is whole. Raises OSError if it cannot be written."""
    with atomic_path(path) as temporary, io.FileIO(temporary, "w+") as raw:
        file = _Forgiving(raw)
        try:
            with h5py.File(file, "w") as hdf5:
                yield hdf5
        finally:
            if file.error:  # any other error follows from this one
                raise file.error


class _Forgiving(io.RawIOBase):
    """The file that h5py writes to. After the first error it writes nothing more, and reads zeros for missing bytes."""

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
