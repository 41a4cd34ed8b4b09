"""Colour maps, as tables of 256 colours."""

from __future__ import annotations

from functools import cache

import cmap
import numpy as np

from stpredict.arrays import UInt8

#: Sequential maps of even steps that people with colour-blindness can read.
COLOUR_MAPS = ("viridis", "cividis", "magma", "inferno", "plasma", "mako", "rocket", "batlow")


@cache
def lookup_table(colour_map: str) -> UInt8:
    """256 x 3 RGB."""
    return np.asarray(np.round(cmap.Colormap(colour_map).lut(256)[:, :3] * 255), dtype=np.uint8)
