"""Read the OME-XML of a TIFF file: the size of each image's pixels, and its planes.

The XML may be malicious. It is read as a stream, up to a limit. Reading stops at a document type, without which there
can be no entities. Elements count only where the schema has them: OME/Image/Pixels, in a namespace of OME.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from xml.parsers import expat

from stpredict.slides.lengths import micrometres
from stpredict.slides.resolution import Statement, stated

MAX_CHARACTERS = 16 << 20
PLACE = ("OME", "Image", "Pixels")
SEPARATOR = " "
#: The unit of a physical size without a unit.
DEFAULT_UNIT = "\u00b5m"


class _DoctypeError(Exception):
    pass


@dataclass(frozen=True)
class OmeImage:
    """One image: its size, the planes of its stack by axis, and its statements about its pixels."""

    size: tuple[int, int]
    planes: dict[str, int]
    statements: list[Statement]


def read_ome_xml(text: str) -> list[OmeImage]:
    """The images of an OME-XML text, in its order, as far as it can be read; none for any other text."""
    text = text.lstrip("\ufeff\r\n\t ")
    if not text.startswith("<"):
        return []
    images: list[OmeImage] = []
    path: list[str] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        space, _, local = name.rpartition(SEPARATOR)
        path.append(local if not space or "openmicroscopy.org" in space.lower() else "")
        if tuple(path) == PLACE:
            images.append(_image(attributes))

    def refuse(*_: object) -> None:
        raise _DoctypeError

    parser = expat.ParserCreate(namespace_separator=SEPARATOR)
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: path.pop()
    parser.StartDoctypeDeclHandler = refuse
    with suppress(expat.ExpatError, _DoctypeError):
        parser.Parse(text[:MAX_CHARACTERS], False)
    return images


def _image(pixels: dict[str, str]) -> OmeImage:
    counts = {axis: _number(pixels.get(f"Size{axis.upper()}")) for axis in "xyzct"}
    sizes = {axis: int(count) if 0 < count < math.inf else 0 for axis, count in counts.items()}
    sides = []
    for axis in "XY":
        unit = micrometres(pixels.get(f"PhysicalSize{axis}Unit", DEFAULT_UNIT))
        sides.append(_number(pixels.get(f"PhysicalSize{axis}")) * unit if unit else None)
    return OmeImage((sizes["x"], sizes["y"]), {axis: sizes[axis] for axis in "zct"}, stated("OME-XML", *sides))


def _number(text: str | None) -> float:
    """NaN where there is none."""
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan
