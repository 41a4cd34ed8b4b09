"""Micrometres per pixel, from the positions of an array's spots on the image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from stpredict.arrays import Float
from stpredict.errors import DatasetError
from stpredict.slides.slide import Mpp, Slide, open_slide

#: Sources that differ by more than this are reported.
MAX_DISAGREEMENT = 0.05


def pixels_per_unit(units: Float, pixels: Float, section: str) -> Float:
    """The 2 x 2 matrix from array coordinates to level-0 pixels (both n x 2, x and y) by least squares.

    It may turn and mirror. Raises DatasetError for too few spots, or pixels that do not follow the array.
    """
    units, pixels = units - units.mean(axis=0), pixels - pixels.mean(axis=0)
    if len(units) < 3 or not np.isfinite(units).all() or np.linalg.matrix_rank(units) < 2:
        raise DatasetError(f"section {section}: too few spots to find the micrometres per pixel.")
    matrix = np.linalg.lstsq(units, pixels, rcond=None)[0].T
    residual = np.sqrt(((units @ matrix.T - pixels) ** 2).sum(axis=1).mean())
    if not residual < 0.5 * np.linalg.norm(matrix, axis=0).min():
        raise DatasetError(f"section {section}: pixel positions do not follow the array's coordinates.")
    return np.asarray(matrix)


def lattice_mpp(units: Float, pixels: Float, unit_um: tuple[float, float], section: str) -> Mpp:
    """The mpp of an image whose spots lie at `pixels` and, in array coordinates of `unit_um` per axis, at `units`."""
    x, y = 1 / np.linalg.norm(pixels_per_unit(units, pixels, section) / unit_um, axis=1)
    return Mpp(float(x), float(y))


def neighbour_distance(pixels: Float, section: str) -> float:
    """Median distance, in pixels, from a spot to its nearest neighbour. Raises DatasetError if it is zero."""
    distance = float(np.median(cKDTree(pixels).query(pixels, k=2)[0][:, 1])) if len(pixels) > 1 else 0.0
    if not 0 < distance < np.inf:
        raise DatasetError(f"section {section}: too few spots to find the distance between neighbours.")
    return distance


def native_mpp(slide: Slide) -> Mpp | None:
    """The mpp that the slide states, unless it is a camera's or a printer's resolution."""
    return slide.native_mpp if slide.native_mpp and slide.native_mpp.plausible else None


def slide_mpp(image: Path) -> Mpp | None:
    """The mpp that an image file states. Raises SlideError if it cannot be opened."""
    with open_slide(image) as slide:
        return native_mpp(slide)


def settle_mpp(sources: Sequence[tuple[str, Mpp | None]]) -> tuple[Mpp | None, tuple[str, ...]]:
    """The first of the named sources that knows the mpp, and a note for each later one that disagrees."""
    known = [(name, mpp) for name, mpp in sources if mpp is not None]
    if not known:
        return None, ()
    first, used = known[0]
    notes = [
        f"mpp {used.x:.4f} x {used.y:.4f} by {first}, but {mpp.x:.4f} x {mpp.y:.4f} by {name}"
        for name, mpp in known[1:]
        if max(abs(a / b - 1) for a, b in zip(mpp, used, strict=True)) > MAX_DISAGREEMENT
    ]
    if abs(used.x / used.y - 1) > MAX_DISAGREEMENT:
        notes.append(f"mpp {used.x:.4f} along x, but {used.y:.4f} along y, by {first}")
    return used, tuple(notes)
