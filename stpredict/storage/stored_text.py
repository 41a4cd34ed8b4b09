"""Text of an HDF5 file. The library would follow a damaged heap of text for ever, so the heap is checked first."""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

#: Bytes of a reference to a text, of a heap's header, and of the header of each text in a heap.
HEAD_BYTES = 16
#: A heap is as large as the longest of its texts; the library makes them of 4 KiB.
MAX_HEAP_BYTES = 1 << 30
#: How every heap begins.
HEAP = b"GCOL\x01\0\0\0"
BLOCK_BYTES = 16 << 20


def read_text(dataset: h5py.Dataset) -> list[str]:
    """The texts of a data set, one after the other. Raises ValueError or OSError if they are damaged."""
    kind = h5py.check_string_dtype(dataset.dtype)
    if kind is None:
        raise ValueError(f"{dataset.name} is no text")
    if kind.length is None:
        try:
            _check_heaps(dataset)
        except (struct.error, zlib.error) as error:
            raise ValueError(f"{dataset.name} ends early, or is damaged") from error
    return [str(text) for text in np.ravel(dataset.asstr()[()])]


def check_all_heaps(path: Path) -> None:
    """Check all heaps of a file before other libraries read it: its attributes may lie in heaps, too.

    Raises ValueError if one of them cannot be walked through.
    """
    with path.open("rb") as file:
        block = b""
        while more := file.read(BLOCK_BYTES):
            block = block[1 - len(HEAP) :] + more
            following = file.tell()
            for found in re.finditer(HEAP, block):
                file.seek(following - len(block) + found.start())
                try:
                    _check_heap(file)
                except struct.error as error:
                    raise ValueError("a heap of text ends early") from error
            file.seek(following)


def _check_heaps(dataset: h5py.Dataset) -> None:
    """Raise ValueError if a heap with texts of the data set cannot be walked through."""
    if dataset.file.id.get_create_plist().get_sizes() != (8, 8) or dataset.file.userblock_size:
        raise ValueError("its layout is not h5py's")
    with Path(dataset.file.filename).open("rb") as file:
        blocks = _references(dataset, file)
        for address in {address for block in blocks for _, address, _ in struct.iter_unpack("<IQI", block)}:
            if 0 < address < 2**63:  # any other address belongs to an empty text, or the library refuses it
                file.seek(address)
                _check_heap(file)


def _references(dataset: h5py.Dataset, file: BinaryIO) -> Iterator[bytes]:
    """References to the texts, as stored. Raises ValueError for a kind of storage that h5py and anndata do not use."""
    plan = dataset.id.get_create_plist()
    if plan.get_layout() == h5py.h5d.CONTIGUOUS:
        if (start := dataset.id.get_offset()) is not None:
            file.seek(start)
            yield file.read(HEAD_BYTES * dataset.size)
        return
    filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
    size = HEAD_BYTES * math.prod(dataset.chunks or ())
    if plan.get_layout() != h5py.h5d.CHUNKED or size > MAX_HEAP_BYTES:
        raise ValueError(f"the layout of {dataset.name} is not h5py's")
    corners: list[tuple[int, ...]] = []
    dataset.id.chunk_iter(lambda chunk: corners.append(chunk.chunk_offset))
    for corner in corners:
        skipped, block = dataset.id.read_direct_chunk(corner)
        used = [code for place, code in enumerate(filters) if not skipped >> place & 1]  # text is never shuffled
        if used not in ([], [h5py.h5z.FILTER_DEFLATE]):
            raise ValueError(f"{dataset.name} is compressed by another method than gzip")
        if used:
            block = zlib.decompressobj().decompress(block, size + 1)
        if len(block) != size:
            raise ValueError(f"{dataset.name} has chunks of the wrong size")
        yield block


def _check_heap(file: BinaryIO) -> None:
    """Raise ValueError if no heap begins here, or walking from text to text does not end."""
    signature, size = struct.unpack("<4s4xQ", file.read(HEAD_BYTES))
    if signature != b"GCOL":
        raise ValueError("a text lies in no heap")
    heap = file.read(min(max(size, HEAD_BYTES), MAX_HEAP_BYTES) - HEAD_BYTES)
    if len(heap) != size - HEAD_BYTES:
        raise ValueError("a heap of text ends early")
    at = 0
    while at + HEAD_BYTES <= len(heap):
        number, length = struct.unpack_from("<H6xQ", heap, at)
        step = HEAD_BYTES + -(-length // 8) * 8 if number else length  # the length of free space includes its header
        if not 0 < step <= len(heap) - at:
            raise ValueError("a heap of text is damaged")
        at += step
