"""From expression to colours."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import cmap
import numpy as np

from stpredict.arrays import Float32, UInt8

COLOUR_MAP = "viridis"


@dataclass(frozen=True)
class ColourScale:
    """How one gene is coloured: `low` and below is the map's first colour, `high` and above its last."""

    gene: str
    low: float
    high: float
    unit: str
    range_from: str
    colour_map: str = COLOUR_MAP

    def colours(self, values: Float32) -> UInt8:
        """RGB, n x 3, of n values."""
        position = (values - self.low) / (self.high - self.low)
        index = np.clip(np.nan_to_num(position) * 255, 0, 255).round().astype(np.uint8)
        colours: UInt8 = lookup_table(self.colour_map)[index]
        return colours

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def lookup_table(colour_map: str) -> UInt8:
    """256 x 3 RGB."""
    return np.asarray(np.round(cmap.Colormap(colour_map).lut(256)[:, :3] * 255), dtype=np.uint8)
