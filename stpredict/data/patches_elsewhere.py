"""Patches that a tiles file names but does not hold: they lie in sections' own files, or in those of a data set."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import h5py
import numpy as np

from stpredict.arrays import Int, UInt8
from stpredict.data.hdf5 import opened_hdf5
from stpredict.data.patch_formats import PatchSource, stored_patches
from stpredict.data.section import Section
from stpredict.data.stored_patches import IMAGES
from stpredict.errors import DatasetError, some

#: In a tiles file, the group that names other files with the patches of spots; it is absent from older files.
GROUP = "elsewhere"
#: The group that does so for unlabelled places; in the other files, their data set.
UNLABELLED_GROUP, UNLABELLED = "unlabelled/elsewhere", "unlabelled"
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
    """The patches of all spots, or of all unlabelled places: `file` is the number of each one's file, `row` its row.

    A file is compared with its fingerprint when it is first read.
    """

    tiles: Path
    files: Sequence[PatchFile]
    name: str  # of the data set in each file
    file: Int
    row: Int
    patch: tuple[int, ...]  # the shape of one
    _opened: dict[int, PatchSource] = field(default_factory=dict)

    def read(self, index: Int | Sequence[int]) -> UInt8:
        """The patches of some spots or places, in the order of the index.

        Raises IndexError for one that is not there, DatasetError for a file that is missing or is another one.
        """
        places = np.asarray(index, dtype=np.int64)
        if len(places) and not 0 <= places.min() <= places.max() < len(self.file):
            raise IndexError(f"{self.tiles.name}: has {len(self.file)} patches.")
        patches = np.empty((len(places), *self.patch), np.uint8)
        for number in np.unique(self.file[places]):
            own = self.file[places] == number
            patches[own] = self._open(int(number)).read(self.row[places[own]])
        return patches

    def _open(self, number: int) -> PatchSource:
        if number not in self._opened:
            known = self.files[number]
            path = path_of(self.tiles, known)
            check_files(self.tiles, [known])
            if fingerprint_of(path) != known.fingerprint:
                raise DatasetError(f"{self.tiles.name}: {path} is not the file it was cut with{WAY_OUT}")
            source = stored_patches(path, self.name, self.patch)
            rows = self.row[self.file == number]
            if not 0 <= rows.min() <= rows.max() < source.n:
                raise DatasetError(f"{self.tiles.name}: names patches that {path} does not hold{WAY_OUT}")
            self._opened[number] = source
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


def name_patches(
    sections: Sequence[Section], share: Sequence[int], files: Mapping[str, Path], tiles: Path, file: h5py.File
) -> None:
    """Write which file has the patch of each spot and unlabelled place, and in which row.

    `files` are those of sections that were cut, by name, and `share` is how many unlabelled places each has.
    """
    described = cache(lambda path: PatchFile(_way_to(path, tiles), path.stat().st_size, fingerprint_of(path)))
    of_spots, of_places = [], []
    for section, n in zip(sections, share, strict=True):
        if stored := section.patches:
            of_spots.append((described(stored.path), np.array(stored.rows, dtype=np.int64)))
        else:
            own = described(files[section.name])
            of_spots.append((own, np.arange(len(section.spot_names))))
            of_places.append((own, np.arange(n)))
    _name_rows(file.create_group(GROUP), of_spots)
    _name_rows(file.create_group(UNLABELLED_GROUP), of_places)


def _name_rows(group: h5py.Group, of_file: Sequence[tuple[PatchFile, Int]]) -> None:
    group["files"] = json.dumps([asdict(one) for one, _ in of_file])
    number = np.repeat(np.arange(len(of_file), dtype=np.int32), [len(rows) for _, rows in of_file])
    row = np.concatenate([np.empty(0, np.int64), *(rows for _, rows in of_file)])
    for name, values in (("file", number), ("row", row)):
        group.create_dataset(name, data=values, compression="gzip", shuffle=True)


def patches_folder(tiles: Path) -> Path:
    """The folder beside a tiles file with its sections' files of patches: NAME.patches."""
    return tiles.with_name(f"{tiles.name.removesuffix('.h5').removesuffix('.tiles')}.patches")


def _way_to(path: Path, tiles: Path) -> str:
    """The path from the folder of the tiles file, so that both may move together; from the root on another drive."""
    there, here = path.absolute().parent.resolve() / path.name, tiles.absolute().parent.resolve()
    try:
        return Path(os.path.relpath(there, here)).as_posix()
    except ValueError:  # Windows has no way between drives
        return there.as_posix()


def named_patches(tiles: Path) -> set[Path]:
    """The files beside a tiles file, in NAME.patches, that it names; none if it is not there or cannot be read."""
    folder = patches_folder(tiles).resolve()
    try:
        with opened_hdf5(tiles) as file:
            named = [path_of(tiles, one) for one in files_elsewhere(file)]
    except DatasetError:
        return set()
    return {path for path in named if path.parent == folder}


def files_elsewhere(file: h5py.File) -> list[PatchFile]:
    """The other files that a tiles file names. Raises ValueError, LookupError or TypeError if it does so wrongly."""
    if GROUP not in file:
        return []
    _of_group(file[UNLABELLED_GROUP], len(file["unlabelled/section"]))
    return _of_group(file[GROUP], len(file["spot"]))[0]


def _of_group(group: h5py.Group, n: int) -> tuple[list[PatchFile], Int, Int]:
    """The files that a group names, and of each of `n` patches the number of its file and its row."""
    found = json.loads(group["files"].asstr()[()])
    number, row = (group[name][:] for name in ("file", "row"))
    if not number.shape == row.shape == (n,) or (n and not 0 <= number.min() <= number.max() < len(found)):
        raise ValueError("it does not say which file has which patch")
    return [PatchFile(str(one["path"]), int(one["n_bytes"]), str(one["fingerprint"])) for one in found], number, row


def patches_of(tiles: Path, patch: tuple[int, ...], unlabelled: bool = False) -> PatchSource:
    """The patches of all spots, or of all unlabelled places, of a tiles file, also of an older one that holds them."""
    of_spots, of_places = (GROUP, IMAGES, "spot"), (UNLABELLED_GROUP, UNLABELLED, "unlabelled/section")
    group, name, label = of_places if unlabelled else of_spots
    with h5py.File(tiles) as file:
        there = group in file
    if not there:
        return stored_patches(tiles, "unlabelled/patches" if unlabelled else "patches", patch)
    with opened_hdf5(tiles) as file:
        files, number, row = _of_group(file[group], len(file[label]))
    return PatchesElsewhere(tiles, files, name, number, row, patch)
