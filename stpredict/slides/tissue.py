"""Where tissue lies: a mask at about 8 um per pixel and the fraction of each spot that it covers."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.signal import fftconvolve
from skimage.filters import threshold_triangle
from skimage.morphology import remove_small_holes, remove_small_objects

from stpredict.arrays import Bool, Float, UInt8
from stpredict.errors import NoTissueError
from stpredict.slides.slide import Mpp, Slide

MASK_UM = 8.0
THUMBNAIL_PX = 1500
SMOOTHING_UM = 8.0
MIN_OBJECT_MM2 = 0.1
MAX_HOLE_MM2 = 0.005
#: Summed optical density of R, G and B below which nothing counts as stained, and above which everything does.
DENSITY_RANGE = (0.25, 1.2)
#: Glass is grey: its R, G and B differ by at most this. Slides with less of it than the fraction below have none.
NEUTRAL_CHROMA = 20
MIN_GLASS = 0.01
#: Side of the square of level pixels that the overview is made from at a time.
OVERVIEW_BLOCK_PX = 4096


@dataclass(frozen=True)
class Tissue:
    """A slide at about 8 um per pixel, which of its pixels are tissue, and level-0 pixels per mask pixel."""

    overview: UInt8
    mask: Bool
    downsample: tuple[float, float]

    def fraction(self, centres: Float, diameter_um: float, mpp: Mpp) -> Float:
        """Fraction of each spot's disk that is tissue, for level-0 `centres` (n x 2)."""
        step_x, step_y = mpp.x * self.downsample[0], mpp.y * self.downsample[1]
        ny, nx = (int(np.ceil(diameter_um / 2 / step)) for step in (step_y, step_x))
        y, x = np.mgrid[-ny : ny + 1, -nx : nx + 1]
        disk = ((x * step_x) ** 2 + (y * step_y) ** 2 <= (diameter_um / 2) ** 2).astype(float)
        covered = fftconvolve(
            np.pad(self.mask.astype(np.float32), ((ny, ny), (nx, nx))), disk / disk.sum(), mode="valid"
        )
        height, width = self.mask.shape
        column = np.clip((centres[:, 0] / self.downsample[0]).astype(np.int64), 0, width - 1)
        row = np.clip((centres[:, 1] / self.downsample[1]).astype(np.int64), 0, height - 1)
        fraction: Float = np.clip(covered[row, column], 0.0, 1.0)
        return fraction


def find_tissue(slide: Slide, mpp: Mpp, threads: int = 2) -> Tissue:
    """Find the stained areas of a slide.

    Raises NoTissueError if there are none, SlideError if the slide cannot be decoded.
    """
    overview, downsample = make_overview(slide, mpp, MASK_UM, threads)
    mask = tissue_mask(overview, MASK_UM)
    if not mask.any():
        raise NoTissueError(f"{slide.path.name}: no tissue found.")
    return Tissue(overview, mask, downsample)


def tissue_mask(overview: UInt8, overview_um: float) -> Bool:
    """Tissue by a triangle threshold (Zack et al. 1977) on the smoothed optical density over the slide's own glass.

    The triangle finds the foot of the background's peak, so pale fat and stroma count; its bounds keep an empty
    slide empty and a slide without glass whole. Small specks, as the printed dots of an array, are dropped.
    """
    density = -np.log((overview.astype(np.float32) + 1) / 256).sum(axis=2)
    neutral = np.ptp(overview, axis=2) <= NEUTRAL_CHROMA
    glass = float(np.percentile(density[neutral], 1)) if neutral.mean() > MIN_GLASS else 0.0
    density = ndimage.gaussian_filter(density - glass, SMOOTHING_UM / overview_um)
    threshold = float(np.clip(threshold_triangle(density), *DENSITY_RANGE)) if np.ptp(density) > 0 else DENSITY_RANGE[0]
    mask = density > threshold
    pixels_per_mm2 = (1000 / overview_um) ** 2
    mask = remove_small_objects(mask, max_size=round(min(MIN_OBJECT_MM2 * pixels_per_mm2, mask.size / 100)))
    return np.asarray(remove_small_holes(mask, max_size=round(MAX_HOLE_MM2 * pixels_per_mm2)), dtype=np.bool_)


def make_thumbnail(slide: Slide, mpp: Mpp, tissue: Tissue, threads: int) -> tuple[UInt8, float]:
    """The slide at no more than 1500 pixels, and level-0 pixels per pixel of it."""
    longest_um = max(size * um for size, um in zip(slide.dimensions, mpp, strict=True))
    if longest_um / THUMBNAIL_PX >= MASK_UM:  # the overview has all the detail there is to show
        step = math.ceil(max(tissue.overview.shape[:2]) / THUMBNAIL_PX)
        return np.asarray(Image.fromarray(tissue.overview).reduce(step)), tissue.downsample[0] * step
    thumbnail, downsample = make_overview(slide, mpp, max(longest_um / THUMBNAIL_PX, *mpp), threads)
    return thumbnail, downsample[0]


def make_overview(slide: Slide, mpp: Mpp, overview_um: float, threads: int = 2) -> tuple[UInt8, tuple[float, float]]:
    """The whole slide at about `overview_um` per pixel, and level-0 pixels per overview pixel; read block by block."""
    width, height = (max(1, round(size * um / overview_um)) for size, um in zip(slide.dimensions, mpp, strict=True))
    fine_enough = [i for i, size in enumerate(slide.level_dimensions) if size[0] >= width and size[1] >= height]
    level = max(fine_enough, default=0)
    level_width, level_height = slide.level_dimensions[level]
    overview = np.full((height, width, 3), 255, np.uint8)
    block = max(1, int(OVERVIEW_BLOCK_PX * width / level_width))  # overview pixels per block

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
    return overview, (slide.dimensions[0] / width, slide.dimensions[1] / height)
