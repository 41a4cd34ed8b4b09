"""JPEG tiles of tiled TIFF slides (Aperio SVS, generic TIFF). Each is decoded once; many threads may read at a time.

OpenSlide composes each region on a canvas, which takes several times as long as the decoding. The decoder here is as
strict as OpenSlide's: libvips and imagecodecs silently fill the missing part of a damaged tile with grey.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import simplejpeg
import tifffile

from stpredict.arrays import Float32, Int, UInt8

#: Bytes of decoded tiles to keep: enough for those at the borders of the blocks that are read next.
CACHE_BYTES = 96 << 20
MAX_TILE_PX = 4096
MAX_PAGES = 64
#: Grey levels by which blurred pixels of two readers may differ if one of them interpolates.
MAX_DIFFERENCE = 8.0
BLUR_PX = 16
#: An Adobe marker. Its last byte says which colours the three components are.
ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
COMPONENTS = {int(tifffile.PHOTOMETRIC.RGB): b"\x00", int(tifffile.PHOTOMETRIC.YCBCR): b"\x01"}

# OpenSlide has opened the file by then, so tifffile's warnings about it do not matter.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


class TileError(Exception):
    """A tile that cannot be read or decoded."""


@dataclass(frozen=True)
class TiledLevel:
    """Where the tiles of one level lie in the file, row by row, and the bytes with which each stream must begin."""

    tile_width: int
    tile_height: int
    columns: int
    offsets: Int
    sizes: Int
    head: bytes


@dataclass
class CachedTile:
    """A tile, the lock that the thread which decodes it holds, and how many threads want the tile."""

    pixels: UInt8 | None = None
    decoding: threading.Lock = field(default_factory=threading.Lock)
    readers: int = 0


class StoredTiles:
    """The tiles of a slide's levels."""

    def __init__(self, path: Path, levels: Sequence[TiledLevel]) -> None:
        self.levels = levels
        self._file = path.open("rb")
        self._file_lock, self._lock = threading.Lock(), threading.Lock()
        self._tiles: OrderedDict[tuple[int, int], CachedTile] = OrderedDict()
        self._tile_bytes = max(3 * level.tile_width * level.tile_height for level in levels)
        self._spare: list[UInt8] = []  # buffers to decode into: new memory costs a third of the decoding

    def read(self, level: int, x: int, y: int, width: int, height: int) -> UInt8:
        """RGB, height x width x 3, of a region within `level`. Raises TileError."""
        tiles = self.levels[level]
        shape = (tiles.tile_height, tiles.tile_width, 3)
        out = np.empty((height, width, 3), np.uint8)
        for row in range(y // tiles.tile_height, -(-(y + height) // tiles.tile_height)):
            top = row * tiles.tile_height
            y0, y1 = max(y, top), min(y + height, top + tiles.tile_height)
            for column in range(x // tiles.tile_width, -(-(x + width) // tiles.tile_width)):
                left = column * tiles.tile_width
                x0, x1 = max(x, left), min(x + width, left + tiles.tile_width)
                with self._tile(level, row * tiles.columns + column) as pixels:
                    tile = pixels[: math.prod(shape)].reshape(shape)
                    out[y0 - y : y1 - y, x0 - x : x1 - x] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
        return out

    def close(self) -> None:
        self._file.close()

    @contextmanager
    def _tile(self, level: int, index: int) -> Iterator[UInt8]:
        """A tile's pixels, kept in this context. If another thread is decoding the tile, this one waits for it."""
        with self._lock:
            tile = self._tiles.setdefault((level, index), CachedTile())
            self._tiles.move_to_end((level, index))
            tile.readers += 1
            if len(self._tiles) * self._tile_bytes > CACHE_BYTES:
                self._forget_oldest()
        try:
            with tile.decoding:
                if tile.pixels is None:
                    tile.pixels = self._decode(level, index)
            yield tile.pixels
        finally:
            with self._lock:
                tile.readers -= 1

    def _forget_oldest(self) -> None:
        _, tile = self._tiles.popitem(last=False)
        if tile.readers == 0 and tile.pixels is not None:
            self._spare.append(tile.pixels)

    def _decode(self, level: int, index: int) -> UInt8:
        tiles = self.levels[level]
        size = int(tiles.sizes[index])
        with self._file_lock:
            self._file.seek(int(tiles.offsets[index]))
            stored = self._file.read(size)
        if len(stored) < size:
            raise TileError("the file ends before one of its tiles")
        with self._lock:
            buffer = self._spare.pop() if self._spare else np.empty(self._tile_bytes, np.uint8)
        shape = (tiles.tile_height, tiles.tile_width, 3)
        try:
            # The buffer is too small for a tile that claims to be larger than its place, so decoding fails.
            tile = simplejpeg.decode_jpeg(tiles.head + stored[2:], "RGB", buffer=buffer, strict=True)
        except ValueError as error:
            raise TileError(str(error)) from error
        if tile.shape != shape:
            raise TileError(f"a tile of {tile.shape[1]} x {tile.shape[0]} pixels")
        return buffer


def open_stored_tiles(path: Path, level_dimensions: Sequence[tuple[int, int]]) -> StoredTiles | None:
    """The tiles of a TIFF file if all levels are stored as JPEG tiles, whole and in three colours; else None."""
    try:
        with tifffile.TiffFile(path) as tiff:
            pages = {
                (page.imagewidth, page.imagelength): page
                for page in reversed(list(islice(tiff.pages, MAX_PAGES)))
                if isinstance(page, tifffile.TiffPage) and _is_jpeg_tiled(page)
            }
            return StoredTiles(path, [_tiled_level(pages[size]) for size in level_dimensions])
    except Exception:  # noqa: BLE001 (OpenSlide may read a file on which tifffile fails)
        return None


def blurred_alike(one: UInt8, other: UInt8) -> bool:
    """Are two regions equal, apart from interpolation between pixels?"""
    return float(np.abs(_blurred(one) - _blurred(other)).max()) <= MAX_DIFFERENCE


def check_jpeg_segments(path: Path, number: int = 0) -> None:
    """Decode the JPEG strips or tiles of a page of a TIFF file, if it has any. Raises TileError for damage."""
    try:
        with tifffile.TiffFile(path) as tiff, path.open("rb") as file:
            page = tiff.pages[number]
            if not isinstance(page, tifffile.TiffPage):
                return
            if page.compression != tifffile.COMPRESSION.JPEG or page.samplesperpixel > 3:
                return
            tables = (page.jpegtables or b"\xff\xd8\xff\xd9")[:-2]
            buffer = np.empty(math.prod(page.chunks[:2]), np.uint8)  # too small for a segment that claims to be larger
            for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
                file.seek(offset)
                simplejpeg.decode_jpeg(tables + file.read(size)[2:], "GRAY", buffer=buffer, strict=True)
    except Exception as error:  # tifffile fails in many ways, all due to damage
        raise TileError(str(error) or type(error).__name__) from error


def _is_jpeg_tiled(page: tifffile.TiffPage) -> bool:
    return (
        page.is_tiled
        and page.compression == tifffile.COMPRESSION.JPEG
        and page.photometric in COMPONENTS
        and page.dtype == np.uint8
        and page.samplesperpixel == 3
        and page.planarconfig == tifffile.PLANARCONFIG.CONTIG
        and max(page.tilewidth, page.tilelength) <= MAX_TILE_PX
        and min(page.databytecounts) > 0
    )


def _tiled_level(page: tifffile.TiffPage) -> TiledLevel:
    columns, rows = -(-page.imagewidth // page.tilewidth), -(-page.imagelength // page.tilelength)
    offsets, sizes = (np.array(values, np.int64) for values in (page.dataoffsets, page.databytecounts))
    if len(offsets) != columns * rows or len(sizes) != columns * rows:
        raise ValueError("not every tile is there")
    tables = (page.jpegtables or b"\xff\xd8\xff\xd9")[:-2]
    head = tables + ADOBE + COMPONENTS[page.photometric]
    return TiledLevel(page.tilewidth, page.tilelength, columns, offsets, sizes, head)


def _blurred(pixels: UInt8) -> Float32:
    """Means of squares of BLUR_PX pixels; incomplete squares at the edges are left out."""
    rows, columns = (side // BLUR_PX for side in pixels.shape[:2])
    squares = pixels[: BLUR_PX * rows, : BLUR_PX * columns].reshape(rows, BLUR_PX, columns, BLUR_PX, 3)
    return np.asarray(squares.mean(axis=(1, 3), dtype=np.float32))
