"""Patches that others cut, one per spot, for a section whose slide is not at hand."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stpredict.arrays import Int, UInt8
from stpredict.data.hdf5 import opened_hdf5

PATCHES_AT_A_TIME = 64


@dataclass(frozen=True)
class StoredPatches:
    """Patches of P x P pixels at `mpp` um, in a file's data set `img`; `rows` are the rows of the section's spots."""

    path: Path
    patch_px: int
    mpp: float
    rows: tuple[int, ...]

    def read(self) -> Generator[tuple[Int, list[UInt8]], None, None]:
        """Yield (indices into the spots, P x P x 3 each), in the order of the file."""
        with opened_hdf5(self.path) as file:
            order = np.argsort(self.rows)
            for start in range(0, len(order), PATCHES_AT_A_TIME):
                spots = order[start : start + PATCHES_AT_A_TIME]
                yield spots, [file["img"][self.rows[spot]] for spot in spots]
