"""Where spots lie: pure functions of a slide's size, its mpp, and the pitch in micrometres."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from stpredict.arrays import Float, Int
from stpredict.errors import SpotsError, UsageError, counted
from stpredict.slides.slide import Bounds, Mpp
from stpredict.storage.text_tables import read_lines, read_numbers

MAX_SPOTS = 50_000_000
#: No slide has longer sides, in pixels.
MAX_SIDE = 10_000_000
Layout = Literal["square", "hex", "given"]


@dataclass(frozen=True)
class Spots:
    """Spots in row-major order: level-0 `centres` (n x 2, x and y) and their `row` and `column` in the lattice."""

    centres: Float
    row: Int
    column: Int
    layout: Layout
    pitch_um: float

    def __len__(self) -> int:
        return len(self.centres)

    def take(self, index: Int) -> Spots:
        return Spots(self.centres[index], self.row[index], self.column[index], self.layout, self.pitch_um)


def lattice(bounds: Bounds, mpp: Mpp, pitch_um: float, layout: Literal["square", "hex"] = "square") -> Spots:
    """All spots of a lattice whose centres lie within `bounds`.

    The first centre lies half a pitch from the bounds' origin. Rows of a hexagonal lattice are sqrt(3)/2 of a pitch
    apart and odd ones are shifted by half a pitch. The pitch is never rounded to pixels.
    Raises SpotsError for a pitch that is not larger than a pixel, or gives too many spots.
    """
    if not (max(mpp) < pitch_um < math.inf):
        raise SpotsError(
            f"--pitch {pitch_um:g}: must be finite and larger than a pixel of the slide ({max(mpp):.3g} um)."
        )
    (step_x, step_y), first_y = steps(mpp, pitch_um, layout)
    n_rows, n_columns = lattice_shape(bounds, mpp, pitch_um, layout)
    if n_rows * n_columns > MAX_SPOTS:
        raise SpotsError(f"--pitch {pitch_um:g}: makes {n_rows * n_columns} spots, more than {MAX_SPOTS}.")
    row, column = (axis.ravel() for axis in np.mgrid[0:n_rows, 0:n_columns])
    shift = (row % 2) / 2 if layout == "hex" else 0.0
    x = (column + 0.5 + shift) * step_x
    y = first_y + row * step_y
    inside = (x < bounds.width) & (y < bounds.height)
    centres = np.column_stack([x + bounds.x, y + bounds.y])[inside]
    return Spots(centres, row[inside].astype(np.int64), column[inside].astype(np.int64), layout, pitch_um)


def steps(mpp: Mpp, pitch_um: float, layout: Layout) -> tuple[tuple[float, float], float]:
    """Level-0 pixels between columns and between rows, and from the bounds' origin to the first row."""
    step_y = pitch_um / mpp.y * (np.sqrt(3) / 2 if layout == "hex" else 1.0)
    return (pitch_um / mpp.x, float(step_y)), pitch_um / mpp.y / 2


def lattice_shape(bounds: Bounds, mpp: Mpp, pitch_um: float, layout: Layout) -> tuple[int, int]:
    """Rows and columns of the lattice that covers `bounds`."""
    (step_x, step_y), first_y = steps(mpp, pitch_um, layout)
    return max(0, int(np.ceil((bounds.height - first_y) / step_y))), max(0, int(np.ceil(bounds.width / step_x - 0.5)))


def given_spots(path: Path, dimensions: tuple[int, int], pitch_um: float) -> Spots:
    """Spots at the level-0 pixel positions of a table with columns `x` and `y`, in the file's order.

    Raises UsageError if the file cannot be read as such a table, SpotsError if a position lies outside the slide.
    """
    lines, texts = [], []
    for line in read_lines(path, ("x", "y"), "needs a header line with the columns x and y (level-0 pixels)"):
        lines.append(line.number)
        texts += [line.cells.get("x", ""), line.cells.get("y", "")]
    if not lines:
        raise UsageError(f"{path}: holds no spots.")
    try:
        centres = np.array(read_numbers(texts)).reshape(-1, 2)
    except ValueError as error:
        reason, place = error.args
        raise UsageError(f"{path}, line {lines[place // 2]}: x and y {reason}.") from error
    outside = ~np.all((centres >= 0) & (centres < dimensions), axis=1)  # NaN counts as outside
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        raise SpotsError(
            f"{path}: {outside.sum()} of {counted(len(centres), 'spot')} outside the slide "
            f"({dimensions[0]} x {dimensions[1]} pixels), the first in line {lines[first]}."
        )
    number = np.arange(len(centres), dtype=np.int64)
    return Spots(centres, np.zeros_like(number), number, "given", pitch_um)
