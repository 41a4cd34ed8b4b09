"""Write files so that they are whole or missing."""

from __future__ import annotations

import fnmatch
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from stpredict.errors import UsageError

#: Names of temporary files of `atomic_path` and of leases.
TEMPORARY = re.compile(r"\.(.{0,40}\.)?[0-9a-f]{16}\.tmp(\..+)?", re.DOTALL)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, with its suffix. It is synced and renamed to `path` on success, else removed.

    Its name cannot be guessed, so that nobody can put a link in its place in a shared folder.
    """
    temporary = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(8)}.tmp{path.suffix}")
    try:
        yield temporary
        with temporary.open("r+b") as file:  # Windows syncs only files that are open for writing
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def is_folder(path: Path) -> bool:
    """Whether there is such a folder. False if that cannot be determined, as within a closed folder."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder. False if that cannot be determined, as for a name that is too long."""
    try:
        return path.exists()
    except OSError:
        return False


def is_excluded(path: Path, exclude: Sequence[str]) -> bool:
    """Whether a pattern matches a path or, if the pattern has no slash, the path's name."""
    return any(fnmatch.fnmatch(path.as_posix() if "/" in pattern else path.name, pattern) for pattern in exclude)


def demand_new(*paths: Path) -> None:
    """Raise UsageError for the first of some output files that exists."""
    for path in paths:
        if path.exists():
            raise UsageError(f"{path}: exists; --overwrite replaces it.")


def make_folder(folder: Path) -> list[Path]:
    """Make a folder for output, if it is missing. Returns the folders that were missing, the innermost first.

    Raises UsageError if it cannot be made or written to.
    """
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        if file := next((path for path in (folder, *folder.parents) if path.is_file()), None):
            raise UsageError(f"-o {folder}: {file} is a file, not a folder.")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"-o {folder}: cannot be made ({error.strerror}).") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"-o {folder}: cannot be written to.")
    return missing


@contextmanager
def output_folders(*folders: Path) -> Iterator[None]:
    """Make missing folders for output, and remove those that are empty in the end.

    So a refused call leaves nothing. Another call that found such a folder makes it again when it writes.
    Raises UsageError if one cannot be made or written to.
    """
    made: set[Path] = set()
    try:
        for folder in folders:
            made.update(make_folder(folder))
        yield
    finally:
        for folder in sorted(made, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):  # it is not empty, or it is gone
                folder.rmdir()
