"""Slides without counts, whose tissue teaches: from which of them a network may learn.

They stand beside the sections, and have unlabelled places alone. One whose patient is held out does not teach.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stpredict.arrays import Int
from stpredict.data.tiles import Measured, Tiles


def tissue_beside(found: Tiles | Measured, sections: Sequence[str]) -> list[str]:
    """The slides without counts that may teach a network of these sections: those of no patient with other sections."""
    held_out = set(found.kin[~np.isin(found.section, sections)].tolist())
    return [name for name, patient in tissue_kin(found).items() if patient not in held_out]


def tissue_kin(found: Tiles | Measured) -> dict[str, str]:
    """The patient of each slide without counts, under the label that `kin` has for the patient of a section."""
    label = dict(zip(found.patient.tolist(), found.kin.tolist(), strict=True))
    return {name: label.get(patient, patient) for name, patient in found.tissue.items()}


def places_of(tiles: Tiles, sections: Sequence[str]) -> Int:
    """The unlabelled places from which a network of these sections learns: theirs, and those of tissue beside them."""
    return np.flatnonzero(np.isin(tiles.unlabelled_section, [*sections, *tissue_beside(tiles, sections)]))
