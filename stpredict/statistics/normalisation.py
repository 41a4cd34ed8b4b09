"""The unit of expression, which targets, cards, results and scores share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stpredict.arrays import Float
from stpredict.errors import UsageError

EXPECTED = " of the expected share"


@dataclass(frozen=True)
class Normalisation:
    """ln(1 + `per` x share). The share is a gene's part in all counts of a spot, or in those of the panel alone."""

    unit: str
    per: float = 1e6
    of_panel: bool = False

    def depth(self, panel_counts: Float, total: Float) -> Float:
        """The denominator of shares, per spot: its `total` count, or the sum of the panel's counts (spots x genes).

        The sum takes genes that were measured. If sections differ in these, their shares are not of the same whole.
        """
        return np.nansum(panel_counts, axis=1) if self.of_panel else total


NORMALISATIONS = {
    "total": Normalisation("ln(1 + CPM)"),
    "panel": Normalisation("ln(1 + CPM of the panel)", of_panel=True),  # as the released code of M2ORT has it
    "panel-1e4": Normalisation("ln(1 + counts per 10,000 of the panel)", per=1e4, of_panel=True),  # as HisToGene has it
    "1e4": Normalisation("ln(1 + counts per 10,000)", per=1e4),  # as scanpy has it by default
}


def check_normalisation(name: str) -> None:
    """Raises UsageError for an unknown name."""
    if name not in NORMALISATIONS:
        raise UsageError(f"--normalisation {name}: choose {', '.join(NORMALISATIONS)}.")


def find_normalisation(expression_unit: str) -> Normalisation | None:
    """The normalisation of a card's `expression_unit`; None for a unit of another kind."""
    return next((n for n in NORMALISATIONS.values() if n.unit == expression_unit.removesuffix(EXPECTED)), None)
