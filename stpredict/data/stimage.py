"""Reader of STimage-1K4M (Chen et al. 2024): per technology `gene_exp/`, `coord/` and `image/`.

`TECHNOLOGY/gene_exp/SLIDE_count.csv` has a line per spot and a column per gene. `coord/SLIDE_coord.csv` has the columns
yaxis, xaxis and r, the spot's radius, in pixels of `image/SLIDE.png`. `meta/meta_all_gene.csv` has a line per slide
(slide, tech, species, tissue, pmid, ...). It names no patients, so a study counts as one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stpredict.data.counts import in_memory
from stpredict.data.genes import name_genes
from stpredict.data.reading import AS_IT_IS, Reading, read_each
from stpredict.data.rows import SectionRow, chosen, read_rows, the_image, unstated
from stpredict.data.scale import neighbour_distance, settle_mpp
from stpredict.data.section import Section
from stpredict.data.spotted import read_counts
from stpredict.data.tables import IMAGES, joined, read_table
from stpredict.errors import DatasetError
from stpredict.slides.slide import Mpp

#: Diameter and pitch of spots, um, by the technology's folder.
SPOTS_UM = {"ST": (100.0, 200.0), "Visium": (55.0, 100.0)}
COUNTS, COORDS = "_count.csv", "_coord.csv"
#: Columns of the table of slides that name a study. The first that is not empty counts.
STUDY = ("pmid", "GSE", "title")
BY_STUDY = "the data set names no patients, so each study counts as one"


def is_stimage(folder: Path) -> bool:
    return any(_coords(folder))


def read_stimage(folder: Path, reading: Reading = AS_IT_IS) -> list[Section]:
    """All slides of a folder, or those that sections.csv names, sorted by name.

    Raises DatasetError if neither patient nor study is known, BrokenSectionsError for files missing or damaged.
    """
    found = {path.name.removesuffix(COORDS): path for path in _coords(folder)}
    rows = read_rows(folder)
    known = _read_metadata(folder)
    names = chosen(found, rows, folder, reading, {name: known.get(name, {}) for name in found})
    patients = {name: rows[name].patient if rows else _study(known.get(name, {})) for name in names}
    unknown = [name for name in names if not patients[name]]
    if unknown:
        raise unstated(folder, f"which patient or study {unknown[0]} comes from", "section,patient", unknown)

    def read(name: str) -> Section:
        row = rows.get(name, SectionRow(name, patients[name]))
        return _read_section(row, found[name], known.get(name, {}), by_study=not rows)

    return read_each(names, str, read)


def _coords(folder: Path) -> list[Path]:
    return sorted(
        path
        for pattern in (f"*/coord/*{COORDS}", f"coord/*{COORDS}")
        for path in folder.glob(pattern)
        if (path.parent.parent / "gene_exp").is_dir()
    )


def _read_metadata(folder: Path) -> dict[str, dict[str, Any]]:
    known: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / "meta").glob("meta_all*.csv")):
        table = read_table(path, sep=None, engine="python", dtype=str, keep_default_na=False)
        if "slide" in table:
            for line in table.to_dict("records"):
                known.setdefault(str(line["slide"]), {}).update({str(key): value for key, value in line.items()})
    return known


def _study(facts: Mapping[str, Any]) -> str:
    return next((f"{column} {facts[column]}" for column in STUDY if facts.get(column)), "")


def _read_section(row: SectionRow, coords: Path, facts: Mapping[str, Any], *, by_study: bool) -> Section:
    place, name = coords.parent.parent, row.section
    counts_file = place / "gene_exp" / f"{name}{COUNTS}"
    if not counts_file.exists():
        raise DatasetError(f"{counts_file.parent}: section {name} has no counts.")
    images = [p for p in sorted((place / "image").glob("[!.]*")) if p.stem == name and p.suffix.lower() in IMAGES]
    image = row.image or the_image(images, name, place)
    table = read_table(coords, index_col=0)
    if not {"xaxis", "yaxis"} <= set(table.columns):
        raise DatasetError(f"{coords.name}: needs the columns yaxis and xaxis.")
    spots, genes, counts = read_counts(counts_file, sep=",")
    left, right = joined([str(spot) for spot in table.index], spots, coords.name, counts_file.name)
    try:
        centres = table[["xaxis", "yaxis"]].to_numpy(dtype=float)[left]
    except ValueError as error:
        raise DatasetError(f"{coords.name}: positions must be numbers ({error}).") from error
    if not np.isfinite(centres).all():
        raise DatasetError(f"{coords.name}: positions must be finite numbers.")
    diameter_um, pitch_um = SPOTS_UM.get(place.name, (row.spot_diameter_um, row.pitch_um))
    if not (row.pitch_um or pitch_um):
        raise DatasetError(
            f"{coords.name}: nothing says how far the spots of {place.name} are apart; give spot_diameter_um and "
            "pitch_um in sections.csv."
        )
    pitch_um = row.pitch_um or pitch_um or 0.0
    um = pitch_um / neighbour_distance(centres, name)
    mpp, mpp_notes = settle_mpp([("sections.csv", row.mpp), ("the spots' distance", Mpp(um, um))])
    assert mpp is not None
    genes, counts, notes = name_genes(genes, None, counts[right])
    return Section(
        name=name,
        patient=row.patient,
        image=image,
        mpp=mpp,
        spot_names=[str(table.index[i]) for i in left],
        centres=centres,
        genes=genes,
        counts=in_memory(counts),
        lost_spots=len(table) + len(spots) - 2 * len(left),
        spot_diameter_um=row.spot_diameter_um or diameter_um or pitch_um,
        pitch_um=pitch_um,
        names_all_genes=True,
        technology=str(facts.get("tech") or place.name),
        species=str(facts.get("species", "")).lower(),
        notes=(*((BY_STUDY,) if by_study else ()), *mpp_notes, *notes),
    )
