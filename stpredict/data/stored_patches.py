"""Patches that others cut, one per spot, for a section whose slide is not at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from stpredict.arrays import Int, UInt8
from stpredict.data.stored_rows import StoredRows, stored_rows

#: The data set of a file of patches that holds them.
IMAGES = "img"


@dataclass(frozen=True)
class StoredPatches:
    """Patches of P x P pixels at `mpp` um, in a file's data set `img`; `rows` are the rows of the section's spots."""

    path: Path
    patch_px: int
    mpp: float
    rows: tuple[int, ...]

    @cached_property
    def _rows(self) -> Int:
        return np.array(self.rows, dtype=np.int64)

    @cached_property
    def _stored(self) -> StoredRows:
        return stored_rows(self.path, IMAGES)

    def read(self, spots: Int | Sequence[int]) -> UInt8:
        """The patches of some of the section's spots, n x P x P x 3."""
        return self._stored.read(self._rows[np.asarray(spots, dtype=np.int64)])
