"""Find out which layout of measured data a path holds, read it, and check whether its images fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from stpredict.data.annotated import has_annotated, read_annotated
from stpredict.data.bins import demand_no_bins
from stpredict.data.cscc import is_cscc, read_cscc
from stpredict.data.genes import are_ensembl, in_symbols, one_table
from stpredict.data.hbc import is_hbc, read_hbc
from stpredict.data.her2st import is_her2st, read_her2st
from stpredict.data.hest import is_hest, read_hest
from stpredict.data.outputs import why_no_outputs
from stpredict.data.reading import AS_IT_IS, Broken, Reading, demand_whole, read_each, readable
from stpredict.data.rows import unstated
from stpredict.data.scale import native_mpp, settle_mpp
from stpredict.data.section import Section
from stpredict.data.species import of_one_species
from stpredict.data.stimage import is_stimage, read_stimage
from stpredict.data.tables import files_of
from stpredict.data.visium import is_visium, read_visium
from stpredict.data.xenium import is_xenium, read_xenium
from stpredict.errors import DatasetError, UnknownLayoutError
from stpredict.slides.slide import open_slide

Reader = Callable[..., list[Section]]
#: Each layout's test of a folder and its reader; the first that fits is used.
READERS: tuple[tuple[Callable[[Path], bool], Reader], ...] = (
    (has_annotated, read_annotated),
    (is_hest, read_hest),
    (is_xenium, read_xenium),
    (is_visium, read_visium),
    (is_stimage, read_stimage),
    (is_cscc, read_cscc),
    (is_her2st, read_her2st),
    (is_hbc, read_hbc),
)
LAYOUTS = (
    "HER2ST: NAME.jpg, NAME.tsv.gz, NAME_selection.tsv",
    "HBC: NAME.jpg, NAME.tsv.gz, NAME.spots.txt",
    "cSCC: *NAME.jpg, *NAME_stdata.tsv, *spot_data-selection-NAME.tsv",
    "Visium: filtered_feature_bc_matrix.h5 or the folder of matrix.mtx, spatial/, an image, sections.csv",
    "Xenium: experiment.xenium, cell_feature_matrix.h5 with cells.parquet or transcripts.parquet, *he_image.ome.tif, "
    "*he_imagealignment.csv",
    "STimage-1K4M: TECHNOLOGY/gene_exp/, coord/ and image/",
    "HEST-1k: st/NAME.h5ad, wsis/NAME.tif or patches/NAME.h5, metadata/NAME.json",
    "AnnData: .h5ad files and images that sections.csv names (section,patient,image,counts)",
)


def read_dataset(path: Path, reading: Reading = AS_IT_IS) -> list[Section]:
    """The sections of a data set's folder that the `reading` selects, without broken ones if it skips these.

    Raises DatasetError if its layout is not known or its files do not fit together, SlideError for a damaged image,
    BrokenSectionsError for several broken sections, and UsageError for a mixture of species or a condition that does
    not fit.
    """
    return read_asked(path, reading)[0]


def read_asked(path: Path, reading: Reading = AS_IT_IS) -> tuple[list[Section], dict[str, str]]:
    """As `read_dataset`, with the reason for each broken section that was skipped."""
    sections, broken = read_sections(path, reading)
    if not reading.skip_broken:
        demand_whole(sections, broken)
    return sections, {one.section: one.why for one in broken}


def read_sections(path: Path, reading: Reading = AS_IT_IS) -> tuple[list[Section], list[Broken]]:
    """As `read_dataset`, with the sections that cannot be read. Raises if none can."""
    found, broken = readable(lambda: _read(path, reading))
    sections, more = readable(lambda: read_each(found, lambda section: section.name, check_image))
    broken = sorted([*broken, *more], key=lambda one: one.section)
    if not sections:
        demand_whole(sections, broken)
    return in_one_naming(of_one_species(sections, reading)), broken


def read_counts(path: Path) -> list[Section]:
    """As `read_dataset`, for sections whose images are not used; in the HER2ST layout they may be missing."""
    read = _find_reader(path)
    found, broken = readable(lambda: read_her2st(path, require_images=False) if read is read_her2st else read(path))
    return in_one_naming(demand_whole(found, broken))


def _read(path: Path, reading: Reading) -> list[Section]:
    read = _find_reader(path)
    sections = read(path, reading)
    return sections if read in (read_annotated, read_visium, read_xenium) else demand_no_bins(reading.bins, sections)


def in_one_naming(sections: Sequence[Section]) -> list[Section]:
    """The sections, with Ensembl ids replaced by the symbols that other sections' tables have for them.

    An id with several symbols, or a symbol with several ids, stays as it is, as any choice would be a guess.
    """
    by_id = [are_ensembl(section.genes) for section in sections]
    if all(by_id) or not any(by_id):
        return list(sections)
    symbols = one_table(section.symbols for section in sections)
    return [
        replace(section, genes=in_symbols(section.genes, symbols)) if ids else section
        for section, ids in zip(sections, by_id, strict=True)
    ]


def _find_reader(path: Path) -> Reader:
    """The reader for a folder's layout. Raises DatasetError if the layout is not known."""
    if not path.exists():
        raise DatasetError(f"{path}: no such file or folder.")
    if path.is_dir():
        for fits, read in READERS:
            if fits(path):
                return read
        annotated = [file.name for file in files_of(path) if file.suffix == ".h5ad"]
        if annotated:
            what = "which slides and patients its .h5ad files come from"
            raise unstated(path, what, "section,patient,image,counts", annotated)
        if reason := why_no_outputs(path):
            raise DatasetError(f"{path}: not a data set that can be read: {reason}.")
    raise UnknownLayoutError(f"{path}: not a data set in a known layout ({'; '.join(LAYOUTS)}).")


def check_image(section: Section) -> Section:
    """The section, with notes on how its image and spots fit together; unchanged if there is no slide.

    Raises DatasetError if most spots lie outside the image, SlideError if the image cannot be opened.
    """
    if section.patches:
        return section
    with open_slide(section.image) as slide:
        width, height = slide.dimensions
        _, notes = settle_mpp([("the data set", section.mpp), ("the image file", native_mpp(slide))])
    notes = tuple(note for note in notes if "image file" in note)
    outside = int((~((section.centres >= 0) & (section.centres < (width, height))).all(axis=1)).sum())
    if outside:
        note = f"{outside} of {len(section.centres)} spots lie outside the image of {width} x {height} pixels"
        if outside > len(section.centres) / 2:
            raise DatasetError(
                f"{section.image.name}: not the image of section {section.name}, or not in full resolution: {note}."
            )
        notes += (note,)
    return replace(section, notes=section.notes + notes)
