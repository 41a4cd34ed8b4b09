"""One slide to predict: where its result goes, and how messages call it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stpredict.result.file import RESULT_SUFFIX


def without_names(text: str, names: Mapping[Path, str]) -> str:
    """The text with the files replaced by their `names`, and without the folders that the files lie in."""
    parents = {path.parent for path in names}
    folders = {
        written for parent in parents for written in (str(parent), os.path.normpath(parent), str(parent.resolve()))
    }
    for folder in sorted(folders - {"."}, key=len, reverse=True):
        text = text.replace(f"{folder}{os.sep}", "")
        if os.sep in folder.rstrip(os.sep) and Path(folder).name != "..":  # else it could be any word
            text = re.sub(rf"(?<![\w/]){re.escape(folder)}(?![^\W_])", "the slides' folder", text)
    known: dict[str, str] = {}
    for path, name in names.items():
        decoded = os.fsencode(path.name).decode("utf-8", "replace")
        known |= dict.fromkeys((path.name, path.stem, decoded, repr(path.name)[1:-1]), name) | {name: name}
    longest_first = "|".join(re.escape(written) for written in sorted(known, key=len, reverse=True))
    return re.sub(rf"(?<![^\W_])(?:{longest_first})(?![^\W_])", lambda found: known[found[0]], text)


@dataclass(frozen=True)
class Job:
    """One slide, the path of its result, and its um per pixel and its mask if they were given for it alone."""

    slide: Path
    result: Path
    mpp: float | None = None
    mask: Path | None = None
    anonymous: str | None = None  # the name of the slide in all output

    @property
    def name(self) -> str:
        """The slide's name in its result."""
        return self.anonymous or as_text(self.result.name.removesuffix(RESULT_SUFFIX))

    @property
    def shown(self) -> Path:
        """The slide's path in messages."""
        return Path(self.anonymous) if self.anonymous else self.slide

    @property
    def lease(self) -> Path:
        """The file that says that a process is predicting the slide."""
        return self.result.with_name(f"{self.result.name}.lease")

    @property
    def parts(self) -> Path:
        """The folder of the shards that are predicted so far."""
        return self.result.with_name(f"{self.result.name}.parts")

    @property
    def facts(self) -> dict[str, str]:
        """The facts of the slide in each event of the log."""
        return {"slide": str(self.shown), "output": str(self.result)}

    def hide_names(self, error: Exception) -> None:
        """Replace the names of an anonymous slide in an error by its anonymous name."""
        if self.anonymous:
            names = ({self.mask: "mask"} if self.mask else {}) | {self.slide: self.anonymous}
            error.args = tuple(without_names(part, names) if isinstance(part, str) else part for part in error.args)


def slide_name(path: Path) -> str:
    """The slide's name in results: its file name without the suffix, as valid text."""
    return as_text(path.stem)


def as_text(name: str) -> str:
    """A file's name as valid text."""
    return os.fsencode(name).decode("utf-8", "replace")
