"""The standard streams, in whatever state the program is given them: closed, full, read no more, or without UTF-8."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import TextIO

from stpredict.errors import StpredictError
from stpredict.search_path import SAFE_PATH


class Steady(io.FileIO):
    """A stream to which nothing fails to be written: what cannot be is lost, and the first reason for it is kept."""

    lost: OSError | None = None

    def write(self, data: object, /) -> int:
        left = memoryview(data).cast("B")  # type: ignore[arg-type]
        size = len(left)
        try:
            while left:
                written = super().write(left)
                if written is None:  # a pipe that does not block, and is full
                    select.select([], [self], [])
                else:
                    left = left[written:]
        except OSError as error:
            self.lost = self.lost or error
        return size


def use_utf8() -> None:
    """Begin anew in UTF-8 where the locale has another encoding, as names of slides and what is printed are UTF-8.

    It is to be called before anything is done. Python does so by itself in most places, but not in all.
    """
    if sys.getfilesystemencoding() != "utf-8" and sys.executable and os.name == "posix":
        os.environ["PYTHONUTF8"] = "1"
        if not sys.flags.safe_path:
            os.environ.pop(SAFE_PATH, None)  # it was set for children, and this one is to find what it found
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def open_streams() -> None:
    """Make the standard streams of this process fit for use.

    Those that are closed are opened on nothing, as a file that is opened later would take their place. What is printed
    for a reader that has gone is lost, and so is what a full disk has no room for, of which `demand_written` tells.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 (for good)
    sys.stdout = _steady(sys.stdout, 1, "surrogateescape")  # paths are the file system's, whatever their bytes
    sys.stderr = _steady(sys.stderr, 2, "backslashreplace")


def demand_written(stream: TextIO) -> None:
    """Raise StpredictError if something was lost that was written to standard output, but not for want of a reader."""
    stream.flush()
    raw = getattr(stream, "buffer", None)
    if isinstance(raw, Steady) and raw.lost and raw.lost.errno != errno.EPIPE:
        raise StpredictError(f"standard output: cannot be written ({raw.lost.strerror}).")


def _steady(stream: TextIO | None, number: int, errors: str) -> TextIO:
    if stream is not None and (not isinstance(stream, io.TextIOWrapper) or isinstance(stream.buffer, Steady)):
        return stream
    if stream is not None and (stream.fileno() != number or os.name == "nt"):  # there a terminal is no file
        stream.reconfigure(errors=errors)
        return stream
    encoding = stream.encoding if stream is not None else "utf-8"
    raw = Steady(number, "w", closefd=False)
    return io.TextIOWrapper(raw, encoding, errors, line_buffering=number == 2 or raw.isatty())
