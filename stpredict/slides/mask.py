"""The area in which spots are chosen: the polygons of a GeoJSON file, or the pixels of an image that are not black."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from stpredict.arrays import Bool, Float
from stpredict.errors import MaskError
from stpredict.slides.geojson import is_geojson
from stpredict.slides.regions import Region, read_regions
from stpredict.slides.slide import Slide

Origin = Literal["slide", "bounds"]
#: How far the proportions of a mask's image may differ from the slide's.
MAX_DISTORTION = 0.02
# Pillow warns of an image of many pixels, and refuses one of twice as many.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


@dataclass(frozen=True)
class MaskRequest:
    """A file, and whether its coordinates begin at the slide's corner or at that of its bounds, as in QuPath."""

    path: Path
    origin: Origin = "slide"


def inside_mask(request: MaskRequest, slide: Slide, centres: Float) -> Bool:
    """Which level-0 `centres` (n x 2) lie in the area. An image covers the slide, or its bounds, at any size.

    Raises RegionsError or MaskError for a file that cannot be read, or an image of other proportions.
    """
    whole = request.origin == "slide"
    corner, size = ((0, 0), slide.dimensions) if whole else (slide.bounds[:2], slide.bounds[2:])
    places = centres - corner
    mask = read_mask(request.path)
    if isinstance(mask, list):
        return np.asarray(np.any([region.contains(places) for region in mask], axis=0), dtype=np.bool_)
    height, width = mask.shape
    if abs(width / height * size[1] / size[0] - 1) > MAX_DISTORTION:
        turned = abs(height / width * size[1] / size[0] - 1) <= MAX_DISTORTION
        raise MaskError(
            f"{request.path}: {width} x {height} pixels do not have the proportions of {slide.path.name}, "
            f"{size[0]} x {size[1]}{'; turn it by 90 degrees' if turned else ''}."
        )
    column, row = np.floor(places * (width, height) / size).astype(np.int64).T
    within = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    inside = np.zeros(len(centres), np.bool_)
    inside[within] = mask[row[within], column[within]]
    return inside


def read_mask(path: Path, tell: Callable[[str], None] = lambda _: None) -> list[Region] | Bool:
    """The areas of a GeoJSON file, or where an image is not black; `tell` hears which objects are skipped.

    Raises RegionsError or MaskError for a file that cannot be read.
    """
    if is_geojson(path):
        return list(read_regions(path, tell).values())
    try:
        # Open the file here: given a name, Pillow maps a TIFF to memory and turns the image twice.
        with path.open("rb") as file, Image.open(file) as image:
            return _not_black(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise MaskError(f"{path}: too large for a mask; a thumbnail's size will do.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MaskError(f"{path}: not an image or GeoJSON file that can be read ({reason}).") from error


def _not_black(image: Image.Image) -> Bool:
    """Where an image of any kind is neither black nor transparent."""
    if image.mode[0] in "FI":  # float and more than 8 bits: `convert` would cut off probabilities below 1
        return np.asarray(image) > 0
    rgba = image.convert("RGBA")
    seen: Bool = (np.asarray(rgba.convert("L")) > 0) & (np.asarray(rgba.getchannel("A")) > 0)
    return seen
