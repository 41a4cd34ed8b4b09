"""Large slides for measuring: JPEG tiles of real tissue, 12 to 13 KB per 256 x 256 pixels, again and again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import simplejpeg
import tifffile
from PIL import Image

Image.MAX_IMAGE_PIXELS = None
SECTION = Path(__file__).parents[2].parent / "shared" / "data" / "her2st" / "C4.jpg"
TILE_PX = 256
#: Side of the square of tissue that is repeated; its mirror images make it seamless.
PERIOD_PX = 8192
TILE_BYTES = (12_000, 13_000)


def write_slide(
    path: Path, size: tuple[int, int], mpp: float, tissue: float = 1.0, levels: tuple[int, ...] = (1, 4, 16)
) -> None:
    """A tiled pyramidal TIFF of `size` pixels, of which about the share `tissue`, in the middle, is not glass."""
    square = _tissue_square()
    quality = _quality(square)
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for downsample in levels:
            reduced = np.asarray(Image.fromarray(square).reduce(downsample)) if downsample > 1 else square
            width, height = (-(-side // downsample) for side in size)
            tiff.write(
                _tiles(reduced, (width, height), size, tissue, quality), shape=(height, width, 3),
                dtype=np.uint8, tile=(TILE_PX, TILE_PX), compression="jpeg", photometric="ycbcr", subsampling=(2, 2),
                metadata=None, resolution=(1e4 * downsample**-1 / mpp,) * 2, resolutionunit="CENTIMETER",
                subfiletype=int(downsample > 1),
            )  # fmt: skip


def _tissue_square() -> np.ndarray:
    """PERIOD_PX x PERIOD_PX of tissue, from the middle of a section."""
    side = PERIOD_PX // 2
    image = Image.open(SECTION).convert("RGB")
    left, top = ((whole - side) // 2 for whole in image.size)
    corner = np.asarray(image.crop((left, top, left + side, top + side)))
    half = np.concatenate([corner, corner[:, ::-1]], axis=1)
    return np.concatenate([half, half[::-1]])


def _encode(tile: np.ndarray, quality: int) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(tile), quality, "RGB", "420")


def _quality(square: np.ndarray) -> int:
    """The JPEG quality at which tiles have the size of a scanner's."""
    tiles = [square[y : y + TILE_PX, x : x + TILE_PX] for y in range(0, 4096, 512) for x in range(0, 4096, 512)]
    for quality in range(30, 100):
        if np.mean([len(_encode(tile, quality)) for tile in tiles]) >= sum(TILE_BYTES) / 2:
            return quality
    raise ValueError("the section has too little texture")


def _tiles(
    square: np.ndarray, size: tuple[int, int], full: tuple[int, int], tissue: float, quality: int
) -> Iterator[bytes]:
    """Encoded tiles of one level, row by row. Squares of tissue lie on glass, never partly."""
    period = len(square) // TILE_PX
    stored = [
        [_encode(square[y : y + TILE_PX, x : x + TILE_PX], quality) for x in range(0, len(square), TILE_PX)]
        for y in range(0, len(square), TILE_PX)
    ]
    glass = _encode(np.full((TILE_PX, TILE_PX, 3), 244, np.uint8), quality)
    columns, rows = (-(-side // TILE_PX) for side in size)
    middle = [(side / PERIOD_PX) / 2 for side in full]
    reach = [np.sqrt(tissue) * half for half in middle]
    for row in range(rows):
        for column in range(columns):
            at = [(index // period + 0.5) for index in (column, row)]
            inside = all(abs(x - m) <= r + 0.01 for x, m, r in zip(at, middle, reach, strict=True))
            yield stored[row % period][column % period] if inside or tissue >= 1 else glass
