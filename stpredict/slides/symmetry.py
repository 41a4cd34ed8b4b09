"""The eight flips and rotations of a square."""

from __future__ import annotations

import numpy as np

from stpredict.arrays import UInt8

SYMMETRIES = 8


def turn(patches: UInt8, code: int) -> UInt8:
    """Patches (... x P x P x 3) in one of their flips and rotations, 0 to 7; 0 is as they are."""
    mirrored = patches[..., ::-1, :] if code >= 4 else patches
    return np.ascontiguousarray(np.rot90(mirrored, code % 4, axes=(-3, -2)))
