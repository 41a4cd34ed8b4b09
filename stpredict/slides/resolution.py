"""What a file states of its micrometres per pixel, and which statement counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from stpredict.slides.lengths import micrometres

#: Native values outside this range are resolution tags of a camera or a printer, not of a microscope.
PLAUSIBLE_MPP = (0.05, 5.0)
#: Statements that differ by more than this contradict each other.
MAX_DISAGREEMENT = 0.05


class Mpp(NamedTuple):
    """Micrometres per level-0 pixel along x and y."""

    x: float
    y: float

    @property
    def plausible(self) -> bool:
        """Whether it can be a microscope's."""
        return all(PLAUSIBLE_MPP[0] <= side <= PLAUSIBLE_MPP[1] for side in self)


class Statement(NamedTuple):
    """The mpp that a part of a file states: `by` names it."""

    by: str
    mpp: Mpp


@dataclass(frozen=True)
class Resolution:
    """All statements of a file, the weightiest first: what its maker wrote for microscopes, then what any image has."""

    statements: tuple[Statement, ...] = ()

    @property
    def used(self) -> Statement | None:
        """The first statement that is plausible; where none is, the first; None where the file states nothing."""
        return next((one for one in self.statements if one.mpp.plausible), next(iter(self.statements), None))

    @property
    def disagreement(self) -> str | None:
        """A clause that names the statement used, and one that differs from it by over 5 %.

        An implausible one, as 72 dpi, says nothing of a microscope, and differs only where it would have come first.
        """
        used = self.used
        if used is None or not used.mpp.plausible:
            return None
        for index, other in enumerate(self.statements):
            counts = other.mpp.plausible or index < self.statements.index(used)
            if counts and max(abs(a / b - 1) for a, b in zip(other.mpp, used.mpp, strict=True)) > MAX_DISAGREEMENT:
                return (
                    f"it states {in_words(used.mpp)} um per pixel in its {used.by}, which is used, "
                    f"but {in_words(other.mpp)} in its {other.by}; --mpp decides otherwise"
                )
        return None


def in_words(mpp: Mpp) -> str:
    """Both sides, or one where they are the same in four digits."""
    return " x ".join(dict.fromkeys(f"{side:.4g}" for side in mpp))


def stated(by: str, x: float | None, y: float | None) -> list[Statement]:
    """The statement that pixels are so many um wide and high, or none where that is no positive length."""
    if x is None or y is None or not all(math.isfinite(side) and side > 0 for side in (x, y)):
        return []
    return [Statement(by, Mpp(float(x), float(y)))]


def stated_per_unit(by: str, x: float | None, y: float | None, *units: str) -> list[Statement]:
    """The statement that so many pixels make a unit; the last of `units` is that along y."""
    um = [micrometres(units[0]), micrometres(units[-1])]
    sides = [
        unit / count if unit and count and math.isfinite(count) else None
        for unit, count in zip(um, (x, y), strict=True)
    ]
    return stated(by, *sides)
