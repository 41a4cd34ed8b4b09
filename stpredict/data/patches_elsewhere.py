"""Patches of a tiles file that stay in the files that a data set ships, which are named in it and not copied."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import h5py
import numpy as np

from stpredict.arrays import Int, UInt8
from stpredict.data.patch_formats import PatchSource
from stpredict.data.section import Section
from stpredict.data.stored_patches import IMAGES
from stpredict.data.stored_rows import StoredRows, stored_rows
from stpredict.errors import DatasetError, some

#: In a tiles file, the group that names other files; it is absent if all patches are in the file.
GROUP = "elsewhere"
#: What the fingerprint of a file reads: so many blocks, evenly spaced from its first bytes to its last.
BLOCKS, BLOCK_BYTES = 17, 16 << 10


@dataclass(frozen=True)
class PatchFile:
    """A file with patches: its path from the folder of the tiles file, its size, and a hash of parts of it."""

    path: str
    n_bytes: int
    fingerprint: str


@dataclass(frozen=True)
class PatchesElsewhere:
    """The patches of all spots. `file` is the number of each spot's file, -1 for the tiles file itself, `row` its row.

    A file is compared with its fingerprint when it is first read.
    """

    tiles: Path
    files: Sequence[PatchFile]
    file: Int
    row: Int
    own: PatchSource
    patch: tuple[int, ...]  # the shape of one
    _opened: dict[int, StoredRows] = field(default_factory=dict)

    def read(self, index: Int | Sequence[int]) -> UInt8:
        """The patches of some spots, in the order of the index.

        Raises IndexError for a spot that is not there, DatasetError for a file that is missing or is another one.
        """
        places = np.asarray(index, dtype=np.int64)
        if len(places) and not 0 <= places.min() <= places.max() < len(self.file):
            raise IndexError(f"{self.tiles.name}: has patches of {len(self.file)} spots.")
        patches = np.empty((len(places), *self.patch), np.uint8)
        for number in np.unique(self.file[places]):
            own = self.file[places] == number
            source = self.own if number < 0 else self._open(int(number))
            patches[own] = source.read(self.row[places[own]])
        return patches

    def _open(self, number: int) -> StoredRows:
        if number not in self._opened:
            known = self.files[number]
            path = path_of(self.tiles, known)
            check_files(self.tiles, [known])
            if fingerprint_of(path) != known.fingerprint:
                raise DatasetError(f"{self.tiles.name}: {path} is not the file it was cut with{WAY_OUT}")
            self._opened[number] = stored_rows(path, IMAGES)
        return self._opened[number]


#: How messages on a file end.
WAY_OUT = "; put that back, or cut the tiles again from the folder of the data set."


def path_of(tiles: Path, file: PatchFile) -> Path:
    """Where a file that a tiles file names lies now."""
    return Path(os.path.normpath(tiles.absolute().parent.resolve() / file.path))


def check_files(tiles: Path, files: Sequence[PatchFile]) -> None:
    """Raises DatasetError if files that a tiles file names are missing, or have another size."""
    paths = [path_of(tiles, file) for file in files]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise DatasetError(f"{tiles.name}: its patches are in {some(missing)}, which is not there{WAY_OUT}")
    changed = [str(p) for p, file in zip(paths, files, strict=True) if p.stat().st_size != file.n_bytes]
    if changed:
        raise DatasetError(f"{tiles.name}: {some(changed)} is not the file it was cut with{WAY_OUT}")


def fingerprint_of(path: Path) -> str:
    """A hash of a file's size and of blocks all over it, which tells one file of patches from another."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in np.linspace(0, max(size - BLOCK_BYTES, 0), BLOCKS).astype(np.int64):
            file.seek(int(start))
            digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()


def name_files(sections: Sequence[Section], tiles: Path, file: h5py.File) -> None:
    """Write which spots of the sections have patches in which row of which other file. Writes nothing if none has."""
    files: list[PatchFile] = []
    of_spot, rows = [], []
    for section in sections:
        stored = section.patches
        of_spot.append(np.full(len(section.spot_names), len(files) if stored else -1, dtype=np.int32))
        rows.append(np.array(stored.rows if stored else [0] * len(section.spot_names), dtype=np.int64))
        if stored:
            path = stored.path
            files.append(PatchFile(_way_to(path, tiles), path.stat().st_size, fingerprint_of(path)))
    if files:
        group = file.create_group(GROUP)
        group["files"] = json.dumps([asdict(one) for one in files])
        for name, values in (("file", of_spot), ("row", rows)):
            group.create_dataset(name, data=np.concatenate(values), compression="gzip", shuffle=True)


def _way_to(path: Path, tiles: Path) -> str:
    """The path from the folder of the tiles file, so that both may move together; from the root on another drive."""
    there, here = path.absolute().parent.resolve() / path.name, tiles.absolute().parent.resolve()
    try:
        return Path(os.path.relpath(there, here)).as_posix()
    except ValueError:  # Windows has no way between drives
        return there.as_posix()


def files_elsewhere(file: h5py.File) -> list[PatchFile]:
    """The other files that a tiles file names. Raises ValueError, LookupError or TypeError if it does so wrongly."""
    if GROUP not in file:
        return []
    found = json.loads(file[f"{GROUP}/files"].asstr()[()])
    of_spot, row = (file[f"{GROUP}/{name}"][:] for name in ("file", "row"))
    if not of_spot.shape == row.shape == file["spot"].shape or not -1 <= of_spot.min() <= of_spot.max() < len(found):
        raise ValueError("it does not say which file has which spot's patch")
    return [PatchFile(str(one["path"]), int(one["n_bytes"]), str(one["fingerprint"])) for one in found]


def with_patches_elsewhere(tiles: Path, own: PatchSource, patch: tuple[int, ...]) -> PatchSource:
    """The patches of all spots of a tiles file, whose `own` are those in it."""
    with h5py.File(tiles) as file:
        files = files_elsewhere(file)
        if not files:
            return own
        of_spot, row = (file[f"{GROUP}/{name}"][:] for name in ("file", "row"))
    here = of_spot < 0
    row[here] = np.arange(here.sum())
    return PatchesElsewhere(tiles, files, of_spot, row, own, patch)
