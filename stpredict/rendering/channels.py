"""Genes as channels of float32 OME-TIFFs, for QuPath and other viewers of multiplexed images."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stpredict.arrays import Float32
from stpredict.rendering.cells import Cells
from stpredict.rendering.tiff import Paint, write_planes
from stpredict.result.frame import Frame

#: More channels would slow viewers down, so further genes go into further files.
GENES_PER_FILE = 16
#: Colours that stay apart for most people; QuPath adds the channels up.
CHANNEL_COLOURS = (
    0xE69F00, 0x56B4E9, 0x009E73, 0xF0E442, 0x0072B2, 0xD55E00, 0xCC79A7, 0xFFFFFF,
    0x44AA99, 0x882255, 0x999933, 0x332288, 0xDDCC77, 0xAA4499, 0x88CCEE, 0xCC6677,
)  # fmt: skip
#: Characters that XML 1.0 does not allow, even escaped.
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_channels(
    path: Path, frame: Frame, cells: Cells, name: str, genes: Sequence[str], values: Sequence[Float32]
) -> None:
    """One channel per gene. A pixel has the value of its spot; 0 without a spot, or if its patch was unreadable."""
    planes = [_plane(cells, expression) for expression in values]
    write_planes(path, frame, planes, ome_metadata(frame, name, genes))


def ome_metadata(frame: Frame, name: str, genes: Sequence[str]) -> dict[str, Any]:
    """Names, colours and pixel size, as tifffile writes them into OME-XML."""
    colours = [CHANNEL_COLOURS[i % len(CHANNEL_COLOURS)] for i in range(len(genes))]
    return {
        "axes": "CYX",
        "UUID": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{name} {genes} {frame}")),  # default: time and network address
        "Name": NOT_XML.sub("\ufffd", name),
        "PhysicalSizeX": frame.pixel_mpp.x,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": frame.pixel_mpp.y,
        "PhysicalSizeYUnit": "µm",
        "Channel": {
            "Name": [NOT_XML.sub("\ufffd", gene) for gene in genes],
            "Color": [int(np.uint32(colour << 8 | 0xFF).astype(np.int32)) for colour in colours],  # RGBA, signed
        },
    }


def _plane(cells: Cells, expression: Float32) -> Paint:
    table = np.append(np.nan_to_num(expression), 0).astype(np.float32)[:, None]
    return lambda x, y: cells.paint(table, x, y)[..., 0]
