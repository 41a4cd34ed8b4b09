"""Colour and texture of a data set's spots, for the baselines: of all spots, or of as many as a baseline needs."""

from __future__ import annotations

import numpy as np

from stpredict.arrays import Float, Int
from stpredict.data.tiles import Tiles
from stpredict.statistics.colour_texture import N_FEATURES, colour_texture_features
from stpredict.statistics.sampling import draw_evenly

#: Most spots that are described: of 1,000 sections 50 each, on which ridge and nearest neighbours are scored.
MOST_DESCRIBED = 50_000
#: Most of them that baselines learn from: neither ridge of 52 features nor nearest neighbours gain much from more.
MOST_TAUGHT = 20_000


def describe_drawn(tiles: Tiles, rows: Int, threads: int) -> Float:
    """Colour and texture of spots `rows`, n x 52. Of very many, equally many per section; the other rows are NaN."""
    drawn = draw_evenly(tiles.section[rows], MOST_DESCRIBED)
    described = np.full((len(rows), N_FEATURES), np.nan)
    described[drawn] = colour_texture_features((tiles.read_patch(i) for i in rows[drawn]), threads)
    return described


def is_described(features: Float) -> Int:
    """Indices of the rows that are known."""
    return np.flatnonzero(np.isfinite(features).all(axis=1))
