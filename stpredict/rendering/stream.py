"""Rows of RGB as a libvips image, read once from top to bottom and never held as a whole.

libvips reads few slide formats itself, so the pixels pass to it as an uncompressed PNG that is made while it reads.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pyvips

from stpredict.arrays import UInt8

#: Rows that pass to libvips at a time.
ROWS = 16


class RowStream:
    """`strips`, height x width x 3 in all, as a sequential image, `image`, which can be read once.

    libvips cannot pass an exception on; it is kept in `error`, and the image ends where it occurred.
    """

    def __init__(self, strips: Iterator[UInt8], width: int, height: int) -> None:
        self.error: Exception | None = None
        self._parts = _png(strips, width, height)
        self._buffer = memoryview(b"")
        self._source = pyvips.SourceCustom()
        self._source.on_read(self._read)
        self.image = pyvips.Image.new_from_source(
            self._source, "", access="sequential", unlimited=True, fail_on="truncated"
        )

    def _read(self, size: int) -> bytes:
        try:
            if not self._buffer:
                self._buffer = memoryview(next(self._parts, b""))
        except Exception as error:  # noqa: BLE001 (kept for the caller)
            self.error = error
            return b""
        chunk, self._buffer = self._buffer[:size], self._buffer[size:]
        return bytes(chunk)


def _png(strips: Iterator[UInt8], width: int, height: int) -> Iterator[bytes]:
    yield b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0))
    packer = zlib.compressobj(0)
    for strip in strips:
        for y in range(0, len(strip), ROWS):
            part = strip[y : y + ROWS]
            rows = np.zeros((len(part), 1 + 3 * width), np.uint8)  # each row begins with its filter: none
            rows[:, 1:] = part.reshape(len(part), -1)
            yield _chunk(b"IDAT", packer.compress(rows.data))
    yield _chunk(b"IDAT", packer.flush()) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
