"""Counts of sections that wait in a temporary file, so that never all of a data set's are in memory."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from stpredict.data.counts import Counts
from stpredict.data.section import Section
from stpredict.errors import StpredictError

#: Up to this size the file is in memory.
SMALL_BYTES = 64 << 20
#: What an entry takes at most in the file, if its count is whole and below 65536.
ENTRY_BYTES = 4
#: Kinds of numbers in the file: the first that holds all of a section's.
NARROW = (np.uint8, np.uint16)


class Waiting:
    """A nameless temporary file. It is gone once nobody holds counts in it, and if the process ends or is killed.

    The environment variable TMPDIR names another folder for it.
    """

    def __init__(self) -> None:
        self._file: Any = tempfile.SpooledTemporaryFile(SMALL_BYTES)  # noqa: SIM115 (it is closed with its last user)
        self._end = 0
        weakref.finalize(self, _close, self._file)

    def take(self, section: Section) -> Section:
        """The section with its counts in the file, if they are in memory. Raises StpredictError if there is no room."""
        counts = section.counts
        if not counts.held:
            return section
        with self._told(), counts.opened() as entries:
            waiting = {part: self._write(entries[part][: counts.n_entries]) for part in ("data", "indices")}

        @contextmanager
        def opened() -> Iterator[dict[str, _Stretch]]:
            with self._told():
                yield waiting

        return replace(section, counts=Counts(counts.shape, counts.starts, opened))

    def _write(self, values: npt.NDArray[Any]) -> _Stretch:
        stored, begin = narrowed(values), self._end
        self._file.seek(begin)
        self._file.write(np.ascontiguousarray(stored).data)
        self._file.flush()
        self._end += stored.nbytes
        return _Stretch(self._file, begin, stored.dtype, values.dtype)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StpredictError(
                f"{tempfile.tempdir or 'the temporary folder'}: counts of sections cannot wait there until they are "
                f"written ({error.strerror or error}); set TMPDIR to another folder."
            ) from error


@dataclass(frozen=True)
class _Stretch:
    """Numbers of one kind in the file, from the byte `begin` on, which are read when they are sliced."""

    file: Any
    begin: int
    stored: np.dtype[Any]
    dtype: np.dtype[Any]

    def __getitem__(self, part: slice) -> npt.NDArray[Any]:
        values = np.empty(part.stop - part.start, self.stored)
        self.file.seek(self.begin + part.start * self.stored.itemsize)
        if self.file.readinto(values.data) != values.nbytes:
            raise OSError("the file ends early")
        return values.astype(self.dtype)


def narrowed(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same numbers in as few bytes as hold them all exactly."""
    for kind in NARROW:
        if values.size and values.min() >= 0 and values.max() <= np.iinfo(kind).max:
            stored = values.astype(kind)
            if np.array_equal(stored, values):
                return stored
    return values


def _close(file: Any) -> None:
    with suppress(OSError):  # the disk was full
        file.close()
