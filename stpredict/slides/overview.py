"""The whole slide reduced to a small image, read block by block."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from stpredict.arrays import UInt8
from stpredict.slides.levels import on_readable_levels
from stpredict.slides.slide import Slide

THUMBNAIL_PX = 1500
#: Side of the square of level pixels that is read at a time.
BLOCK_PX = 4096


def make_overview(slide: Slide, width: int, height: int, threads: int = 2) -> UInt8:
    """The whole slide reduced to `width` x `height` pixels; read block by block.

    Raises LevelError where no level that is fine enough can be decoded.
    """
    return on_readable_levels(slide, lambda: _reduce(slide, width, height, threads))


def _reduce(slide: Slide, width: int, height: int, threads: int) -> UInt8:
    sizes = enumerate(slide.level_dimensions)
    fine_enough = [i for i, (w, h) in sizes if w >= width and h >= height and i not in slide.unreadable]
    level = max(fine_enough, default=0)
    level_width, level_height = slide.level_dimensions[level]
    overview = np.full((height, width, 3), 255, np.uint8)
    block = max(1, int(BLOCK_PX * width / level_width))  # overview pixels per block

    def fill(corner: tuple[int, int]) -> None:
        x0, y0 = corner
        x1, y1 = min(x0 + block, width), min(y0 + block, height)
        left, right = (x * level_width / width for x in (x0, x1))
        top, bottom = (y * level_height / height for y in (y0, y1))
        x, y = int(left), int(top)
        source = slide.read(level, x, y, int(np.ceil(right)) - x, int(np.ceil(bottom)) - y)
        box = (left - x, top - y, right - x, bottom - y)
        small = Image.fromarray(source).resize((x1 - x0, y1 - y0), Image.Resampling.BOX, box=box)
        overview[y0:y1, x0:x1] = np.asarray(small)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, ((x, y) for y in range(0, height, block) for x in range(0, width, block))))
    return overview


def thumbnail_downsample(slide: Slide) -> float:
    """Level-0 pixels per pixel of the thumbnail."""
    return max(1.0, max(slide.dimensions) / THUMBNAIL_PX)


def thumbnail_size(slide: Slide) -> tuple[int, int]:
    """Width and height of the slide at no more than 1500 pixels."""
    downsample = thumbnail_downsample(slide)
    width, height = slide.dimensions
    return max(1, round(width / downsample)), max(1, round(height / downsample))


def make_thumbnail(slide: Slide, overview: UInt8, threads: int) -> tuple[UInt8, float]:
    """The slide at no more than 1500 pixels, and the level-0 pixels per pixel of it, equal along x and y.

    `overview` is the slide at another size. The thumbnail is made from it if it is larger.
    """
    downsample = thumbnail_downsample(slide)
    width, height = thumbnail_size(slide)
    if width <= overview.shape[1] and height <= overview.shape[0]:
        return np.asarray(Image.fromarray(overview).resize((width, height), Image.Resampling.BOX)), downsample
    return make_overview(slide, width, height, threads), downsample
