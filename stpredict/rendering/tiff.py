"""Tiled pyramids of maps, written tile by tile: memory never holds the whole picture.

OpenSlide, Bio-Formats, tifffile and the web viewers all decode Deflate without predictor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile

from stpredict.arrays import Float
from stpredict.machine import usable_cores
from stpredict.rendering.cells import Layer
from stpredict.result.frame import Frame
from stpredict.storage.files import atomic_path

TILE_PX = 256
DEFLATE = {"compression": "adobe_deflate", "predictor": False}
#: zlib-ng's level 2: on blocks of one colour four times as fast as zlib's level 1, and the output is smaller.
DEFLATE_LEVEL = 2
#: Encoded tiles of one colour to keep for reuse.
MAX_BLANK = 16
#: Columns for a thread to encode at a time: 16 tiles.
RUN_PX = 16 * TILE_PX

#: From level-0 x and y of a tile's columns and rows to its pixels.
Paint = Callable[[Float, Float], np.ndarray]


def write_rgb(path: Path, frame: Frame, layer: Layer) -> None:
    """Write a classic RGB pyramid, which OpenSlide needs, and so QuPath: white where the layer is empty."""

    def paint(x: Float, y: Float) -> np.ndarray:
        return layer(x, y)[0]

    with open_writer(path) as writer:
        for level in range(level_count(frame)):
            width, height = level_size(frame, level)
            # Close it at once after a failure: if the garbage collector did, one of its threads might wait for itself.
            with closing(_encoded_tiles(frame, level, [paint], np.uint8)) as tiles:
                write_level(
                    writer, frame, level, tiles, (height, width, 3), np.uint8,
                    photometric="rgb", metadata=None, **DEFLATE,
                )  # fmt: skip


def write_planes(path: Path, frame: Frame, planes: Sequence[Paint], metadata: dict[str, Any]) -> None:
    """Write a float32 OME-TIFF of `planes`, with its pyramid in SubIFDs as Bio-Formats and viv need it."""
    with open_writer(path, ome=True) as writer:
        for level in range(level_count(frame)):
            width, height = level_size(frame, level)
            below = {"subifds": level_count(frame) - 1, "metadata": metadata} if level == 0 else {"metadata": None}
            shape = (len(planes), height, width)
            with closing(_encoded_tiles(frame, level, planes, np.float32)) as tiles:
                write_level(
                    writer, frame, level, tiles, shape, np.float32, photometric="minisblack", **below, **DEFLATE
                )


def level_count(frame: Frame) -> int:
    """Levels of the pyramid: the picture is halved until it fits into a tile, or is one pixel thin."""
    halvings = min(np.ceil(np.log2(max(frame.size) / TILE_PX)), np.floor(np.log2(min(frame.size))))
    return max(0, int(halvings)) + 1


def level_size(frame: Frame, level: int) -> tuple[int, int]:
    """Width and height of a level. Its pixels sample the picture at 2^level times the distance."""
    width, height = frame.size
    return max(1, width >> level), max(1, height >> level)


@contextmanager
def open_writer(path: Path, **options: Any) -> Iterator[tifffile.TiffWriter]:
    """A BigTIFF under a temporary name, renamed when it is whole."""
    with atomic_path(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=True, **options) as writer:
        yield writer


def write_level(
    writer: tifffile.TiffWriter, frame: Frame, level: int, tiles: Iterator[bytes], shape: tuple[int, ...],
    dtype: type[np.generic], **options: Any,
) -> None:  # fmt: skip
    """Write one level of a pyramid, from encoded tiles, with its resolution."""
    resolution = tuple(10_000 / (um * 2**level) for um in frame.pixel_mpp)
    writer.write(
        tiles, shape=shape, dtype=dtype, tile=(TILE_PX, TILE_PX), subfiletype=1 if level else 0,
        resolution=resolution, resolutionunit="CENTIMETER", software=False, **options,
    )  # fmt: skip


def _deflate(data: np.ndarray) -> bytes:
    return bytes(imagecodecs.zlibng_encode(data.tobytes(), DEFLATE_LEVEL))


def _encoded_tiles(
    frame: Frame, level: int, planes: Sequence[Paint], dtype: type[np.generic]
) -> Generator[bytes, None, None]:
    """The tiles of a level, plane after plane and row by row, painted and compressed in threads."""
    width, height = level_size(frame, level)
    shrink = 2**level
    blank: dict[bytes, bytes] = {}

    def encode(paint: Paint, left: int, top: int) -> bytes:
        tile = paint(frame.columns(left, TILE_PX, shrink), frame.rows(top, TILE_PX, shrink))
        data = np.ascontiguousarray(tile, dtype)
        if (data[0] == data[0, 0]).all() and (data == data[0, 0]).all():  # most of a slide is glass
            key = data[0, 0].tobytes()
            if key not in blank:
                if len(blank) > MAX_BLANK:  # a large spot fills whole tiles
                    blank.clear()
                blank[key] = _deflate(data)
            return blank[key]
        return _deflate(data)

    def encode_run(paint: Paint, first: int, top: int) -> list[bytes]:
        return [encode(paint, left, top) for left in range(first, min(first + RUN_PX, width), TILE_PX)]

    threads = usable_cores()
    waiting: deque[Future[list[bytes]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for paint in planes:
            for top in range(0, height, TILE_PX):
                for first in range(0, width, RUN_PX):
                    waiting.append(pool.submit(encode_run, paint, first, top))
                    if len(waiting) > 2 * threads:
                        yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
