"""Files that are whole or not there."""

from __future__ import annotations

import fnmatch
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; no, if that cannot be told, as within a folder that nobody may enter."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder; no, if that cannot be told, as of a name that is too long."""
    try:
        return path.exists()
    except OSError:
        return False


def is_excluded(path: Path, exclude: Sequence[str]) -> bool:
    """Whether a pattern matches a path or, if there is no slash in the pattern, its name."""
    return any(fnmatch.fnmatch(path.as_posix() if "/" in pattern else path.name, pattern) for pattern in exclude)


def demand_new(*paths: Path) -> None:
    """Raise UsageError for the first of some files to be written that exists."""
    for path in paths:
        if path.exists():
            raise UsageError(f"{path}: exists; --overwrite replaces it.")


def make_folder(folder: Path) -> list[Path]:
    """Make a folder for output, if need be; returns those that were missing, the innermost first.

    Raises UsageError if it cannot be made or written to.
    """
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"-o {folder}: cannot be made ({error.strerror}).") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"-o {folder}: cannot be written to.")
    return missing


@contextmanager
def output_folders(*folders: Path) -> Iterator[None]:
    """Make folders for output, if need be, and remove those again that hold nothing in the end.

    A call that is refused then leaves nothing. Another one that found such a folder makes it anew when it writes.
    Raises UsageError if one cannot be made or written to.
    """
    made: set[Path] = set()
    try:
        for folder in folders:
            made.update(make_folder(folder))
        yield
    finally:
        for folder in sorted(made, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):  # something lies in it, or it is gone
                folder.rmdir()
