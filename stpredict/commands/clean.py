"""`stpredict clean`: what calls that were killed left behind, or also compiled networks; and their removal."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stpredict.console import printable, report
from stpredict.engines.cache import engine_folder, kept_files
from stpredict.errors import UsageError
from stpredict.prediction.leases import is_held, is_lease, take_lease
from stpredict.prediction.shards import is_shards, own_files
from stpredict.result.file import RESULT_SUFFIX
from stpredict.storage.files import TEMPORARY

PARTS, LEASE = f"{RESULT_SUFFIX}.parts", ".lease"
#: A temporary file that was not written to for so long is nobody's: pictures are drawn without a lease.
FORGOTTEN_S = 3600.0


@dataclass(frozen=True)
class Leftover:
    """A folder of parts, a lease, a temporary file, or the compiled networks."""

    path: Path
    what: str
    files: tuple[Path, ...]  # what would be removed
    n_bytes: int
    lease: Path | None = None  # whoever holds this is at it


def clean_command(folders: Sequence[Path], remove: bool) -> int:
    """List, or remove, what is left over in the folders and all below; without any, here, and the compiled networks.

    Returns the exit code: 1 if something could not be removed. Raises UsageError if there is no such folder.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder}: {'is a file, not a folder' if folder.exists() else 'no such folder'}.")
    found = {each.path.resolve(): each for folder in folders or [Path()] for each in leftovers(folder)}
    n_bytes, n_found, failed = 0, 0, False
    for each in (*found.values(), *(() if folders else compiled_networks())):
        try:
            if remove and not _remove(each):
                report(f"{each.path}: another process is at it now; left to that")
                continue
        except OSError as error:
            report(f"{each.path}: cannot be removed ({error.strerror}).")
            failed = True
            continue
        n_bytes, n_found = n_bytes + each.n_bytes, n_found + 1
        print(printable(f"{each.path}: {each.what}, {_size(each.n_bytes)}"))
    if not n_found:
        report("nothing to remove" if not failed else "nothing was removed")
    else:
        report(f"removed {_size(n_bytes)}" if remove else f"{_size(n_bytes)} in all; --remove removes it")
    return int(failed)


def leftovers(folder: Path) -> Iterator[Leftover]:
    """What calls that were killed left in a folder and all below, and no process is at. No link is followed."""
    for parent, folders, names in os.walk(folder, onerror=_tell):
        here = Path(parent)
        leases = [name for name in names if name.endswith(LEASE) and not TEMPORARY.fullmatch(name)]
        leases = [name for name in leases if (here / name).is_file()]  # else a pipe would be waited for
        held = {name for name in leases if is_held(here / name)}
        for path in (here / name for name in sorted(folders) if name.endswith(PARTS)):
            if path.is_symlink() or not is_shards(path):
                continue
            folders.remove(path.name)
            lease = path.with_suffix(LEASE)
            if lease.name not in held:
                count = sum(file.suffix == ".npy" for file in own_files(path))
                yield _leftover(path, f"{count} parts of a prediction; the same call goes on with them", lease)
        for path in (here / name for name in sorted(names) if not (here / name).is_symlink()):
            if path.name in leases and path.name not in held and is_lease(path):
                yield _leftover(path, "a lease whose owner is gone", path)
            elif TEMPORARY.fullmatch(path.name) and not held and _is_forgotten(path):
                yield _leftover(path, "a temporary file")


def compiled_networks() -> Iterator[Leftover]:
    """What the engines keep in the cache."""
    try:
        folder, files = engine_folder(), tuple(kept_files())
    except OSError as error:
        report(f"compiled networks: cannot be looked at ({error.strerror or error}).")
        return
    if files:
        what = f"{len(files)} files of compiled networks, which the next call makes anew"
        yield Leftover(folder, what, files, _bytes_of(files))


def _leftover(path: Path, what: str, lease: Path | None = None) -> Leftover:
    files = own_files(path) if path.is_dir() else (path,)
    return Leftover(path, what, files, _bytes_of(files), lease)


def _bytes_of(files: Sequence[Path]) -> int:
    return sum(file.lstat().st_size for file in files if file.exists() or file.is_symlink())


def _is_forgotten(path: Path) -> bool:
    return path.exists() and time.time() - path.stat().st_mtime > FORGOTTEN_S


def _remove(leftover: Leftover) -> bool:
    """Remove the files and folders that are empty then. False if a process took up the work meanwhile."""
    with _alone(leftover.lease) as alone:
        if alone:
            for file in leftover.files:
                file.unlink(missing_ok=True)
            for parent, _, _ in os.walk(leftover.path, topdown=False):
                if not any(Path(parent).iterdir()):
                    Path(parent).rmdir()
    return alone


@contextmanager
def _alone(path: Path | None) -> Iterator[bool]:
    """Hold a lease, so that no prediction begins meanwhile; it is gone afterwards."""
    lease = take_lease(path) if path else None
    try:
        yield path is None or lease is not None
    finally:
        if lease:
            lease.release()


def _tell(error: OSError) -> None:
    report(f"{error.filename}: cannot be read ({error.strerror}).")


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes >= 50_000 else f"{n_bytes:,} bytes"
