"""Read the headers of JPEG and PNG files: pixels per unit of length, and which way up to show the image.

The pixels are not read: Pillow would refuse images that have very many.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, JpegImagePlugin

from stpredict.slides.resolution import Statement, stated_per_unit

X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT, ORIENTATION = 282, 283, 296, 274
RESOLUTION_TAGS = (X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT)
#: Units of the tag ResolutionUnit; without the tag it is inches (TIFF 6.0, and EXIF after it). 1 is no length.
TAG_UNITS = {2: "in", 3: "cm", 4: "mm", 5: "um"}
JFIF_UNITS = {1: "in", 2: "cm"}
UPRIGHT = 1
#: A chunk with facts about the whole image is smaller.
MAX_CHUNK = 1 << 20


def read_header(path: Path) -> tuple[list[Statement], int]:
    """The statements of a JPEG or PNG file, the weightiest first, and its EXIF orientation, 1 if it is upright.

    A header that cannot be read states nothing.
    """
    with path.open("rb") as file:
        start = file.read(8)
        file.seek(0)
        try:
            if start[:3] == b"\xff\xd8\xff":
                return _jpeg(file)
            if start == b"\x89PNG\r\n\x1a\n":
                return _png(file)
        except Exception:  # noqa: BLE001 (Pillow stumbles over damage in many ways; whether it can be read is another matter)
            pass
    return [], UPRIGHT


def _jpeg(file: BinaryIO) -> tuple[list[Statement], int]:
    image = JpegImagePlugin.JpegImageFile(file)
    unit = JFIF_UNITS.get(image.info.get("jfif_unit", 0), "")
    density = image.info.get("jfif_density", (None, None))
    return _with_exif(stated_per_unit("JFIF density", *density, unit), image.info.get("exif", b""))


def _png(file: BinaryIO) -> tuple[list[Statement], int]:
    statements, exif = list[Statement](), b""
    for name, content in _chunks(file):
        if name == b"pHYs":
            x, y, unit = struct.unpack(">IIB", content)
            statements += stated_per_unit("PNG pHYs", x, y, "m" if unit == 1 else "")
        elif name == b"eXIf":
            exif = content
    return _with_exif(statements, exif)


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """The small chunks of a PNG file. Reads to its end, because eXIf may come after the pixels."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        size, name = struct.unpack(">I4s", head)
        if name in (b"pHYs", b"eXIf") and size <= MAX_CHUNK:
            yield name, file.read(size)
            file.seek(4, 1)
        else:
            file.seek(size + 4, 1)


def _with_exif(statements: list[Statement], block: bytes) -> tuple[list[Statement], int]:
    exif = Image.Exif()
    if block:
        exif.load(block)
    return statements + tag_statements("EXIF", exif), exif.get(ORIENTATION, UPRIGHT)


def tag_statements(by: str, tags: Any) -> list[Statement]:
    """The statement of XResolution, YResolution and ResolutionUnit; `tags` maps tags to numbers or (n, d) pairs."""
    x, y = (ratio(tags.get(tag)) for tag in (X_RESOLUTION, Y_RESOLUTION))
    unit = tags.get(RESOLUTION_UNIT, 2)
    return stated_per_unit(by, x, y, TAG_UNITS.get(unit if isinstance(unit, int) else 1, ""))


def ratio(value: Any) -> float | None:
    """A tag's number, which may be stored as numerator and denominator; None if it is no number."""
    try:
        return float(value[0]) / float(value[1]) if isinstance(value, tuple) else float(value)
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return None
