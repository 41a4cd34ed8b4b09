"""A slide of any format as a libvips image, read once from top to bottom and never held as a whole.

libvips reads few slide formats itself, so the pixels pass to it as an uncompressed PNG that is made while it reads.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pyvips

from stpredict.slides.slide import Slide

STRIP_ROWS = 256


def stream_slide(slide: Slide) -> pyvips.Image:
    """Level 0 of a slide as a sequential image; it can be read once."""
    parts = _png(slide)
    buffer = memoryview(b"")

    def read(size: int) -> bytes:
        nonlocal buffer
        if not buffer:
            buffer = memoryview(next(parts, b""))
        chunk, buffer = buffer[:size], buffer[size:]
        return bytes(chunk)

    source = pyvips.SourceCustom()
    source.on_read(read)
    return pyvips.Image.new_from_source(source, "", access="sequential", unlimited=True)


def _png(slide: Slide) -> Iterator[bytes]:
    width, height = slide.dimensions
    yield b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0))
    packer = zlib.compressobj(0)
    for y in range(0, height, STRIP_ROWS):
        strip = slide.read(0, 0, y, width, min(STRIP_ROWS, height - y))
        rows = np.zeros((len(strip), 1 + 3 * width), np.uint8)  # each row begins with its filter: none
        rows[:, 1:] = strip.reshape(len(strip), -1)
        yield _chunk(b"IDAT", packer.compress(rows.tobytes()))
    yield _chunk(b"IDAT", packer.flush()) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
