"""Find the results in a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from stpredict.result.file import RESULT_SUFFIX
from stpredict.storage.files import is_excluded


def results_in(folder: Path, exclude: Sequence[str] = (), unreadable: dict[Path, str] | None = None) -> list[Path]:
    """The results in a folder and all below it, sorted by name, without those that a pattern excludes.

    Skips temporary files, which begin with a dot. Adds folders that cannot be read to `unreadable`.
    """
    found: list[Path] = []

    def note(error: OSError) -> None:
        if unreadable is not None:
            unreadable[Path(error.filename)] = f"cannot be read ({error.strerror})"

    for parent, folders, names in os.walk(folder, onerror=note):
        here = Path(parent)
        folders[:] = [name for name in folders if not is_excluded((here / name).relative_to(folder), exclude)]
        for path in (here / name for name in names if name.endswith(RESULT_SUFFIX) and not name.startswith(".")):
            if path.is_file() and not is_excluded(path.relative_to(folder), exclude):
                found.append(path)
    return sorted(found)
