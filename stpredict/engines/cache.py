"""Compiled networks on disk: each a file, and a JSON beside it with its origin, its checksum and its numeric check."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from stpredict.console import Report
from stpredict.engines.check import Verdict
from stpredict.errors import first_line
from stpredict.machine import cache_folder
from stpredict.storage.files import atomic_path

Key = dict[str, Any]
#: Suffixes of torch's files, by which torch recognises them; all other files end in `.bin`.
SUFFIXES = {"tensorrt": ".pt2", "compile": ".pt2"}


class Kept(NamedTuple):
    """A compiled network from the cache, and what is known of it."""

    path: Path
    verdict: Verdict
    calibration: str | None


def engine_folder() -> Path:
    """The folder of compiled networks, which only this user can enter. Raises OSError if it cannot be made."""
    folder = cache_folder() / "engines"
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid"):
        if folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to another user")
        folder.chmod(0o700)  # files loaded from here are executed
    return folder


def kept_files() -> Iterator[Path]:
    """All files that engines keep. Raises OSError if the folder cannot be read."""
    folder = engine_folder()
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from (Path(parent, name) for parent, _, names in os.walk(path) for name in names)
        else:
            yield path


def cache_path(engine: str, key: Key) -> Path:
    """The file of an engine that was made from `key`. Raises OSError if there is no folder for it."""
    digest = hashlib.sha256(_text(key).encode()).hexdigest()
    return engine_folder() / f"{engine}-{digest[:32]}{SUFFIXES.get(engine, '.bin')}"


def find(engine: str, key: Key) -> Kept | None:
    """The compiled network made from exactly `key`; None if it is missing, damaged or another's."""
    try:
        path = cache_path(engine, key)
        sidecar = json.loads(path.with_suffix(".json").read_text())
        if _text(sidecar["key"]) != _text(key) or sidecar["sha256"] != _checksum(path):
            return None
        return Kept(path, Verdict(**sidecar["verdict"]), sidecar["calibration"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def store(
    engine: str, key: Key, verdict: Verdict, write: Callable[[Path], None], report: Report,
    calibration: str | None = None,
) -> None:  # fmt: skip
    """Let `write` fill the file, and put the JSON beside it. If that fails, the network is only built again."""
    try:
        path = cache_path(engine, key)
        with atomic_path(path) as temporary:
            write(temporary)
            checksum = _checksum(temporary)
        sidecar = {"key": key, "sha256": checksum, "verdict": verdict.as_dict(), "calibration": calibration}
        with atomic_path(path.with_suffix(".json")) as temporary:
            temporary.write_text(_text(sidecar))
    except (OSError, RuntimeError) as error:
        report(
            f"{engine}: what was compiled cannot be kept, so that it is compiled each time ({first_line(error)}); "
            "$STPREDICT_CACHE may name another folder."
        )


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
