"""Reader of 10x Visium: the `outs` folder of Space Ranger, or a folder with several of them.

A section is a matrix of counts, `filtered_feature_bc_matrix.h5` or the folder of that name (`matrix.mtx`,
`barcodes.tsv`, `features.tsv` or `genes.tsv`, gzipped or not), else the raw one, with a table of spots in `spatial/` or
beside it. Its name is the prefix of the files' names, as in GEO's GSM1_S1_matrix.mtx.gz; else the folder's name, or the
one above if that is `outs`; for bins of Visium HD, both (`NAME_square_016um`). `sections.csv` beside them names the
patients, the sections to read, and a section's image in full resolution, unless its folder holds exactly one.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from stpredict.data.bins import Bins, demand_no_bins, pooled
from stpredict.data.counts import in_memory
from stpredict.data.genes import name_genes, symbols_by_id
from stpredict.data.matrices import read_matrix
from stpredict.data.outputs import Outputs, find_outputs
from stpredict.data.reading import AS_IT_IS, Reading, read_each
from stpredict.data.rows import SectionRow, chosen, read_rows, the_image, unstated
from stpredict.data.scale import lattice_mpp, settle_mpp
from stpredict.data.section import Section
from stpredict.data.space_ranger import read_positions, read_scale
from stpredict.data.tables import IMAGES, joined
from stpredict.errors import DatasetError, counted
from stpredict.slides.slide import Mpp

#: Space Ranger's own pictures, which are not in full resolution.
SMALL_IMAGES = re.compile(r"tissue_(hires|lowres)_image|aligned_fiducials|detected_tissue_image|cytassist_image")
SPOT_DIAMETER_UM, PITCH_UM = 55.0, 100.0
#: Micrometres per step of array_col and array_row. A column is half a pitch, as odd rows are shifted.
UNIT_UM = (PITCH_UM / 2, PITCH_UM * math.sqrt(3) / 2)
#: Diameters that Space Ranger states for a spot: the true one, or 65 um.
STATED_DIAMETERS_UM = (55.0, 65.0)


def is_visium(folder: Path) -> bool:
    return bool(find_outputs(folder))


def read_visium(folder: Path, reading: Reading = AS_IT_IS) -> list[Section]:
    """All sections of a folder, or those named in sections.csv, sorted by name.

    Raises DatasetError if no patients are named, and BrokenSectionsError for files that are missing, damaged or do not
    fit together.
    """
    found: dict[str, Outputs] = {}
    for outputs in find_outputs(folder):
        name = _section_name(outputs)
        if name in found:
            raise DatasetError(f"{folder}: section {name} is there twice ({found[name].place}, {outputs.place}).")
        found[name] = outputs
    rows = read_rows(folder)
    if not rows:
        raise unstated(folder, "which patients the sections come from", "section,patient,image", sorted(found))
    names = chosen(found, rows, folder, reading)
    return read_each(names, str, lambda name: _read_section(name, found[name], rows[name], folder, reading.bins))


def _section_name(outputs: Outputs) -> str:
    place, bins = outputs.place.resolve(), ""
    if place.parent.name == "binned_outputs":
        place, bins = place.parent.parent, f"_{place.name}"
    return outputs.prefix or (place.parent.name if place.name == "outs" else place.name) + bins


def _read_section(name: str, outputs: Outputs, row: SectionRow, folder: Path, bins: Bins) -> Section:
    barcodes, symbols, ids, counts = read_matrix(outputs.matrix, outputs.file_prefix)
    table, scale = read_positions(outputs.positions), read_scale(outputs.scale)
    left, right = joined(barcodes, list(table["barcode"]), outputs.matrix.name, outputs.positions.name)
    inside = table["in_tissue"].to_numpy()
    on_it = inside[right]
    if not on_it.any():
        raise DatasetError(f"{outputs.positions}: none of the spots with counts is in tissue.")
    off_note = (
        (f"{counted((~on_it).sum(), 'spot')} not in tissue (in_tissue is 0), left out",) if not on_it.all() else ()
    )
    lost = len(barcodes) - len(left) + int(inside.sum() - on_it.sum())
    left, right = ([i for i, kept in zip(index, on_it, strict=True) if kept] for index in (left, right))
    table = table.iloc[right]
    centres = table[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(dtype=float)
    bin_um = scale.get("bin_size_um")
    units = table[["array_col", "array_row"]].to_numpy(dtype=float)
    lattice = lattice_mpp(units, centres, (bin_um, bin_um) if bin_um else UNIT_UM, name)
    stated = [scale["microns_per_pixel"]] if "microns_per_pixel" in scale else []
    if not stated and "spot_diameter_fullres" in scale:
        stated = [um / scale["spot_diameter_fullres"] for um in STATED_DIAMETERS_UM]
    nearest = min(stated, key=lambda um: abs(um / lattice.x - 1), default=None)
    sources = [("sections.csv", row.mpp), ("the array's spots", lattice)]
    mpp, mpp_notes = settle_mpp([*sources, ("scalefactors_json.json", Mpp(nearest, nearest) if nearest else None)])
    assert mpp is not None
    genes, counts, gene_notes = name_genes(symbols, ids, counts[left])
    section = Section(
        name=name,
        patient=row.patient,
        image=row.image or the_image(_images(outputs), name, folder),
        mpp=mpp,
        spot_names=[barcodes[i] for i in left],
        centres=centres,
        genes=genes,
        counts=in_memory(counts),
        lost_spots=lost,
        spot_diameter_um=row.spot_diameter_um or bin_um or SPOT_DIAMETER_UM,
        pitch_um=row.pitch_um or bin_um or PITCH_UM,
        names_all_genes=True,
        symbols=symbols_by_id(symbols, ids),
        notes=mpp_notes + off_note + gene_notes,
    )
    return pooled(section, units, bin_um, bins) if bin_um else demand_no_bins(bins, [section])[0]


def _images(outputs: Outputs) -> list[Path]:
    """Images beside the section's folders, or above `outs`, without small ones; those with its name, if there are any.

    If one folder holds the files of several sections, only images whose names begin like the section's can be its own.
    """
    place = outputs.place
    for folder in (place, place.parent) if place.resolve().name == "outs" else (place,):
        images = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGES and p.is_file())
        images = [path for path in images if not SMALL_IMAGES.search(path.name)]
        own = [path for path in images if outputs.prefix and path.name.startswith(outputs.prefix)]
        if images:
            return own or images
    return []
