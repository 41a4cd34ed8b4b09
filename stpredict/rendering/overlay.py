"""The slide under a half-transparent map, as a JPEG pyramid."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from stpredict.arrays import Bool, Float32, UInt8
from stpredict.errors import SlideError
from stpredict.rendering.cells import Layer
from stpredict.rendering.jpeg import write_jpeg
from stpredict.result.file import Result
from stpredict.result.frame import Frame
from stpredict.slides.levels import on_readable_levels
from stpredict.slides.slide import Slide, open_slide

#: A level of the slide may be this much coarser than the picture.
COARSER = 1.01
#: Pixels of the slide to reduce at a time.
MAX_SOURCE_PX = 4096**2


def write_overlay(path: Path, frame: Frame, layer: Layer, opacity: float, slide: Slide) -> None:
    """Write the slide under the layer: the slide alone where the layer is empty, else a blend with this `opacity`.

    Raises SlideError if the slide cannot be decoded, OSError if the picture cannot be written.
    """
    on_readable_levels(slide, lambda: _write(path, frame, layer, opacity, slide))


def _write(path: Path, frame: Frame, layer: Layer, opacity: float, slide: Slide) -> None:
    readable = (i for i in range(len(slide.level_dimensions)) if i not in slide.unreadable)
    level = max(i for i in readable if max(slide.downsample(i)) <= frame.downsample * COARSER)

    def make_block(left: int, top: int, width: int, height: int) -> UInt8:
        base = _reduced(slide, level, frame, (left, top, width, height))
        return blend(base, *layer(frame.columns(left, width), frame.rows(top, height)), opacity)

    write_jpeg(path, frame, make_block)


def _reduced(slide: Slide, level: int, frame: Frame, block: tuple[int, int, int, int]) -> UInt8:
    """The slide under a block of the picture, made from a level that is at least as fine."""
    (left, top, width, height), scale = block, slide.downsample(level)
    shrink = [frame.downsample / by for by in scale]
    if width * height * shrink[0] * shrink[1] > MAX_SOURCE_PX and width * height > 1:
        n_columns, n_rows = (width // 2, height) if width > height else (width, height // 2)
        further = (left + n_columns, top, width - n_columns, height) if width > height else (
            left, top + n_rows, width, height - n_rows)  # fmt: skip
        parts = [_reduced(slide, level, frame, part) for part in ((left, top, n_columns, n_rows), further)]
        return np.concatenate(parts, axis=1 if width > height else 0)
    x, y = ((origin + first * frame.downsample) / by for origin, first, by in (
        (frame.left, left, scale[0]), (frame.top, top, scale[1])))  # fmt: skip
    drift = (abs(by - 1) * side for by, side in zip(shrink, frame.size, strict=True))
    if max(drift) < 0.5:  # the level is the picture, pixel by pixel
        return slide.read(level, round(x), round(y), width, height)
    right, bottom = x + width * shrink[0], y + height * shrink[1]
    source = slide.read(level, int(x), int(y), int(np.ceil(right)) - int(x), int(np.ceil(bottom)) - int(y))
    box = (x - int(x), y - int(y), right - int(x), bottom - int(y))
    return np.asarray(Image.fromarray(source).resize((width, height), Image.Resampling.BOX, box=box))


def blend(base: UInt8, rgb: UInt8, inside: Bool, opacity: float) -> UInt8:
    """`base` blended with the colours, at this `opacity`, where `inside` is true; unchanged elsewhere."""
    mixed: Float32 = base + (rgb.astype(np.float32) - base) * np.float32(opacity)
    return np.where(inside[..., None], (mixed + 0.5).astype(np.uint8), base)


def open_source_slide(path: Path, result: Result) -> Slide:
    """The slide that a result was made from. Raises SlideError if it is missing, or is another file."""
    if not result.provenance["slide"]["path"] and path == result.path.parent:
        raise SlideError(f"{result.path.name}: does not say where its slide lies; name the slide with --slide.")
    if not path.is_file():
        where = os.path.normpath(path)
        raise SlideError(f"{where}: there is no such file; name the slide of {result.path.name} with --slide.")
    slide = open_slide(path)
    if slide.fingerprint() != result.provenance["slide"]["fingerprint"]:
        slide.close()
        raise SlideError(f"{path}: is not the slide that {result.path.name} was made from.")
    return slide
