"""A damaged slide that ends the process that reads it, by a fault of OpenSlide 4.0.1 or its libdicom."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from dicom_slide import write_dicom_slide

OFFSETS = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF) + struct.pack("<HH", 0xFFFE, 0xE000)


def write_killer_slide(path: Path, image: np.ndarray) -> None:
    """A DICOM slide whose middle frame is said to lie far beyond the end of the file."""
    write_dicom_slide(path, image, (0.5, 0.5))
    content = bytearray(path.read_bytes())
    start = content.index(OFFSETS) + len(OFFSETS)
    (length,) = struct.unpack_from("<I", content, start)
    struct.pack_into("<I", content, start + 4 + length // 8 * 4, 0xBB00E05A)
    path.write_bytes(content)
