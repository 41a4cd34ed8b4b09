"""Find tissue: a mask at about 8 um per pixel, and the fraction of each spot that the mask covers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.fft import irfft2, next_fast_len, rfft2
from skimage.filters import threshold_triangle
from skimage.morphology import remove_small_holes, remove_small_objects

from stpredict.arrays import Bool, Float, UInt8
from stpredict.errors import SlideError
from stpredict.slides.overview import make_overview
from stpredict.slides.slide import Mpp, Slide

MASK_UM = 8.0
SMOOTHING_UM = 8.0
MIN_OBJECT_MM2 = 0.1
MAX_HOLE_MM2 = 0.005
#: Summed optical density of R, G and B: below the first value no pixel counts as stained, above the second every one.
DENSITY_RANGE = (0.25, 1.2)
#: Glass is grey: its R, G and B differ by at most this. A slide with a smaller fraction of it than MIN_GLASS has none.
NEUTRAL_CHROMA = 20
MAX_GLASS_DENSITY = 1.0
MIN_GLASS = 0.01
#: Pixels of the largest overview: a slide of 75 x 25 mm has 30 million.
MAX_OVERVIEW = 200_000_000


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
        padded = np.pad(self.mask.astype(float), ((ny, ny), (nx, nx)))
        # The valid part of a convolution. scipy.signal has it, but its import takes a third of a command's start.
        shape = [next_fast_len(size, real=True) for size in padded.shape]
        sums = irfft2(rfft2(padded, shape) * rfft2(disk, shape), shape)[2 * ny :, 2 * nx :]
        covered = np.abs(np.rint(sums))  # whole pixels, equal on every machine
        height, width = self.mask.shape
        column = np.clip((centres[:, 0] / self.downsample[0]).astype(np.int64), 0, width - 1)
        row = np.clip((centres[:, 1] / self.downsample[1]).astype(np.int64), 0, height - 1)
        fraction: Float = covered[row, column] / disk.sum()
        return fraction


def find_tissue(slide: Slide, mpp: Mpp, threads: int = 2) -> Tissue:
    """Find the stained areas of a slide; there may be none. Raises SlideError if it cannot be decoded."""
    width, height = (max(1, round(size * um / MASK_UM)) for size, um in zip(slide.dimensions, mpp, strict=True))
    if width * height > MAX_OVERVIEW:
        size = f"{slide.dimensions[0]} x {slide.dimensions[1]} pixels of {max(mpp):.3g} um"
        raise SlideError(f"{slide.path.name}: {size} cannot be a slide.")
    overview = make_overview(slide, width, height, threads)
    downsample = (slide.dimensions[0] / width, slide.dimensions[1] / height)
    return Tissue(overview, tissue_mask(overview, MASK_UM), downsample)


def tissue_mask(overview: UInt8, overview_um: float) -> Bool:
    """Tissue by a triangle threshold (Zack et al. 1977) on the smoothed optical density over the slide's own glass.

    The triangle finds the foot of the background's peak, so pale fat and stroma count. Its bounds keep an empty slide
    empty and a slide without glass whole. Small specks, such as the printed dots of an array, are dropped.
    """
    density = -np.log((overview.astype(np.float32) + 1) / 256).sum(axis=2)
    scanned = (overview < 255).any(axis=2)  # areas that were not scanned are pure white
    glass_like = scanned & (np.ptp(overview, axis=2) <= NEUTRAL_CHROMA) & (density < MAX_GLASS_DENSITY)
    if glass_like.mean() > MIN_GLASS:
        glass = float(np.percentile(density[glass_like], 10))
    else:
        glass, scanned = 0.0, np.ones_like(scanned)
    density = ndimage.gaussian_filter(density - glass, SMOOTHING_UM / overview_um)
    spread = density[scanned]
    threshold = float(np.clip(threshold_triangle(spread), *DENSITY_RANGE)) if np.ptp(spread) > 0 else DENSITY_RANGE[0]
    mask = density > threshold
    pixels_per_mm2 = (1000 / overview_um) ** 2
    mask = remove_small_objects(mask, max_size=round(min(MIN_OBJECT_MM2 * pixels_per_mm2, mask.size / 100)))
    return np.asarray(remove_small_holes(mask, max_size=round(MAX_HOLE_MM2 * pixels_per_mm2)), dtype=np.bool_)
