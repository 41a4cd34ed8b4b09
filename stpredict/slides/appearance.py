"""Does a slide look like H&E in bright field? Dark, green or grey ones get a note; those of one colour are refused."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from stpredict.arrays import UInt8
from stpredict.errors import NoTissueError, SlideError
from stpredict.slides.slide import Slide

#: Pixels whose grey levels differ by no more than this have one colour.
SAME = 3
#: A slide is black if hardly a pixel is as bright as this.
BLACK = 24
#: Glass or thin tissue is brighter than this somewhere.
DIM = 110
#: Bright field is light: a darker pixel is darkly stained, or no glass.
DARK = 60
#: R, G and B of a coloured pixel differ by more than this.
CHROMA = 12
#: Share of the pixels, or of those that are not glass, by which a slide is judged.
MOST = 0.5
NEARLY_ALL = 0.995
#: Fewer coloured pixels than this are noise.
MIN_COLOURED = 0.005


def note_appearance(slide: Slide, overview: UInt8) -> None:
    """Note how the `overview` of a slide differs from H&E in bright field.

    Raises NoTissueError if it has one colour throughout, SlideError if it is nearly black.
    """
    if said := appearance(slide.path.name, overview):
        slide.appearance = f"{said}; models are trained on H&E in bright field"
        slide.notes.append(slide.appearance)


def appearance(name: str, overview: UInt8) -> str | None:
    """Why an overview is unlikely to show H&E, in words, or None. Raises the same errors as `note_appearance`."""
    smooth = ndimage.uniform_filter(overview, (3, 3, 1)) if min(overview.shape[:2]) > 8 else overview
    pixels = smooth.reshape(-1, 3).astype(np.int16)
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    if (high - low <= SAME).all():
        raise NoTissueError(f"{name}: no tissue found: it has one colour throughout, {_colour(pixels)}.")
    brightest, chroma = pixels.max(axis=1), np.ptp(pixels, axis=1)
    if np.quantile(brightest, NEARLY_ALL) < BLACK:
        raise SlideError(f"{name}: is black throughout; its values may be of another range than their type suggests.")
    if np.quantile(brightest, NEARLY_ALL) < DIM:
        return f"nothing on it is brighter than {brightest.max()} of 255, as where values are of another range"
    seen = pixels[brightest < 255]
    if len(seen) and (seen.max(axis=1) < DARK).mean() > MOST:
        return "most of it is dark, as in fluorescence or an inverted image"
    if (chroma > CHROMA).mean() < MIN_COLOURED:
        return "it is grey throughout"
    coloured = pixels[chroma > CHROMA]
    red, green, blue = coloured.T
    if ((green > red) & (green >= blue)).mean() > MOST:
        return "most of its colours are green, as in an inverted image"
    return None


def _colour(pixels: np.ndarray[tuple[int, ...], np.dtype[np.int16]]) -> str:
    red, green, blue = np.median(pixels, axis=0).astype(int)
    if min(red, green, blue) > 255 - BLACK // 2 or max(red, green, blue) < BLACK:
        return "white" if red > BLACK else "black"
    return f"RGB {red}, {green}, {blue}"
