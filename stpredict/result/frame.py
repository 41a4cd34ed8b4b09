"""The rectangle of a slide that a picture shows, and where the picture's pixels lie on level 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from stpredict.arrays import Float
from stpredict.errors import UsageError
from stpredict.result.file import Canvas
from stpredict.slides.slide import Mpp

Origin = Literal["slide", "bounds"]
ORIGINS: tuple[Origin, ...] = ("slide", "bounds")


@dataclass(frozen=True)
class Frame:
    """A rectangle of level 0, in level-0 pixels. A pixel of the picture is `downsample` of them wide."""

    left: int
    top: int
    width: int
    height: int
    mpp: Mpp
    downsample: float = 1.0

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture."""
        return int(np.ceil(self.width / self.downsample)), int(np.ceil(self.height / self.downsample))

    @property
    def pixel_mpp(self) -> Mpp:
        return Mpp(self.mpp.x * self.downsample, self.mpp.y * self.downsample)

    def columns(self, first: int, count: int, shrink: float = 1.0) -> Float:
        """Level-0 x of the centres of `count` pixels from `first` on, in the picture reduced `shrink` times."""
        centres: Float = (
            self.left + (np.arange(first, first + count, dtype=np.float64) + 0.5) * self.downsample * shrink
        )
        return centres

    def rows(self, first: int, count: int, shrink: float = 1.0) -> Float:
        """Level-0 y, as `columns` for x."""
        centres: Float = self.top + (np.arange(first, first + count, dtype=np.float64) + 0.5) * self.downsample * shrink
        return centres


def make_frame(canvas: Canvas, origin: Origin = "slide", downsample: float = 1.0) -> Frame:
    """The whole slide, or the rectangle that was scanned. Raises UsageError for a `downsample` below 1 or too large."""
    x, y, width, height = canvas.bounds if origin == "bounds" else (0, 0, *canvas.dimensions)
    if not 1 <= downsample <= max(width, height):
        raise UsageError(f"--downsample {downsample:g}: must be at least 1 and leave something of the slide.")
    return Frame(x, y, width, height, canvas.mpp, downsample)
