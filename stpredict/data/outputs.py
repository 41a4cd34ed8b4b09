"""Find the files of each section, in folders as Space Ranger writes them, and as GEO has them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stpredict.data.tables import files_of

KINDS = r"(?P<kind>filtered|raw)_(?:feature|gene)_bc_matri(?:x|ces)"
MATRIX_H5 = re.compile(rf"(?P<prefix>.*?){KINDS}(?:_h5)?\.h5", re.IGNORECASE)
MATRIX_FOLDER = re.compile(rf"(?P<prefix>.*?){KINDS}(?:_mex)?", re.IGNORECASE)
MARKET = re.compile(
    r"(?P<prefix>.*?)(?:(?P<kind>filtered|raw)_(?:feature|gene)_bc_)?matrix\.mtx(?:\.gz)?", re.IGNORECASE
)
POSITIONS = r"(?:spatial[_.-])?tissue_positions(?:_list)?\.(?:parquet|(?:csv|tsv|txt)(?:\.gz)?)"
SCALE = r"(?:spatial[_.-])?scalefactors_json\.json(?:\.gz)?"
#: The forms of Space Ranger's table of spots. The first that is there is read.
POSITIONS_NAMES = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")
#: Archives that must be unpacked first.
PACKED = re.compile(
    r".*(?:spatial|bc_matri(?:x|ces)|_raw)[^/]*\.(?:tar|tgz|zip|tar\.gz)|.*\.(?:h5|h5ad)\.gz", re.IGNORECASE
)


@dataclass(frozen=True)
class Outputs:
    """The files of one section. Their names begin with the sample's, `prefix`; `file_prefix` precedes matrix.mtx."""

    place: Path
    prefix: str
    raw: bool
    matrix: Path
    file_prefix: str
    positions: Path
    scale: Path


def find_outputs(folder: Path) -> list[Outputs]:
    """The sections below a folder: matrices of counts with a table of spots in `spatial/` or beside them.

    If a section has several matrices, a filtered one comes before a raw one, and an .h5 file before a folder of files.
    """
    found: dict[tuple[Path, str], Outputs] = {}
    for path in _matrices(folder):
        for outputs in _with_spots(path):
            key = outputs.place, outputs.prefix
            other = found.get(key, outputs)
            found[key] = min(other, outputs, key=lambda one: (one.raw, one.matrix.suffix.lower() != ".h5"))
            break
    return list(found.values())


def why_no_outputs(folder: Path) -> str:
    """Why a folder's matrices of counts, or its archives, are no sections; "" if there are none of either."""
    matrices = list(_matrices(folder))
    packed = [path.name for path in files_of(folder) if PACKED.fullmatch(path.name)]
    unpack = f"; unpack {packed[0]}" if packed else ""
    if matrices:
        return (
            f"{matrices[0].relative_to(folder)} has no table of spots, spatial/{POSITIONS_NAMES[1]}, beside it{unpack}"
        )
    return f"what it holds is packed{unpack}" if packed else ""


def _matrices(folder: Path) -> Iterable[Path]:
    return (path for path in files_of(folder) if MATRIX_H5.fullmatch(path.name) or MARKET.fullmatch(path.name))


def _with_spots(path: Path) -> Iterable[Outputs]:
    """The folders whose section the matrix may be, nearest first: those with a table of spots."""
    match = MATRIX_H5.fullmatch(path.name) or MARKET.fullmatch(path.name)
    assert match is not None
    is_h5 = path.suffix.lower() == ".h5"
    file_prefix = "" if is_h5 else re.sub(r"matrix\.mtx(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    prefix, kind, place = match["prefix"], match["kind"] or "", path.parent
    for _ in range(1 if is_h5 else 3):
        sample = prefix.rstrip("_-.")
        spots = _spots_of(place, sample)
        if spots:
            scale = _named(spots.parent, sample, SCALE) or spots.with_name("scalefactors_json.json")
            yield Outputs(place, sample, kind.lower() == "raw", path, file_prefix, spots, scale)
        inner = MATRIX_FOLDER.fullmatch(place.name)
        if inner:  # its name says the same as an .h5 file's
            prefix, kind = inner["prefix"] or prefix, inner["kind"]
        place = place.parent


def _spots_of(place: Path, prefix: str) -> Path | None:
    """A section's table of spots. If a folder `spatial` has none, the path that the table should have."""
    spatial = place / "spatial"
    own = [place / f"{prefix}{mark}spatial" for mark in "_-." if prefix]
    for folder in (*own, spatial):
        for name in POSITIONS_NAMES:
            if (folder / name).is_file():
                return folder / name
    for folder in (*own, spatial, place):
        if found := _named(folder, prefix, POSITIONS):
            return found
    return spatial / POSITIONS_NAMES[1] if spatial.is_dir() else None


def _named(folder: Path, prefix: str, pattern: str) -> Path | None:
    """The file of a folder whose name fits a pattern after the sample's name; in `spatial/`, the only one that fits."""
    if not folder.is_dir():
        return None
    alone = folder.name.endswith("spatial")
    own = re.compile(rf"(?:{re.escape(prefix)}[_.-]?){'?' if alone else ''}{pattern}", re.IGNORECASE)
    anybody = re.compile(rf".*[_.-]{pattern}", re.IGNORECASE)
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    found = [name for name in names if own.fullmatch(name)]
    others = [name for name in names if alone and anybody.fullmatch(name)]
    chosen = found[:1] or (others if len(others) == 1 else [])
    return folder / chosen[0] if chosen else None
