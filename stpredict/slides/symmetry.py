"""The eight flips and rotations of a square."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from stpredict.arrays import UInt8

SYMMETRIES = 8
#: The turn from which each turn is made: by turning it upside down, which costs almost nothing, or by transposing it.
MADE_FROM = {1: 5, 2: 4, 3: 6, 4: 1, 5: 0, 6: 0, 7: 3}
UPSIDE_DOWN = {1, 2, 6, 7}


def turn(patches: UInt8, code: int) -> UInt8:
    """Patches (... x P x P x 3) in one of their flips and rotations, 0 to 7; 0 leaves them as they are."""
    mirrored = patches[..., ::-1, :] if code >= 4 else patches
    return np.ascontiguousarray(np.rot90(mirrored, code % 4, axes=(-3, -2)))


def turn_into(room: UInt8, patches: UInt8, code: int) -> None:
    """As `turn`, but written into `room`, an array of their shape; several times as fast."""
    turned = np.rot90(patches[..., ::-1, :] if code >= 4 else patches, code % 4, axes=(-3, -2))
    if code in (0, 6):  # these move whole rows
        room[...] = turned
        return
    for colour in range(3):  # faster than three bytes at a time
        room[..., colour] = turned[..., colour]


def all_turns(patches: UInt8, room: Callable[[], UInt8]) -> Iterator[UInt8]:
    """The patches as they are, then their turns 1 to 7, each written into an array from `room`."""
    made = {0: patches}

    def write(code: int) -> UInt8:
        if code not in made:
            source = write(MADE_FROM[code])
            made[code] = room()
            if code in UPSIDE_DOWN:
                made[code][:] = source[..., ::-1, :, :]
            else:
                for colour in range(3):  # four times as fast as three bytes at a time
                    made[code][..., colour] = np.swapaxes(source[..., colour], -2, -1)
        return made[code]

    return map(write, range(SYMMETRIES))
