"""One raster of a slide at the model's mpp, and the patches cut from it.

The raster is never made as a whole. It is divided into fixed blocks. A patch belongs to the block with its top-left
pixel, and is sliced from that block's region, which is read and resampled in one go. The block depends on the patch
alone, so a spot has the same pixels whether it is read alone or among a million.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

import numpy as np
from PIL import Image

from stpredict.arrays import Float, Int, UInt8
from stpredict.errors import SlideError
from stpredict.slides.slide import Mpp, Slide
from stpredict.slides.views import ONE_VIEW, Views, cut_views, margin_px

Made = TypeVar("Made")
#: A stored level this close to the model's mpp is used as the raster, without resampling.
SAME_MPP = 0.01
#: A slide has too little detail if its mpp is more than this many times the model's.
MAX_UPSAMPLING = 1.25
#: Side of the square of level pixels that one block is read from.
BLOCK_LEVEL_PX = 2048
#: Width of a strip, in blocks.
STRIP_BLOCKS = 4
#: Stacks of views to make at a time. They are copies, and a block of closely set spots would give too many.
MOST_STACKS = 64


@dataclass(frozen=True)
class Raster:
    """The raster at `mpp`: the level it is made from, that level's downsample, and level pixels per raster pixel."""

    slide: Slide
    mpp: float
    level: int
    downsample: tuple[float, float]
    scale: tuple[float, float]
    block_px: int

    def origins(self, centres: Float, patch_px: int) -> Int:
        """Nearest whole top-left raster pixel of patches around level-0 `centres` (n x 2, x and y)."""
        step = np.multiply(self.downsample, self.scale)
        return np.floor(centres / step - patch_px / 2 + 0.5).astype(np.int64)

    def read(self, x: int, y: int, width: int, height: int) -> UInt8:
        """RGB of a region in raster pixels, resampled with an antialiased triangle filter, white beyond the slide."""
        if self.scale == (1.0, 1.0):
            return self.slide.read(self.level, x, y, width, height)
        spans = [
            _source_span(start, size, scale)
            for start, size, scale in zip((x, y), (width, height), self.scale, strict=True)
        ]
        (left, right, x0, x1), (top, bottom, y0, y1) = spans
        source = self.slide.read(self.level, left, top, right - left, bottom - top)
        box = (x0 - left, y0 - top, x1 - left, y1 - top)
        return np.asarray(Image.fromarray(source).resize((width, height), Image.Resampling.BILINEAR, box=box))


def make_raster(slide: Slide, slide_mpp: Mpp, model_mpp: float, allow_upsampling: bool = False) -> Raster:
    """The raster from the coarsest stored level that is readable and not coarser than the model's mpp.

    Raises SlideError for a slide coarser than 1.25 times the model's mpp, unless `allow_upsampling`.
    """
    if max(slide_mpp) > MAX_UPSAMPLING * model_mpp and not allow_upsampling:
        raise SlideError(
            f"{slide.path.name}: {max(slide_mpp):.3g} um per pixel is too coarse for a model of {model_mpp:.3g}; "
            "--allow-upsampling predicts all the same, without the missing detail."
        )
    level, ratio = 0, (1.0, 1.0)
    for candidate in range(len(slide.level_dimensions)):
        if candidate in slide.unreadable:
            continue
        downsample = slide.downsample(candidate)
        here = (slide_mpp.x * downsample[0] / model_mpp, slide_mpp.y * downsample[1] / model_mpp)
        if candidate == 0 or max(here) <= 1 + SAME_MPP:
            level, ratio = candidate, here
    scale = (1.0, 1.0) if all(abs(r - 1) <= SAME_MPP for r in ratio) else (1 / ratio[0], 1 / ratio[1])
    block_px = max(256, int(BLOCK_LEVEL_PX / max(1.0, *scale)))
    return Raster(slide, model_mpp, level, slide.downsample(level), scale, block_px)


def block_order(raster: Raster, origins: Int) -> Int:
    """Indices that sort patches by the block they belong to: strips of a few blocks' width, row by row.

    In narrow strips the tiles below a row of blocks are still decoded when the next row is read.
    """
    blocks = origins // raster.block_px
    return np.lexsort((blocks[:, 0], blocks[:, 1], blocks[:, 0] // STRIP_BLOCKS))


@dataclass(frozen=True)
class Block:
    """Spots whose patches are cut from one region: the spots' indices, the region, the patches' top-left corners.

    Corners (x, y) are in pixels of the region. Wider views lie around the patches, also within the region.
    """

    index: Int
    region: UInt8
    corners: list[tuple[int, int]]
    patch_px: int
    views: Views

    def __len__(self) -> int:
        return len(self.corners)

    def patches(self) -> list[UInt8]:
        """Patches, P x P x 3 each, as slices of the region; with several views, copies of V x P x P x 3."""
        if self.views != ONE_VIEW:
            return cut_views(self.region, self.corners, self.patch_px, self.views)
        side = self.patch_px
        return [self.region[y : y + side, x : x + side] for x, y in self.corners]

    def copy(self, start: int, out: UInt8) -> None:
        """Copy n patches, from the `start`th on, into `out` (n x P x P x 3 or n x V x P x P x 3)."""
        corners, side = self.corners[start : start + len(out)], self.patch_px
        if self.views != ONE_VIEW:
            cut_views(self.region, corners, side, self.views, out)
            return
        for patch, (x, y) in zip(out, corners, strict=True):
            patch[:] = self.region[y : y + side, x : x + side]


def read_patches(
    raster: Raster, centres: Float, patch_px: int, threads: int = 2, views: Views = ONE_VIEW
) -> Generator[tuple[Int, list[UInt8]], None, None]:
    """Yield (indices into `centres`, P x P x 3 each) block by block, read in threads and delivered in order.

    With several `views`, each is V x P x P x 3; all views are made from one reading of the widest.
    If you may stop early, close the generator before the slide: its threads read ahead.
    Raises LevelError if the raster's level cannot be decoded.
    """

    def cut(read: Callable[[], Block]) -> tuple[Int, list[UInt8]]:
        block = read()
        return block.index, block.patches()

    blocks = _blocks(raster, centres, patch_px, views, None)
    with ThreadPoolExecutor(threads) as pool:
        yield from _in_order((partial(cut, read) for read in blocks), pool, threads)


def read_blocks(
    raster: Raster, centres: Float, patch_px: int, pool: Executor, ahead: int, views: Views = ONE_VIEW,
    parts: Iterable[Int] | None = None,
) -> Generator[Block, None, None]:  # fmt: skip
    """Yield the blocks of spots in order. The pool reads so many blocks `ahead` of the next one.

    `parts` are indices into `centres`. They are read one after the other; each is fetched only when its reading begins.
    If you may stop early, close the generator before the slide. Raises SlideError if the slide cannot be decoded.
    """
    return _in_order(_blocks(raster, centres, patch_px, views, parts), pool, ahead)


def _blocks(
    raster: Raster, centres: Float, patch_px: int, views: Views, parts: Iterable[Int] | None
) -> Iterator[Callable[[], Block]]:
    """A function for each block that reads it."""
    origins = raster.origins(centres, patch_px)
    margin = margin_px(patch_px, views)

    def read(group: Int) -> Block:
        first, last = origins[group].min(axis=0), origins[group].max(axis=0) + patch_px
        if raster.scale != (1.0, 1.0) or (raster.level > 0 and raster.slide.interpolates):
            # Read and resample the whole block, so that a pixel does not depend on the other spots of the call.
            first = first // raster.block_px * raster.block_px
            last = first + raster.block_px + patch_px
        (x0, y0), (x1, y1) = (first - margin).tolist(), (last + margin).tolist()
        region = raster.read(x0, y0, x1 - x0, y1 - y0)
        return Block(group, region, [(x - x0, y - y0) for x, y in origins[group].tolist()], patch_px, views)

    most = len(origins) if views == ONE_VIEW else MOST_STACKS
    for block in _in_blocks(raster, origins, [np.arange(len(origins))] if parts is None else parts):
        for start in range(0, len(block), most):
            yield partial(read, block[start : start + most])


def _in_order(tasks: Iterator[Callable[[], Made]], pool: Executor, ahead: int) -> Generator[Made, None, None]:
    """The results of the tasks, in their order; the pool runs so many of them ahead."""
    pending = deque(pool.submit(task) for task in islice(tasks, ahead + 1))
    try:
        while pending:
            yield pending.popleft().result()
            pending.extend(pool.submit(task) for task in islice(tasks, 1))
    finally:
        for future in pending:
            future.cancel()


def _in_blocks(raster: Raster, origins: Int, parts: Iterable[Int]) -> Iterator[Int]:
    """The patches of part after part, by block. A block across two parts stays whole, unless it is all of a part."""
    rest = np.empty(0, np.int64)
    for part in parts:
        order = np.concatenate([rest, part[block_order(raster, origins[part])]])
        changes = np.flatnonzero(np.any(np.diff(origins[order] // raster.block_px, axis=0) != 0, axis=1)) + 1
        *blocks, rest = np.split(order, changes)
        yield from blocks
        if not blocks:  # else it might fetch parts without end
            yield rest
            rest = np.empty(0, np.int64)
    yield rest


def _source_span(start: int, size: int, scale: float) -> tuple[int, int, float, float]:
    """Level pixels needed for raster pixels start..start+size: first, past-last, and the exact edges."""
    low, high = start * scale, (start + size) * scale
    support = max(scale, 1.0) + 1
    return int(np.floor(low - support)), int(np.ceil(high + support)), low, high
