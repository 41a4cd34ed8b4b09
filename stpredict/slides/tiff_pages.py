"""Read from a TIFF file which page is the image, which planes its stack has, and how large its pixels are.

Slide readers take the first page and look no further. That page may be a preview of a later one, or one plane of many.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import tifffile

from stpredict.errors import SlideError
from stpredict.slides.image_headers import (
    ORIENTATION,
    RESOLUTION_TAGS,
    UPRIGHT,
    X_RESOLUTION,
    Y_RESOLUTION,
    ratio,
    tag_statements,
)
from stpredict.slides.ome_xml import OmeImage, read_ome_xml
from stpredict.slides.resolution import Statement, stated, stated_per_unit

MAX_PAGES = 256
REDUCED, MASK = 1, 4  # flags of NewSubfileType
#: How far a preview's proportions may differ from the image's; and the pixels by which its sides may be rounded.
MAX_DISTORTION = 0.02
ROUNDING_PX = 1.5
AXES = {"z": "focal planes", "t": "time points", "c": "channels", "": "pages of one size"}
IMAGEJ_AXES = {"z": "slices", "t": "frames", "c": "channels", "": "images"}
APERIO_MPP = re.compile(r"\|\s*MPP\s*=\s*([0-9.eE+-]+)")


@dataclass(frozen=True)
class ImagePage:
    """The page that is the image: its number from 0, width and height, its statements, and notes for the user."""

    number: int
    size: tuple[int, int]
    statements: list[Statement]
    orientation: int
    notes: tuple[str, ...]


def read_image_page(path: Path) -> ImagePage | None:
    """The largest page with the first page's proportions; None if the file cannot be read as TIFF.

    Raises SlideError if a larger page has other proportions, or if the image's channels or planes are grey pages.
    """
    try:
        with tifffile.TiffFile(path) as tiff:
            return _image_page(tiff, path.name)
    except SlideError:
        raise
    except Exception:  # noqa: BLE001 (tifffile fails in many ways on files that others may read)
        return None


def _image_page(tiff: tifffile.TiffFile, name: str) -> ImagePage:
    pages = list(_readable(islice(tiff.pages, MAX_PAGES)))
    images = [number for number, page in enumerate(pages) if not page.subfiletype & MASK] or [0]
    number = max(images, key=lambda one: _area(_size(pages[one])))  # the first of the largest
    page, size = pages[number], _size(pages[number])
    within = [_size(sub) for one in {pages[0], page} for sub in _readable(iter(one.pages or ()))]
    if max(map(_area, within), default=0) > _area(size):
        raise SlideError(f"{name}: its largest image lies within another page; save that as a file of its own.")
    notes = []
    if number:
        first = _size(pages[images[0]])
        if not _same_proportions(first, size):
            raise SlideError(
                f"{name}: its page {number + 1}, {size[0]} x {size[1]} pixels, is larger than its first, of other "
                "proportions; save the one that is the slide as a file of its own."
            )
        notes.append(
            f"its page {number + 1} is read, the largest; the first, {first[0]} x {first[1]} pixels, is a preview"
        )
    ome = _ome_image(pages[0].description, size)
    n_alike = len(tiff.pages) if len(pages) == MAX_PAGES else sum(_alike(page, pages[one]) for one in images)
    planes = _planes(page, ome, n_alike)
    if planes and page.samplesperpixel == 1:
        what = AXES[planes[0][0]] if planes[0][0] in ("z", "t") else "channels"
        raise SlideError(f"{name}: its {what} are separate pages, of which one would be read; save it as RGB.")
    notes += [f"it holds {count} {AXES[axis]}, of which the first is read" for axis, count in planes]
    return ImagePage(number, size, page_statements(page, ome), _orientation(page), tuple(notes))


def page_statements(page: tifffile.TiffPage, ome: OmeImage | None) -> list[Statement]:
    """The statements about a page's pixels: OME-XML, then ImageJ's or Aperio's description, then the tags."""
    tags = {tag.code: tag.value for tag in page.tags if tag.code in RESOLUTION_TAGS}
    text = page.description
    found = list(ome.statements) if ome else []
    if (imagej := _imagej(text)) and "unit" in imagej:  # the tags then count pixels per that unit
        units = (imagej["unit"], imagej.get("yunit", imagej["unit"]))
        x, y = (ratio(tags.get(tag)) for tag in (X_RESOLUTION, Y_RESOLUTION))
        found += stated_per_unit("ImageJ description", x, y, *units)
    if text.startswith("Aperio") and (mpp := APERIO_MPP.search(text)):
        found += stated("Aperio description", ratio(mpp[1]), ratio(mpp[1]))
    return found + tag_statements("TIFF tags", tags)


def _readable(pages: Iterator[tifffile.TiffPage | tifffile.TiffFrame]) -> Iterator[tifffile.TiffPage]:
    """The pages before the first damaged one."""
    try:
        for page in pages:
            if isinstance(page, tifffile.TiffPage):
                yield page
    except Exception:  # noqa: BLE001 (as above)
        return


def _planes(page: tifffile.TiffPage, ome: OmeImage | None, n_alike: int) -> list[tuple[str, int]]:
    """The axes with more than one plane, as the file names them, and the number of planes along each."""
    if ome:
        counts = dict(ome.planes)
    else:
        said = _imagej(page.description)
        counts = {axis: int(said[key]) for axis, key in IMAGEJ_AXES.items() if said.get(key, "").isdecimal()}
        if len(counts) > 1:  # the number of images is the product of the others
            counts.pop("", None)
    counts["c"] = counts.get("c", 1) // page.samplesperpixel  # red, green and blue count as channels
    found = [(axis, count) for axis, count in counts.items() if count > 1]
    return found or ([("", n_alike)] if n_alike > 1 else [])


def _imagej(text: str) -> dict[str, str]:
    """The lines of key and value that ImageJ wrote, or Bio-Formats in its style."""
    lines: Sequence[str] = text.splitlines() if text.startswith("ImageJ=") else ()
    return {key.strip(): value.strip() for key, sign, value in (line.partition("=") for line in lines) if sign}


def _ome_image(text: str, size: tuple[int, int]) -> OmeImage | None:
    """The image of this size. Statements about images of other sizes do not count."""
    return next((image for image in read_ome_xml(text) if image.size in (size, (0, 0))), None)


def _orientation(page: tifffile.TiffPage) -> int:
    tag = page.tags.get(ORIENTATION)
    return UPRIGHT if tag is None else tag.value


def _alike(page: tifffile.TiffPage, other: tifffile.TiffPage) -> bool:
    return _size(page) == _size(other) and page.samplesperpixel == other.samplesperpixel


def _size(page: tifffile.TiffPage) -> tuple[int, int]:
    return int(page.imagewidth), int(page.imagelength)


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _same_proportions(small: tuple[int, int], large: tuple[int, int]) -> bool:
    """Whether the small image can be a reduction of the large one."""
    tolerance = max(MAX_DISTORTION, ROUNDING_PX / max(1, min(small)))
    return abs(small[0] * large[1] / max(1, small[1] * large[0]) - 1) <= tolerance
