"""How a file stores patches: their pixels, or JPEG, which takes a sixth of the disk and loses a little."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import h5py
import numpy as np
import simplejpeg

from stpredict.arrays import Int, UInt8
from stpredict.data.hdf5 import opened_hdf5
from stpredict.data.stored_rows import CUT_AGAIN, StoredRows, stored_rows
from stpredict.errors import DatasetError

PatchFormat = Literal["raw", "jpeg"]
#: The quality of JPEG; colours are kept at every pixel, as stains are told by them.
QUALITY, SUBSAMPLING = 95, "444"
#: What JPEG takes of the pixels' bytes, roughly, for plans: 26 KB of 150 on HER2ST, more where images are sharper.
JPEG_SHARE = 0.2
#: JPEGs follow one another in pieces of this many bytes, which lie anywhere in the file.
PIECE_BYTES = 1 << 18


class PatchSource(Protocol):
    """A source of spots' patches."""

    def read(self, index: Int | Sequence[int]) -> UInt8:
        """The patches of some spots, in the order of the index."""


class NewPatches(Protocol):
    """Patches that are being written, each to its row, in any order."""

    def __setitem__(self, row: int, patch: UInt8) -> None: ...


class NewJpegs:
    """Patches that are written as JPEG to a new group of a file. `finish` them when all are there."""

    def __init__(self, file: h5py.File, name: str, n: int) -> None:
        self._group = file.create_group(name)
        self._bytes = self._group.create_dataset("bytes", (0,), np.uint8, maxshape=(None,), chunks=(PIECE_BYTES,))
        self._start, self._length = np.zeros(n, np.int64), np.zeros(n, np.int32)

    def __setitem__(self, row: int, patch: UInt8) -> None:
        jpeg = simplejpeg.encode_jpeg(_as_image(patch), QUALITY, "RGB", SUBSAMPLING, False)
        start = len(self._bytes)
        self._bytes.resize(start + len(jpeg), axis=0)
        self._bytes[start:] = np.frombuffer(jpeg, np.uint8)
        self._start[row], self._length[row] = start, len(jpeg)

    def finish(self) -> None:
        self._group["start"], self._group["length"] = self._start, self._length


@dataclass(frozen=True)
class StoredJpegs:
    """Patches of a `shape` as JPEG in a file. `pieces` are the places in the file of the pieces of all their bytes."""

    path: Path
    shape: tuple[int, ...]
    pieces: Int
    start: Int
    length: Int

    @property
    def n(self) -> int:
        return len(self.start)

    def read(self, index: Int | Sequence[int]) -> UInt8:
        """The patches of an `index`, in its order.

        Raises IndexError for a row that is not there, DatasetError for a patch that is damaged.
        """
        places = [int(i) for i in index]
        if any(not 0 <= place < len(self.start) for place in places):
            raise IndexError(f"{self.path.name}: has {len(self.start)} patches.")
        patches = np.empty((len(places), *self.shape), np.uint8)
        with self.path.open("rb", buffering=0) as raw:
            for patch, place in zip(patches, places, strict=True):
                jpeg, at, left = b"", int(self.start[place]), int(self.length[place])
                while left > 0:
                    piece, within = divmod(at, PIECE_BYTES)
                    raw.seek(int(self.pieces[piece]) + within)
                    part = min(left, PIECE_BYTES - within)
                    jpeg, at, left = jpeg + raw.read(part), at + part, left - part
                patch[...] = self._decoded(jpeg)
        return patches

    def _decoded(self, jpeg: bytes) -> UInt8:
        try:
            if simplejpeg.decode_jpeg_header(jpeg)[:2] != _image_shape(self.shape):
                raise ValueError("of another size")
            return np.asarray(simplejpeg.decode_jpeg(jpeg, "RGB", False, False)).reshape(self.shape)
        except ValueError as error:
            raise DatasetError(f"{self.path.name}: a patch cannot be read ({error}){CUT_AGAIN}") from error


def stored_patches(path: Path, name: str, shape: tuple[int, ...]) -> StoredRows | StoredJpegs:
    """The patches of a `shape` in a file, pixels or JPEG. Raises DatasetError if it is damaged, or lacks some JPEGs."""
    with opened_hdf5(path, check_heaps=False) as file:
        group = file[name]
        if isinstance(group, h5py.Dataset):
            if group.shape[1:] != shape:
                raise ValueError(f"its patches are {group.shape[1:]}, not {shape}")
            return stored_rows(path, name)
        start, length, stored = group["start"][:], group["length"][:], group["bytes"]
        pieces = np.full(-(-len(stored) // PIECE_BYTES), -1, dtype=np.int64)

        def note(chunk: h5py.h5d.StoreInfo) -> None:
            pieces[chunk.chunk_offset[0] // PIECE_BYTES] = chunk.byte_offset

        stored.id.chunk_iter(note)
        whole = stored.chunks == (PIECE_BYTES,) and not stored.id.get_create_plist().get_nfilters()
        within = len(start) == len(length) and (start >= 0).all() and (start + length <= len(stored)).all()
        if not whole or not within or (pieces < 0).any():
            raise DatasetError(f"{path.name}: its JPEGs are not all there{CUT_AGAIN}")
        return StoredJpegs(path, shape, pieces, start, length)


def _as_image(patch: UInt8) -> UInt8:
    """A patch, or its views below one another, as one image."""
    return np.ascontiguousarray(patch.reshape(*_image_shape(patch.shape), 3))


def _image_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    return math.prod(shape[:-2]), shape[-2]
