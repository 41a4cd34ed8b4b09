"""JPEG pyramids of pictures that are made once from top to bottom, and never in memory as a whole."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import imagecodecs
import numpy as np

from stpredict.arrays import UInt8
from stpredict.machine import usable_cores
from stpredict.rendering.tiff import TILE_PX, level_count, level_size, open_writer, write_level
from stpredict.result.frame import Frame

QUALITY = 90
#: Columns to read, encode and halve at a time; whole tiles.
BLOCK_PX = 8 * TILE_PX
WHITE = 255

#: From the first column and row, width and height of a block, in the picture's pixels, to RGB.
MakeBlock = Callable[[int, int, int, int], UInt8]


@dataclass
class Level:
    """A reduced level under construction: rows that do not fill a row of tiles yet, and where its tiles are stored."""

    rows: list[UInt8] = field(default_factory=list)
    tiles: list[tuple[int, int]] = field(default_factory=list)  # offset and length in the spool


def write_jpeg(path: Path, frame: Frame, make_block: MakeBlock) -> None:
    """Write a classic RGB pyramid; each level averages four pixels of the one before to one.

    TIFF needs level after level, so the tiles of reduced levels wait in an unnamed temporary file.
    Raises the errors of `make_block`, and OSError if the picture cannot be written.
    """
    levels = [Level() for _ in range(level_count(frame))]
    with (
        ThreadPoolExecutor(usable_cores()) as pool,
        tempfile.TemporaryFile(dir=path.parent) as spool,
        open_writer(path) as writer,
    ):
        for number, level in enumerate(levels):
            tiles = _first_level(frame, make_block, levels, spool, pool) if number == 0 else _spooled(level, spool)
            width, height = level_size(frame, number)
            write_level(
                writer, frame, number, tiles, (height, width, 3), np.uint8,
                compression="jpeg", compressionargs={"outcolorspace": "rgb"}, photometric="rgb", metadata=None,
            )  # fmt: skip


def _first_level(
    frame: Frame, make_block: MakeBlock, levels: list[Level], spool: IO[bytes], pool: ThreadPoolExecutor
) -> Iterator[bytes]:
    """Tiles of the picture itself, row by row. Their reductions are fed to the other levels."""
    width, height = frame.size

    def work(left: int, top: int) -> tuple[list[bytes], UInt8]:
        block = make_block(left, top, min(BLOCK_PX, width - left), min(TILE_PX, height - top))
        return _encode(block), _halve(block)

    places = [(left, top) for top in range(0, height, TILE_PX) for left in range(0, width, BLOCK_PX)]
    waiting: deque[Future[tuple[list[bytes], UInt8]]] = deque()
    half: list[UInt8] = []
    ahead = iter(places)
    for place in places:
        while len(waiting) < 2 * usable_cores() and (further := next(ahead, None)):
            waiting.append(pool.submit(work, *further))
        tiles, reduced = waiting.popleft().result()
        half.append(reduced)
        if place[0] + BLOCK_PX >= width:
            _feed(frame, levels, 1, np.concatenate(half, axis=1), spool, pool)
            half = []
        if place == places[-1]:  # before the last tile is yielded, as the caller stops there
            _feed(frame, levels, 1, None, spool, pool)
        yield from tiles


def _feed(
    frame: Frame, levels: list[Level], number: int, rows: UInt8 | None, spool: IO[bytes], pool: ThreadPoolExecutor
) -> None:
    """Add rows to a level; None means that there are no more. Encodes and halves each complete row of tiles."""
    if number == len(levels):
        return
    level, (width, _) = levels[number], level_size(frame, number)
    if rows is not None:
        level.rows.append(rows[:, :width])
    held = sum(len(part) for part in level.rows)
    if held >= TILE_PX or (rows is None and held):
        strip = np.concatenate(level.rows)[: min(held, TILE_PX)]
        level.rows = []
        blocks = [strip[:, left : left + BLOCK_PX] for left in range(0, width, BLOCK_PX)]
        for tiles in pool.map(_encode, blocks):
            for tile in tiles:
                level.tiles.append((spool.tell(), len(tile)))
                spool.write(tile)
        _feed(frame, levels, number + 1, np.concatenate(list(pool.map(_halve, blocks)), axis=1), spool, pool)
    if rows is None:
        _feed(frame, levels, number + 1, None, spool, pool)


def _spooled(level: Level, spool: IO[bytes]) -> Iterator[bytes]:
    for offset, length in level.tiles:
        spool.seek(offset)
        yield spool.read(length)


def _encode(block: UInt8) -> list[bytes]:
    """The JPEG tiles of a block, from left to right; white beyond the picture's edges."""
    height, width = block.shape[:2]
    padded = np.full((TILE_PX, -(-width // TILE_PX) * TILE_PX, 3), WHITE, np.uint8)
    padded[:height, :width] = block
    tiles = (padded[:, left : left + TILE_PX] for left in range(0, padded.shape[1], TILE_PX))
    # Stored as RGB, so that colours do not bleed over the edges of the map's blocks and readers need not guess:
    # Bio-Formats converts a JFIF tile from YCbCr twice.
    return [
        bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(tile), QUALITY, colorspace="RGB", outcolorspace="RGB"))
        for tile in tiles
    ]


def _halve(block: UInt8) -> UInt8:
    """Means of 2 x 2 pixels; an odd last row or column is left out."""
    height, width = (side // 2 for side in block.shape[:2])
    # rows first: their sums are contiguous
    rows = block[0 : 2 * height : 2].astype(np.uint16) + block[1 : 2 * height : 2]
    mean: UInt8 = ((rows[:, 0 : 2 * width : 2] + rows[:, 1 : 2 * width : 2] + 2) >> 2).astype(np.uint8)
    return mean
