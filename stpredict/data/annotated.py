"""Reader of AnnData files (.h5ad) with spots in `obsm['spatial']` (level-0 pixels), each with a slide.

`sections.csv` has the columns section, patient, image and counts (the .h5ad), and may have mpp, spot_diameter_um and
pitch_um. Counts are `layers['counts']`, X, another layer or `raw`, whichever holds whole numbers first.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stpredict.data.bins import Bins, demand_no_bins, pooled
from stpredict.data.counts import in_memory
from stpredict.data.h5ad import Spots, read_h5ad
from stpredict.data.reading import AS_IT_IS, Reading, read_each
from stpredict.data.rows import SectionRow, chosen, read_rows, unstated
from stpredict.data.scale import (
    MAX_DISAGREEMENT,
    lattice_mpp,
    neighbour_distance,
    pixels_per_unit,
    settle_mpp,
    slide_mpp,
)
from stpredict.data.section import Section
from stpredict.data.visium import PITCH_UM, SPOT_DIAMETER_UM, UNIT_UM
from stpredict.errors import DatasetError
from stpredict.slides.slide import Mpp

#: A spot is never smaller than this part of the pitch; a smaller stated diameter means something else.
MIN_DIAMETER = 0.1
#: On a square array, spots nearer to each other than this are bins.
MAX_BIN_UM = 40.0


def has_annotated(folder: Path) -> bool:
    return any(row.counts is not None and row.counts.suffix == ".h5ad" for row in read_rows(folder).values())


def read_annotated(folder: Path, reading: Reading = AS_IT_IS) -> list[Section]:
    """The sections of sections.csv, sorted by name.

    Raises DatasetError for missing files, and BrokenSectionsError for sections that cannot be read."""
    rows = read_rows(folder)
    for row in rows.values():
        if row.counts is None or row.image is None:
            raise unstated(folder, f"the image and counts of {row.section}", "section,patient,image,counts", [*rows])
    names = chosen(rows, rows, folder, reading)
    return read_each(names, str, lambda name: annotated_section(rows[name], (), bins=reading.bins))


def annotated_section(
    row: SectionRow, stated: tuple[tuple[str, Mpp | None], ...], stated_diameter_um: float | None = None,
    *, has_slide: bool = True, bins: Bins | None = None,
) -> Section:  # fmt: skip
    """The section of `row`, which names its image and counts. `stated` are further sources of the mpp, named.

    The first source that knows the mpp gives it: the row, `stated` in order, the Visium lattice, the row's pitch, the
    slide if the image is one. On a square array, spots smaller than Visium's are bins; `bins`, if given, says how to
    pool them. Raises DatasetError if no source knows the mpp, or the file cannot be read.
    """
    assert row.image is not None
    assert row.counts is not None
    spots = read_h5ad(row.counts)
    distance = neighbour_distance(spots.centres, row.section)
    visium = _visium_mpp(spots, row.section) if row.pitch_um in (None, PITCH_UM) else None
    sources = [("sections.csv", row.mpp), *stated, ("the Visium array's spots", visium)]
    if row.pitch_um and not visium:
        sources.append(("the pitch of sections.csv", Mpp(row.pitch_um / distance, row.pitch_um / distance)))
    if has_slide and not any(mpp for _, mpp in sources):
        sources.append(("the slide", slide_mpp(row.image)))
    mpp, notes = settle_mpp(sources)
    if mpp is None:
        raise DatasetError(
            f"{row.image.name}: neither the slide nor the spots of section {row.section} tell the micrometres per "
            "pixel; give them in the column mpp of sections.csv."
        )
    pitch_um = row.pitch_um or (PITCH_UM if visium else round(distance * float(np.mean(mpp)), 1))
    if stated_diameter_um is not None and stated_diameter_um < MIN_DIAMETER * pitch_um:
        stated_diameter_um = None
    diameter_um = row.spot_diameter_um or stated_diameter_um or (SPOT_DIAMETER_UM if visium else pitch_um / 2)
    if not (row.spot_diameter_um or stated_diameter_um or visium):
        notes += (f"nothing says how large a spot is; taken as half the pitch, {diameter_um:g} um",)
    section = Section(
        name=row.section,
        patient=row.patient,
        image=row.image,
        mpp=mpp,
        spot_names=spots.names,
        centres=spots.centres,
        genes=spots.genes,
        counts=in_memory(spots.counts),
        spot_diameter_um=diameter_um,
        pitch_um=pitch_um,
        names_all_genes=True,
        symbols=spots.symbols,
        notes=notes + spots.notes,
    )
    own_um = _bin_um(spots, mpp, row.section) if bins and not visium else None
    if own_um is None or bins is None:
        return section if bins is None else demand_no_bins(bins, [section])[0]
    assert spots.units is not None
    return pooled(section, spots.units, own_um, bins)


def _bin_um(spots: Spots, mpp: Mpp, section: str) -> float | None:
    """The side of bins on a square array, um, if it is smaller than a Visium spot; None for anything else."""
    if spots.units is None or not np.isfinite(spots.units).all():
        return None
    try:
        steps = np.linalg.norm(pixels_per_unit(spots.units, spots.centres, section) * np.array(mpp)[:, None], axis=0)
    except DatasetError:  # columns of another meaning
        return None
    um = float(steps.mean())
    is_square = abs(steps[0] / steps[1] - 1) <= MAX_DISAGREEMENT and um < MAX_BIN_UM
    return (
        (float(round(um)) if abs(round(um) / um - 1) <= MAX_DISAGREEMENT and round(um) else um) if is_square else None
    )


def _visium_mpp(spots: Spots, section: str) -> Mpp | None:
    """The mpp if the spots lie on Visium's array: odd rows are shifted, so that row and column have an even sum."""
    units = spots.units
    if units is None or not np.isfinite(units).all() or (units.sum(axis=1) % 2 != 0).any():
        return None
    try:
        mpp = lattice_mpp(units, spots.centres, UNIT_UM, section)
    except DatasetError:  # columns of another meaning
        return None
    return mpp if abs(mpp.x / mpp.y - 1) <= MAX_DISAGREEMENT else None
