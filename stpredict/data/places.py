"""Draw further places on a section's tissue, where nothing was measured."""

from __future__ import annotations

import math

import numpy as np

from stpredict.arrays import Float
from stpredict.data.section import Section
from stpredict.errors import DatasetError
from stpredict.slides.lattice import MAX_SPOTS, lattice, lattice_shape
from stpredict.slides.slide import Slide
from stpredict.slides.tissue import Tissue, find_tissue

#: The least fraction of tissue at the place of an unlabelled patch.
UNLABELLED_MIN_TISSUE = 0.5


def tissue_places(slide: Slide, section: Section, n: int, rng: np.random.Generator) -> Float:
    """As `places_on` the tissue that is found on the slide."""
    return places_on(slide, find_tissue(slide, section.mpp), section, n, rng)


def places_on(slide: Slide, tissue: Tissue, section: Section, n: int, rng: np.random.Generator) -> Float:
    """Centres (n x 2, level-0 pixels) of places on `tissue`, drawn at random.

    They lie on a lattice of an eighth of a spot. If that is finer than a pixel, or has too many places, as for small
    bins, they lie anywhere. At least half of a spot's disk around each is tissue. Raises DatasetError if there is no
    such place.
    """
    bounds = slide.bounds
    step_um = section.spot_diameter_um / 8
    if step_um >= max(section.mpp) and math.prod(lattice_shape(bounds, section.mpp, step_um, "square")) <= MAX_SPOTS:
        found = lattice(bounds, section.mpp, step_um).centres
        found = found[tissue.fraction(found, section.spot_diameter_um, section.mpp) >= UNLABELLED_MIN_TISSUE]
        if not len(found):
            raise DatasetError(f"{section.image.name}: no tissue found.")
        drawn: Float = found[rng.choice(len(found), n, replace=len(found) < n)]
        return drawn
    corners = np.argwhere(tissue.mask)[:, ::-1].astype(float)  # the mask's pixels, x and y
    centres = (corners + 0.5) * tissue.downsample
    enough = tissue.fraction(centres, section.spot_diameter_um, section.mpp) >= UNLABELLED_MIN_TISSUE
    last = np.nextafter((bounds.x + bounds.width, bounds.y + bounds.height), 0)
    enough &= ((centres >= bounds[:2]) & (centres <= last)).all(axis=1)
    if not enough.any():
        raise DatasetError(f"{section.image.name}: no tissue found.")
    corners = corners[enough][rng.integers(int(enough.sum()), size=n)]
    places: Float = np.clip((corners + rng.random((n, 2))) * tissue.downsample, bounds[:2], last)
    return places
