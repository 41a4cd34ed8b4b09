"""The slide under a half-transparent map, as a JPEG pyramid."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyvips

from stpredict.arrays import Bool, Float32, UInt8
from stpredict.errors import ResultError, SlideError
from stpredict.files import atomic_path
from stpredict.machine import usable_cores
from stpredict.rendering.cells import Layer
from stpredict.rendering.frame import Frame
from stpredict.rendering.stream import RowStream
from stpredict.rendering.tiff import TILE_PX
from stpredict.result import Result
from stpredict.slides.slide import Slide, open_slide

#: From 90 on libvips stores every pixel's colour; below, colours bleed over the edges of the map's blocks.
QUALITY = 90
BLOCK_ROWS, BLOCK_COLUMNS = 256, 2048


def write_overlay(path: Path, frame: Frame, layer: Layer, opacity: float, slide: Slide) -> None:
    """The slide where the layer shows nothing; elsewhere `opacity` of the layer and the rest of the slide.

    Raises SlideError where the slide cannot be decoded, ResultError if the picture cannot be written.
    """
    level = max(i for i in range(len(slide.level_dimensions)) if max(slide.downsample(i)) <= frame.downsample * 1.01)
    scale = slide.downsample(level)
    width, height = (max(1, round(side / by)) for side, by in zip((frame.width, frame.height), scale, strict=True))
    stream = RowStream(_blended_strips(frame, layer, opacity, slide, level, (width, height)), width, height)
    picture_width, picture_height = frame.size
    image = stream.image
    shrink = [frame.downsample / by for by in scale]
    if max(shrink) > 1.01:
        image = image.reduce(*shrink, kernel="linear")
    image = image.embed(0, 0, picture_width, picture_height, extend="white")
    image = image.copy(interpretation="srgb", xres=1000 / frame.pixel_mpp.x, yres=1000 / frame.pixel_mpp.y)
    with atomic_path(path) as temporary:
        try:
            image.tiffsave(
                str(temporary), tile=True, tile_width=TILE_PX, tile_height=TILE_PX, pyramid=True, bigtiff=True,
                resunit="cm", compression="jpeg", Q=QUALITY,
            )  # fmt: skip
        except pyvips.Error as error:
            if stream.error:
                raise stream.error from error
            reason = str(error).strip().splitlines()[-1]
            raise ResultError(f"{path.name}: cannot be written ({reason}).") from error


def _blended_strips(
    frame: Frame, layer: Layer, opacity: float, slide: Slide, level: int, size: tuple[int, int]
) -> Iterator[UInt8]:
    """The frame at a level of the slide, `size` pixels, in strips; blocks are read and blended in threads."""
    scale = slide.downsample(level)
    width, height = size
    left, top = round(frame.left / scale[0]), round(frame.top / scale[1])

    def blend_block(x: int, y: int, n_columns: int, n_rows: int) -> UInt8:
        base = slide.read(level, left + x, top + y, n_columns, n_rows)
        at_x = frame.left + (x + np.arange(n_columns, dtype=np.float64) + 0.5) * scale[0]
        at_y = frame.top + (y + np.arange(n_rows, dtype=np.float64) + 0.5) * scale[1]
        return blend(base, *layer(at_x, at_y), opacity)

    with ThreadPoolExecutor(usable_cores()) as pool:
        for y in range(0, height, BLOCK_ROWS):
            n_rows = min(BLOCK_ROWS, height - y)
            strip = np.empty((n_rows, width, 3), np.uint8)

            def fill(x: int, strip: UInt8 = strip, y: int = y, n_rows: int = n_rows) -> None:
                n_columns = min(BLOCK_COLUMNS, width - x)
                strip[:, x : x + n_columns] = blend_block(x, y, n_columns, n_rows)

            list(pool.map(fill, range(0, width, BLOCK_COLUMNS)))
            yield strip


def blend(base: UInt8, rgb: UInt8, inside: Bool, opacity: float) -> UInt8:
    """`base` under `opacity` of the colours `inside`, and untouched elsewhere."""
    mixed: Float32 = base + (rgb.astype(np.float32) - base) * np.float32(opacity)
    return np.where(inside[..., None], (mixed + 0.5).astype(np.uint8), base)


def open_source_slide(path: Path, result: Result) -> Slide:
    """The slide that a result was made from. Raises SlideError if it is not there or another file."""
    if not path.is_file():
        where = os.path.normpath(path)
        raise SlideError(f"{where}: there is no such file; name the slide of {result.path.name} with --slide.")
    slide = open_slide(path)
    if slide.fingerprint() != result.provenance["slide"]["fingerprint"]:
        slide.close()
        raise SlideError(f"{path}: is not the slide that {result.path.name} was made from.")
    return slide
