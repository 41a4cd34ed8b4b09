"""Reader of 10x Visium: the `outs` folder of Space Ranger, or a folder with several of them.

A section is a folder with `filtered_feature_bc_matrix.h5` (or PREFIX_filtered...) and `spatial/`. It is called after
the prefix, else after the folder, or after the one above where that is `outs`; bins of Visium HD after both
(`NAME_square_016um`). `sections.csv` beside them names the patients, which sections to read, and the images in full
resolution where a section's folder does not hold exactly one.
"""

from __future__ import annotations

import math
from pathlib import Path

from stpredict.data.genes import name_genes, symbols_by_id
from stpredict.data.rows import SectionRow, chosen, read_rows, the_image, unstated
from stpredict.data.scale import lattice_mpp, settle_mpp
from stpredict.data.section import Section
from stpredict.data.space_ranger import read_10x, read_positions, read_scale
from stpredict.data.tables import IMAGES, joined
from stpredict.errors import DatasetError
from stpredict.slides.slide import Mpp

MATRIX = "filtered_feature_bc_matrix.h5"
SPOT_DIAMETER_UM, PITCH_UM = 55.0, 100.0
#: Micrometres per step of array_col and array_row: columns count half a pitch, for odd rows are shifted.
UNIT_UM = (PITCH_UM / 2, PITCH_UM * math.sqrt(3) / 2)
#: What Space Ranger takes for a spot's diameter: the true one, or 65 um.
STATED_DIAMETERS_UM = (55.0, 65.0)


def is_visium(folder: Path) -> bool:
    return any((path.parent / "spatial").is_dir() for path in folder.rglob(f"*{MATRIX}"))


def read_visium(folder: Path) -> list[Section]:
    """All sections of a folder, or those named in sections.csv, sorted by name.

    Raises DatasetError for files that are missing, damaged or do not fit together, and where no patients are named.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob(f"*{MATRIX}")):
        if (path.parent / "spatial").is_dir():
            name = _section_name(path)
            if name in found:
                raise DatasetError(f"{folder}: section {name} is there twice ({found[name].parent}, {path.parent}).")
            found[name] = path
    rows = read_rows(folder)
    if not rows:
        raise unstated(folder, "which patients the sections come from", "section,patient,image", sorted(found))
    return [_read_section(name, found[name], rows[name], folder) for name in chosen(found, rows, folder)]


def _section_name(matrix: Path) -> str:
    prefix = matrix.name.removesuffix(MATRIX).rstrip("_-.")
    place, bins = matrix.parent.resolve(), ""
    if place.parent.name == "binned_outputs":
        place, bins = place.parent.parent, f"_{place.name}"
    return prefix or (place.parent.name if place.name == "outs" else place.name) + bins


def _read_section(name: str, matrix: Path, row: SectionRow, folder: Path) -> Section:
    spatial = matrix.parent / "spatial"
    barcodes, symbols, ids, counts = read_10x(matrix)
    table, positions_file = read_positions(spatial)
    scale = read_scale(spatial / "scalefactors_json.json")
    left, right = joined(barcodes, list(table["barcode"]), matrix.name, positions_file)
    in_tissue = int((table["in_tissue"] == 1).sum()) - int((table["in_tissue"].iloc[right] == 1).sum())
    table = table.iloc[right]
    centres = table[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(dtype=float)
    bin_um = scale.get("bin_size_um")
    lattice = lattice_mpp(
        table[["array_col", "array_row"]].to_numpy(dtype=float), centres, (bin_um, bin_um) if bin_um else UNIT_UM, name
    )
    stated = [scale["microns_per_pixel"]] if "microns_per_pixel" in scale else []
    if not stated and "spot_diameter_fullres" in scale:
        stated = [um / scale["spot_diameter_fullres"] for um in STATED_DIAMETERS_UM]
    nearest = min(stated, key=lambda um: abs(um / lattice.x - 1), default=None)
    sources = [("sections.csv", row.mpp), ("the array's spots", lattice)]
    mpp, mpp_notes = settle_mpp([*sources, ("scalefactors_json.json", Mpp(nearest, nearest) if nearest else None)])
    assert mpp is not None
    genes, counts, gene_notes = name_genes(symbols, ids, counts[left])
    return Section(
        name=name,
        patient=row.patient,
        image=row.image or the_image(_images(matrix.parent), name, folder),
        mpp=mpp,
        spot_names=[barcodes[i] for i in left],
        centres=centres,
        genes=genes,
        counts=counts,
        lost_spots=len(barcodes) - len(left) + in_tissue,
        spot_diameter_um=row.spot_diameter_um or bin_um or SPOT_DIAMETER_UM,
        pitch_um=row.pitch_um or bin_um or PITCH_UM,
        names_all_genes=True,
        symbols=symbols_by_id(symbols, ids),
        notes=mpp_notes + gene_notes,
    )


def _images(place: Path) -> list[Path]:
    """Images beside the matrix, or above an `outs` folder: those in `spatial` are not in full resolution."""
    for folder in (place, place.parent) if place.resolve().name == "outs" else (place,):
        images = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGES and p.is_file())
        if images:
            return images
    return []
