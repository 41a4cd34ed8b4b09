"""The standard streams, in whatever state the program gets them: closed, full, without a reader, or without UTF-8."""

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
    """A stream to which writing never fails: it loses what cannot be written, and keeps the first reason."""

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
    """Restart in UTF-8 if the locale has another encoding: names of slides and all output are UTF-8.

    Call it before anything else. Python uses UTF-8 by itself in most locales, but not in all.
    """
    if sys.getfilesystemencoding() != "utf-8" and sys.executable and os.name == "posix":
        os.environ["PYTHONUTF8"] = "1"
        if not sys.flags.safe_path:
            os.environ.pop(SAFE_PATH, None)  # set for child processes; the restart must find the same modules
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def open_streams() -> None:
    """Make the standard streams of this process fit for use.

    A closed one is opened on the null device, because a file that is opened later would take its place. Output is lost
    if its reader has gone. It is also lost if the disk is full, which `demand_written` reports.
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
    """Raise StpredictError if something written to standard output was lost, unless its reader had gone."""
    stream.flush()
    raw = getattr(stream, "buffer", None)
    if isinstance(raw, Steady) and raw.lost and raw.lost.errno != errno.EPIPE:
        raise StpredictError(f"standard output: cannot be written ({raw.lost.strerror}).")


def _steady(stream: TextIO | None, number: int, errors: str) -> TextIO:
    if stream is not None and (not isinstance(stream, io.TextIOWrapper) or isinstance(stream.buffer, Steady)):
        return stream
    if stream is not None and (stream.fileno() != number or os.name == "nt"):  # on Windows a terminal is not a file
        stream.reconfigure(errors=errors)
        return stream
    encoding = stream.encoding if stream is not None else "utf-8"
    raw = Steady(number, "w", closefd=False)
    return io.TextIOWrapper(raw, encoding, errors, line_buffering=number == 2 or raw.isatty())
