"""Reader of AnnData files (.h5ad) with spots in `obsm['spatial']` (level-0 pixels), each with a slide.

`sections.csv` has the columns section, patient, image and counts (the .h5ad), and may have mpp, spot_diameter_um and
pitch_um. Counts are `layers['counts']`, or X without that.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stpredict.data.h5ad import Spots, read_h5ad
from stpredict.data.rows import SectionRow, read_rows, unstated
from stpredict.data.scale import MAX_DISAGREEMENT, lattice_mpp, neighbour_distance, settle_mpp, slide_mpp
from stpredict.data.section import Section
from stpredict.data.visium import PITCH_UM, SPOT_DIAMETER_UM, UNIT_UM
from stpredict.errors import DatasetError
from stpredict.slides.slide import Mpp

#: Spots are not smaller than this part of the pitch; what says so means something else.
MIN_DIAMETER = 0.1


def has_annotated(folder: Path) -> bool:
    return any(row.counts is not None and row.counts.suffix == ".h5ad" for row in read_rows(folder).values())


def read_annotated(folder: Path) -> list[Section]:
    """The sections of sections.csv, sorted by name. Raises DatasetError for what is missing or cannot be read."""
    rows = read_rows(folder)
    for row in rows.values():
        if row.counts is None or row.image is None:
            raise unstated(folder, f"the image and counts of {row.section}", "section,patient,image,counts", [*rows])
    return [annotated_section(rows[name], ()) for name in sorted(rows)]


def annotated_section(
    row: SectionRow, stated: tuple[tuple[str, Mpp | None], ...], stated_diameter_um: float | None = None,
    *, has_slide: bool = True,
) -> Section:  # fmt: skip
    """The section of `row`, which names its image and counts. `stated` are further sources of the mpp, named.

    The mpp is the row's, else of the first of `stated`, of the Visium lattice, of the row's pitch, of the slide if the
    image is one.
    Raises DatasetError if none of them knows, or the file cannot be read.
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
    return Section(
        name=row.section,
        patient=row.patient,
        image=row.image,
        mpp=mpp,
        spot_names=spots.names,
        centres=spots.centres,
        genes=spots.genes,
        counts=spots.counts,
        spot_diameter_um=diameter_um,
        pitch_um=pitch_um,
        names_all_genes=True,
        symbols=spots.symbols,
        notes=notes + spots.notes,
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
