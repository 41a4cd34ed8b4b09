"""Search a folder of slides: which files are slides, and why others are skipped."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from stpredict.result.file import RESULT_SUFFIX
from stpredict.storage.files import is_excluded

#: Suffixes to find in folders. Plain images and DICOM have to be named: in folders they are mostly something else.
SLIDE_SUFFIXES = {
    ".bif", ".btf", ".mrxs", ".ndpi", ".qptiff", ".scn", ".svs", ".svslide", ".tf2", ".tf8", ".tif", ".tiff", ".vms",
    ".vmu",
}  # fmt: skip
OWN_PICTURES = re.compile(r"\.(heatmap|overlay|pca|channels(-\d+)?\.ome)\.(tif|png|json)$")
#: Names that scanners and exports give to pictures of a slide's label, of its glass and of the whole slide.
ASSOCIATED = re.compile(
    r"(^|[\W_])(label|macro|thumb|thumbnail|overview)([\W_]?(image|img))?([\W_]?\d+)?(\.ome)?$", re.IGNORECASE
)
#: Suffixes that browsers and copying programs give to incomplete files.
HALF_COPIED = {".crdownload", ".download", ".filepart", ".part", ".partial", ".tmp"}
#: Folders that systems and storage devices make for lost files, deleted files, thumbnails and old states.
OF_THE_SYSTEM = {
    "#recycle", "#snapshot", "$RECYCLE.BIN", "@Recycle", "@eaDir", "System Volume Information", "__MACOSX",
    "lost+found",
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """The slides in a folder and all below; counts of skipped files and folders by reason; folders not searched."""

    slides: list[Path] = field(default_factory=list)
    files: Counter[str] = field(default_factory=Counter)  # by reason, as `folders`
    folders: Counter[str] = field(default_factory=Counter)
    links: list[Path] = field(default_factory=list)  # to folders, not followed
    unreadable: dict[Path, str] = field(default_factory=dict)  # folders, each with the reason

    def passed_over(self) -> Iterable[str]:
        """The skipped files and folders, a line for each reason."""
        for what, counts in (("folder", self.folders), ("file", self.files)):
            for reason, count in sorted(counts.items()):
                yield f"passed over {count} {what}{'' if count == 1 else 's'}: {reason}"


def search(folder: Path, exclude: Sequence[str]) -> Found:
    """Find the slides in a folder and all below it, but those that a pattern excludes."""
    found = Found()

    def note(error: OSError) -> None:
        found.unreadable[Path(error.filename)] = error.strerror or str(error)

    for parent, folders, names in os.walk(folder, onerror=note):
        here = Path(parent)
        searched = []
        for path in (here / name for name in sorted(folders) if not name.startswith(".")):
            if path.is_symlink():
                found.links.append(path)
            elif reason := _not_searched(path, path.relative_to(folder), exclude):
                found.folders[reason] += 1
            elif not _belongs_to_mrxs(path):
                searched.append(path.name)
        folders[:] = searched
        for path in (here / name for name in sorted(names)):
            if reason := _not_a_slide(path, path.relative_to(folder), exclude):
                found.files[reason] += 1
            else:
                found.slides.append(path)
    return found


def _not_searched(path: Path, relative: Path, exclude: Sequence[str]) -> str | None:
    if path.name in OF_THE_SYSTEM:
        return f"{path.name}, of the system"
    return "--exclude" if is_excluded(relative, exclude) else None


def _belongs_to_mrxs(path: Path) -> bool:
    """The pixels of SLIDE.mrxs lie in a folder SLIDE, which holds no other slides."""
    with suppress(OSError):  # reported when its turn comes
        return path.with_name(f"{path.name}.mrxs").is_file() and (path / "Slidedat.ini").is_file()
    return False


def _not_a_slide(path: Path, relative: Path, exclude: Sequence[str]) -> str | None:
    if path.name.startswith((".", "~$")):
        return "hidden"
    if is_excluded(relative, exclude):
        return "--exclude"
    if OWN_PICTURES.search(path.name):
        return "pictures that stpredict drew"
    if path.suffix == RESULT_SUFFIX:
        return "results"
    suffix = path.suffix.lower()
    if suffix in HALF_COPIED:
        return f"{suffix}, not copied as a whole yet"
    if suffix not in SLIDE_SUFFIXES:
        return f"{suffix or 'no suffix'}, not a slide's (name them to try them)"
    if ASSOCIATED.search(path.stem):
        return "label, macro, thumbnail or overview by name (name them to predict them)"
    return "a pipe, a socket or a device" if _is_special(path) else None


def _is_special(path: Path) -> bool:
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:  # reported when the slide's turn comes
        return False
