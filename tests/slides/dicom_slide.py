"""A whole-slide image in DICOM, written by hand: explicit little endian, one level of JPEG tiles."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import simplejpeg

TILE_PX = 256
WHOLE_SLIDE_IMAGE = "1.2.840.10008.5.1.4.1.1.77.1.6"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
UNKNOWN_LENGTH = 0xFFFFFFFF


def write_dicom_slide(path: Path, image: np.ndarray, mpp: tuple[float, float]) -> None:
    """`image` as a DICOM slide of one level with `mpp`."""
    height, width = image.shape[:2]
    frames = [
        simplejpeg.encode_jpeg(_tile(image[y : y + TILE_PX, x : x + TILE_PX]), 85, "RGB", "420")
        for y in range(0, height, TILE_PX)
        for x in range(0, width, TILE_PX)
    ]
    spacing = "\\".join(f"{um / 1000:g}" for um in reversed(mpp))
    measures = _element(0x0028, 0x9110, "SQ", _item(_text(0x0028, 0x0030, "DS", spacing)))
    about = b"".join((
        _text(0x0008, 0x0008, "CS", "ORIGINAL\\PRIMARY\\VOLUME\\NONE"), _text(0x0008, 0x0016, "UI", WHOLE_SLIDE_IMAGE),
        _text(0x0008, 0x0018, "UI", "1.2.3.4"), _text(0x0020, 0x000E, "UI", "1.2.3.5"),
        _short(0x0028, 0x0002, 3), _text(0x0028, 0x0004, "CS", "YBR_FULL_422"), _short(0x0028, 0x0006, 0),
        _text(0x0028, 0x0008, "IS", str(len(frames))), _short(0x0028, 0x0010, TILE_PX), _short(0x0028, 0x0011, TILE_PX),
        _short(0x0028, 0x0100, 8), _short(0x0028, 0x0101, 8), _short(0x0028, 0x0102, 7), _short(0x0028, 0x0103, 0),
        _element(0x0048, 0x0006, "UL", struct.pack("<I", width)),
        _element(0x0048, 0x0007, "UL", struct.pack("<I", height)),
        _element(0x5200, 0x9229, "SQ", _item(measures)),
    ))  # fmt: skip
    meta = _text(0x0002, 0x0002, "UI", WHOLE_SLIDE_IMAGE) + _text(0x0002, 0x0003, "UI", "1.2.3.4")
    meta += _text(0x0002, 0x0010, "UI", JPEG_BASELINE)
    length = _element(0x0002, 0x0000, "UL", struct.pack("<I", len(meta)))
    path.write_bytes(bytes(128) + b"DICM" + length + meta + about + _pixels(frames))


def _tile(pixels: np.ndarray) -> np.ndarray:
    missing = [(0, TILE_PX - side) for side in pixels.shape[:2]]
    return np.ascontiguousarray(np.pad(pixels, (*missing, (0, 0)), constant_values=255))


def _pixels(frames: list[bytes]) -> bytes:
    items = [frame + bytes(len(frame) % 2) for frame in frames]
    offsets = np.cumsum([0, *(8 + len(item) for item in items[:-1])]).astype("<u4").tobytes()
    stored = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in (offsets, *items))
    head = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, UNKNOWN_LENGTH)
    return head + stored + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def _element(group: int, number: int, kind: str, value: bytes) -> bytes:
    head = struct.pack("<HH", group, number) + kind.encode()
    if kind in ("OB", "SQ"):
        return head + struct.pack("<HI", 0, len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def _item(content: bytes) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


def _text(group: int, number: int, kind: str, text: str) -> bytes:
    value = text.encode()
    return _element(group, number, kind, value + (b"\0" if kind == "UI" else b" ") * (len(value) % 2))


def _short(group: int, number: int, value: int) -> bytes:
    return _element(group, number, "US", struct.pack("<H", value))
