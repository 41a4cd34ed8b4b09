"""Files that are whole or not there."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stpredict.errors import UsageError

#: The names of temporary files, of `atomic_path` and of leases.
TEMPORARY = re.compile(r"\.(.{0,40}\.)?[0-9a-f]{16}\.tmp(\..+)?", re.DOTALL)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, with its suffix; synced and renamed to it on success, removed on failure.

    Its name cannot be guessed, so that in a shared folder nobody can put a link in its place.
    """
    temporary = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(8)}.tmp{path.suffix}")
    try:
        yield temporary
        with temporary.open("r+b") as file:  # Windows syncs only what it may write
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder for output, if need be. Raises UsageError if it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"-o {folder}: cannot be made ({error.strerror}).") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"-o {folder}: cannot be written to.")
