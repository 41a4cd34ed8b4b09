"""`stpredict clean`: list or remove what killed calls left behind, and compiled networks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stpredict.commands.as_json import print_json
from stpredict.console import printable, report
from stpredict.engines.cache import engine_folder, kept_files
from stpredict.errors import UsageError, counted
from stpredict.prediction.leases import is_held, is_lease, take_lease
from stpredict.prediction.shards import is_shards, own_files
from stpredict.result.file import RESULT_SUFFIX
from stpredict.storage.files import TEMPORARY

PARTS, LEASE = f"{RESULT_SUFFIX}.parts", ".lease"
#: After so long without a write, nobody uses a temporary file. Age has to tell: pictures are drawn without a lease.
FORGOTTEN_S = 3600.0


@dataclass(frozen=True)
class Leftover:
    """A folder of parts, a lease, a temporary file, or the compiled networks."""

    path: Path
    what: str
    files: tuple[Path, ...]  # what would be removed
    n_bytes: int
    kind: Literal["parts", "lease", "temporary", "compiled"]
    lease: Path | None = None  # its holder is at work


def clean_command(folders: Sequence[Path], remove: bool, as_json: bool = False) -> int:
    """List or remove leftovers in the folders and all below; without folders, in this one, and the compiled networks.

    Returns the exit code: 1 if something could not be removed. Raises UsageError if there is no such folder.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder}: {'is a file, not a folder' if folder.exists() else 'no such folder'}.")
    of_calls = {each.path.resolve(): each for folder in folders or [Path()] for each in leftovers(folder)}
    done: list[Leftover] = []
    failed = False
    for each in (*of_calls.values(), *(() if folders else compiled_networks())):
        try:
            if remove and not _remove(each):
                report(f"{each.path}: another process is using it now; left to that")
                continue
        except OSError as error:
            report(f"{each.path}: cannot be removed ({error.strerror}).")
            failed = True
            continue
        done.append(each)
        if not as_json:
            print(printable(f"{each.path}: {each.what}, {_size(each.n_bytes)}"))
    n_bytes = sum(each.n_bytes for each in done)
    if as_json:
        found = [{"path": each.path, "kind": each.kind, "what": each.what, "bytes": each.n_bytes} for each in done]
        print_json({"removed": remove, "bytes": n_bytes, "found": found})
    elif not done:
        report("nothing to remove" if not failed else "nothing was removed")
    else:
        report(f"removed {_size(n_bytes)}" if remove else f"{_size(n_bytes)} in all; --remove removes it")
    return int(failed)


def leftovers(folder: Path) -> Iterator[Leftover]:
    """What killed calls left in a folder and all below, unless a process uses it. Follows no links."""
    for parent, folders, names in os.walk(folder, onerror=_tell):
        here = Path(parent)
        leases = [name for name in names if name.endswith(LEASE) and not TEMPORARY.fullmatch(name)]
        leases = [name for name in leases if (here / name).is_file()]  # reading a pipe would block
        held = {name for name in leases if is_held(here / name)}
        for path in (here / name for name in sorted(folders) if name.endswith(PARTS)):
            if path.is_symlink() or not is_shards(path):
                continue
            folders.remove(path.name)
            lease = path.with_suffix(LEASE)
            if lease.name not in held:
                count = sum(file.suffix == ".npy" for file in own_files(path))
                yield _leftover(
                    path, f"{counted(count, 'part')} of a prediction; the same call goes on with them", "parts", lease
                )
        for path in (here / name for name in sorted(names) if not (here / name).is_symlink()):
            if path.name in leases and path.name not in held and is_lease(path):
                yield _leftover(path, "a lease whose owner is gone", "lease", path)
            elif TEMPORARY.fullmatch(path.name) and not held and _is_forgotten(path):
                yield _leftover(path, "a temporary file", "temporary")


def compiled_networks() -> Iterator[Leftover]:
    """The compiled networks that engines keep in the cache."""
    try:
        folder, files = engine_folder(), tuple(kept_files())
    except OSError as error:
        report(f"compiled networks: cannot be looked at ({error.strerror or error}).")
        return
    if files:
        what = f"{counted(len(files), 'file')} of compiled networks, which the next call makes anew"
        yield Leftover(folder, what, files, _bytes_of(files), "compiled")


def _leftover(
    path: Path, what: str, kind: Literal["parts", "lease", "temporary"], lease: Path | None = None
) -> Leftover:
    files = own_files(path) if path.is_dir() else (path,)
    return Leftover(path, what, files, _bytes_of(files), kind, lease)


def _bytes_of(files: Sequence[Path]) -> int:
    return sum(file.lstat().st_size for file in files if file.exists() or file.is_symlink())


def _is_forgotten(path: Path) -> bool:
    return path.exists() and time.time() - path.stat().st_mtime > FORGOTTEN_S


def _remove(leftover: Leftover) -> bool:
    """Remove the files, and the folders that are then empty. False if a process took up the work meanwhile."""
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
    """Hold a lease, so that no prediction begins meanwhile, and remove it afterwards. False if a process holds it."""
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
