"""Slides of other formats, made from the example slide's pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

LEICA = """<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">
<collection name="c" uuid="u" sizeX="{cw}" sizeY="{ch}">{images}</collection></scn>"""
LEICA_IMAGE = """<image name="{name}" uuid="{name}"><creationDate>2020</creationDate><device model="x" version="1"/>
<pixels sizeX="{w}" sizeY="{h}"><dimension sizeX="{w}" sizeY="{h}" r="0" ifd="{ifd}"/></pixels>
<view sizeX="{vw}" sizeY="{vh}" offsetX="{x}" offsetY="{y}" spacingZ="0"/><scanSettings><objectiveSettings>
<objective>{objective}</objective></objectiveSettings><illuminationSettings><numericalAperture>0.4</numericalAperture>
<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>"""


def leica_with_bounds(path: Path, image: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> None:
    """A Leica SCN of `size` pixels at 0.5 um whose scanned `image` begins at `corner`; the rest is transparent."""
    nm = 500
    height, width = image.shape[:2]
    macro = np.full((64, 64, 3), 255, np.uint8)
    images = LEICA_IMAGE.format(
        name="macro", w=64, h=64, ifd=1, vw=size[0] * nm, vh=size[1] * nm, x=0, y=0, objective=1
    ) + LEICA_IMAGE.format(
        name="scan", w=width, h=height, ifd=0, vw=width * nm, vh=height * nm,
        x=corner[0] * nm, y=corner[1] * nm, objective=20,
    )  # fmt: skip
    xml = LEICA.format(cw=size[0] * nm, ch=size[1] * nm, images=images)
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for pixels, text in ((image, xml), (macro, None)):
            tiff.write(
                pixels, tile=(256, 256), compression="jpeg", photometric="rgb", description=text, metadata=None,
                resolution=(20_000, 20_000), resolutionunit="CENTIMETER",
            )  # fmt: skip


def aperio_jpeg_2000(path: Path, image: np.ndarray, mpp: str = "0.4990") -> None:
    """An Aperio SVS with JPEG 2000 tiles."""
    text = f"Aperio Image Library v1\r\nJ2K|AppMag = 20|MPP = {mpp}"
    tifffile.imwrite(
        path, image, tile=(256, 256), compression=33005, photometric="rgb", description=text, metadata=None
    )


def tiff_pyramid(path: Path, image: np.ndarray, mpp: tuple[float, float] | None, levels: int = 3) -> None:
    """A plain tiled pyramidal TIFF with, or without, its resolution."""
    tags = {"resolution": (1e4 / mpp[0], 1e4 / mpp[1]), "resolutionunit": "CENTIMETER"} if mpp else {}
    with tifffile.TiffWriter(path) as tiff:
        for level in range(levels):
            pixels = np.ascontiguousarray(image[:: 2**level, :: 2**level])
            tiff.write(
                pixels, tile=(256, 256), compression="deflate", photometric="rgb", metadata=None,
                subfiletype=1 if level else 0, **tags,
            )  # fmt: skip
