"""Spots as QuPath detections, in GeoJSON, written one by one."""

from __future__ import annotations

import gzip
import io
import json
import math
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from stpredict.arrays import Float
from stpredict.result.file import Result, spot_names
from stpredict.result.frame import Frame
from stpredict.storage.files import atomic_path

#: Gives the same spot of the same slide the same identifier in every run.
NAMESPACE = uuid.UUID("7b9d1d2e-0a0e-5c55-9a5e-2f6f6e0f5d11")
CORNERS = 32
DECIMALS = 4


def write_spots(path: Path, frame: Frame, result: Result, genes: Sequence[int]) -> None:
    """Write a FeatureCollection of detections with measurements of quality and of each of the `genes`, by index.

    Spots are squares of the pitch, hexagons, or circles around given positions, in pixels of the frame.
    """
    outline, ellipse = _outline(result)
    centres = result.spots.centres - (frame.left, frame.top)
    key = f"{result.provenance['slide']['fingerprint']} {result.spots.layout} {result.spots.pitch_um!r}"
    measured = [result.genes[index].name for index in genes]
    rows = (row for block in result.blocks(genes) for row in block.tolist())
    with atomic_path(path) as temporary, _text(temporary) as file:
        file.write('{"type":"FeatureCollection","features":[')
        for i, (name, row) in enumerate(zip(spot_names(result.name, result.spots), rows, strict=True)):
            feature = {
                "type": "Feature",
                "id": str(uuid.uuid5(NAMESPACE, f"{key} {name} {result.spots.centres[i].tolist()}")),
                "geometry": _polygon(centres[i] + outline, ellipse),
                "properties": {
                    "objectType": "detection",
                    "name": name,
                    "isLocked": True,
                    # JSON has no NaN, so missing values are left out, which QuPath understands.
                    "measurements": {
                        what: round(value, DECIMALS)
                        for what, value in (*result.quality_of(i).items(), *zip(measured, row, strict=True))
                        if math.isfinite(value)
                    },
                },
            }
            file.write(("," if i else "") + "\n" + json.dumps(feature, separators=(",", ":")))
        file.write("\n]}\n")


def _outline(result: Result) -> tuple[Float, bool]:
    """Corners of a spot around its centre, in level-0 pixels, and whether they approximate an ellipse."""
    layout, pitch_um = result.spots.layout, result.spots.pitch_um
    if layout == "square":
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (pitch_um / 2)
    elif layout == "hex":
        angle = np.deg2rad(30 + 60 * np.arange(6))
        corners = np.column_stack([np.cos(angle), np.sin(angle)]) * (pitch_um / math.sqrt(3))
    else:
        angle = 2 * np.pi * np.arange(CORNERS) / CORNERS
        corners = np.column_stack([np.cos(angle), np.sin(angle)]) * (result.canvas.spot_diameter_um / 2)
    return corners / result.canvas.mpp, layout == "given"


def _polygon(corners: Float, ellipse: bool) -> dict[str, Any]:
    ring = [[round(float(x), 2), round(float(y), 2)] for x, y in corners]
    polygon: dict[str, Any] = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
    return polygon | ({"isEllipse": True} if ellipse else {})


@contextmanager
def _text(path: Path) -> Iterator[IO[str]]:
    """A text file, compressed if its name ends in .gz. The same content always gives the same bytes."""
    if path.suffix != ".gz":
        with path.open("w", encoding="utf-8") as file:
            yield file
        return
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8") as file,
    ):
        yield file
