"""The statements of a file about its micrometres per pixel, and which of them counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from stpredict.slides.lengths import micrometres

#: Values outside this range come from cameras or printers, not from microscopes.
PLAUSIBLE_MPP = (0.05, 5.0)
#: Statements that differ by more than this contradict each other.
MAX_DISAGREEMENT = 0.05


class Mpp(NamedTuple):
    """Micrometres per level-0 pixel along x and y."""

    x: float
    y: float

    @property
    def plausible(self) -> bool:
        """Whether a microscope can have this resolution."""
        return all(PLAUSIBLE_MPP[0] <= side <= PLAUSIBLE_MPP[1] for side in self)


class Statement(NamedTuple):
    """The mpp that a part of a file states; `by` names that part."""

    by: str
    mpp: Mpp


@dataclass(frozen=True)
class Resolution:
    """All statements of a file, the weightiest first: those that only microscopes write, then those of any image."""

    statements: tuple[Statement, ...] = ()

    @property
    def used(self) -> Statement | None:
        """The first plausible statement; if none is plausible, the first; None if the file states nothing."""
        return next((one for one in self.statements if one.mpp.plausible), next(iter(self.statements), None))

    @property
    def disagreement(self) -> str | None:
        """A clause that names the statement used, and another one that differs from it by over 5 %; None if none does.

        An implausible statement, such as 72 dpi, is not a microscope's. It counts only if it is the weightier one.
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
    """Both sides, or one number if they agree in four digits."""
    return " x ".join(dict.fromkeys(f"{side:.4g}" for side in mpp))


def stated(by: str, x: float | None, y: float | None) -> list[Statement]:
    """The statement that pixels are x um wide and y um high, or no statement if these are no positive lengths."""
    if x is None or y is None or not all(math.isfinite(side) and side > 0 for side in (x, y)):
        return []
    return [Statement(by, Mpp(float(x), float(y)))]


def stated_per_unit(by: str, x: float | None, y: float | None, *units: str) -> list[Statement]:
    """The statement that there are x and y pixels per unit; the last of `units` applies to y."""
    um = [micrometres(units[0]), micrometres(units[-1])]
    sides = [
        unit / count if unit and count and math.isfinite(count) else None
        for unit, count in zip(um, (x, y), strict=True)
    ]
    return stated(by, *sides)
