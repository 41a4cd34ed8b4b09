"""Choose the spots of a slide to predict: those of a lattice that hold tissue, or given positions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from stpredict.arrays import Float
from stpredict.errors import NoTissueError, SpotsError
from stpredict.slides.appearance import note_appearance
from stpredict.slides.lattice import Spots, given_spots, lattice
from stpredict.slides.mask import MaskRequest, inside_mask
from stpredict.slides.resolution import in_words
from stpredict.slides.slide import Mpp, Slide
from stpredict.slides.tissue import Tissue, find_tissue


@dataclass(frozen=True)
class GridRequest:
    """A lattice of spots with at least `min_tissue` of tissue and within a mask, or the positions of a file."""

    spot_diameter_um: float
    pitch_um: float
    layout: Literal["square", "hex"] = "square"
    spots_file: Path | None = None
    min_tissue: float = 0.25
    mask: MaskRequest | None = None


def choose_spots(slide: Slide, mpp: Mpp, request: GridRequest, threads: int) -> tuple[Tissue, Spots, Float]:
    """The tissue, the spots, and the tissue fraction of each spot's disk. All given spots are kept.

    Notes how the slide differs from H&E. Raises NoTissueError if no spot of the lattice holds enough tissue,
    SpotsError if the slide is smaller than the lattice's first spot, MaskError if the mask does not fit, SlideError if
    the slide has one colour.
    """
    tissue = find_tissue(slide, mpp, threads)
    if request.spots_file:
        note_appearance(slide, tissue.overview)
        spots = given_spots(request.spots_file, slide.dimensions, request.pitch_um)
        return tissue, spots, tissue.fraction(spots.centres, request.spot_diameter_um, mpp)
    spots = lattice(slide.bounds, mpp, request.pitch_um, request.layout)
    sides_um = slide.bounds.width * mpp.x, slide.bounds.height * mpp.y
    extent = f"{sides_um[0]:.4g} x {sides_um[1]:.4g} um, at {in_words(mpp)} um per pixel"
    if not len(spots):
        raise SpotsError(
            f"{slide.path.name}: too small for spots {request.pitch_um:g} um apart: it is {extent}; "
            "if that is wrong, give the right --mpp, else a smaller --pitch."
        )
    note_appearance(slide, tissue.overview)
    fraction = tissue.fraction(spots.centres, request.spot_diameter_um, mpp)
    enough = fraction >= request.min_tissue
    if request.mask and enough.any():
        enough &= inside_mask(request.mask, slide, spots.centres)
        if not enough.any():
            raise NoTissueError(f"{slide.path.name}: no tissue lies within the mask {request.mask.path.name}.")
    kept = np.flatnonzero(enough)
    if not len(kept) or (request.min_tissue > 0 and not tissue.mask.any()):
        share = f"none of {len(spots)} spots is at least {request.min_tissue:.0%} tissue"
        small = f" (it is {extent}; is its um per pixel right?)" if min(sides_um) < request.pitch_um else ""
        raise NoTissueError(f"{slide.path.name}: no tissue found: {share}{small}.")
    return tissue, spots.take(kept), fraction[kept]
