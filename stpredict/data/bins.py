"""Pool the bins of Visium HD to larger squares: a bin has few counts, and a patch is larger than a bin."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csr_array

from stpredict.arrays import Float
from stpredict.data.counts import in_memory
from stpredict.data.scale import pixels_per_unit
from stpredict.data.section import Section
from stpredict.errors import UsageError

#: By default, smaller bins are pooled to squares of this size. Space Ranger pools to it, too.
DEFAULT_UM = 8.0
SAME = 0.01


@dataclass(frozen=True)
class Bins:
    """The side of the squares, um, to which bins are pooled: as requested, or as a model's spots if that fits."""

    asked_um: float | None = None
    like_um: float | None = None

    def side_um(self, own_um: float, section: str) -> float:
        """The side to which bins of `own_um` are pooled. Raises UsageError if it is no multiple of `own_um`."""
        if self.asked_um is not None:
            if not math.isfinite(self.asked_um) or not _factor(self.asked_um, own_um):
                raise UsageError(
                    f"--bin-um {self.asked_um:g}: bins of {own_um:g} um, as of section {section}, pool to multiples of "
                    f"that, as {2 * own_um:g}."
                )
            return self.asked_um
        if self.like_um and _factor(self.like_um, own_um):
            return self.like_um
        return own_um if own_um >= DEFAULT_UM * (1 - SAME) else own_um * math.ceil(DEFAULT_UM / own_um - SAME)


#: No size is requested.
ANY_BINS = Bins()


def _factor(side_um: float, own_um: float) -> int:
    """How many bins make the side of a square; 0 if this is no whole number."""
    factor = round(side_um / own_um)
    return factor if factor and abs(side_um / own_um / factor - 1) < SAME else 0


def demand_no_bins(bins: Bins, sections: list[Section]) -> list[Section]:
    """The sections, which have spots rather than bins. Raises UsageError if squares were requested."""
    if bins.asked_um is not None:
        raise UsageError(f"--bin-um: pools the bins of Visium HD, and section {sections[0].name} has spots.")
    return sections


def pooled(section: Section, units: Float, own_um: float, bins: Bins) -> Section:
    """A section of bins of `own_um`, with `units` (n x 2, column and row), pooled to the squares that `bins` says.

    A square sums the counts of its bins. Its centre is that of the whole square, whichever of its bins were measured.
    Bins without a position or off the tissue are left out. Raises UsageError as `Bins.side_um` does, and DatasetError.
    """
    side_um = bins.side_um(own_um, section.name)
    factor = _factor(side_um, own_um)
    if factor == 1:
        return section
    cells, square = np.unique(np.floor(units / factor).astype(np.int64), axis=0, return_inverse=True)
    square = square.ravel()
    n_bins = len(square)
    member = csr_array((np.ones(n_bins, np.float32), (square, np.arange(n_bins))), (len(cells), n_bins))
    matrix = pixels_per_unit(units, section.centres, section.name)
    middle = cells * factor + (factor - 1) / 2
    centres = (middle - units.mean(axis=0)) @ matrix.T + section.centres.mean(axis=0)
    why = "" if bins.asked_um else "; --bin-um asks for another size"
    if bins.like_um and side_um == bins.like_um:
        why = ", as large as the model's spots"
    return replace(
        section,
        spot_names=[f"s_{round(side_um):03d}um_{row:05d}_{column:05d}-1" for column, row in cells.tolist()],
        centres=centres,
        counts=in_memory(member @ section.counts.rows()),
        spot_diameter_um=side_um,
        pitch_um=side_um,
        notes=(
            *section.notes,
            f"{n_bins} bins of {own_um:g} um are pooled to {len(cells)} squares of {side_um:g} um{why}",
        ),
    )
