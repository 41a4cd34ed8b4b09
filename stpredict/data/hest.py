"""Reader of HEST-1k (Jaume et al. 2024): `st/ID.h5ad` with `wsis/ID.tif` or `patches/ID.h5`, and metadata.

Patient, mpp and spot diameter are read from `metadata/ID.json` and the table `HEST_v*.csv` (columns id, patient,
dataset_title, ...), if the folder holds them. `sections.csv` comes before both, and says which sections to read.
Patches are cut anew from the slide, if it is there. If not, those that HEST-1k ships are used: 224 px at 0.5 um per
pixel, for the spots on tissue, in an order of their own.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stpredict.data.annotated import annotated_section
from stpredict.data.counts import in_memory
from stpredict.data.hdf5 import opened_hdf5
from stpredict.data.reading import AS_IT_IS, Reading, read_each
from stpredict.data.rows import SectionRow, chosen, read_rows, the_image, unstated
from stpredict.data.section import WHERE_TO_PUT_SLIDES, Section
from stpredict.data.stored_patches import StoredPatches
from stpredict.data.tables import IMAGES, joined, read_table
from stpredict.errors import DatasetError
from stpredict.slides.slide import PLAUSIBLE_MPP, Mpp
from stpredict.storage.stored_text import read_text

#: The side of the squares, um, to which HEST-1k pools transcripts and bins, by technology. Its `spot_diameter` gives
#: nothing for Xenium, and for Visium HD the size of the bins.
POOLED_UM = {"xenium": 100.0, "visium hd": 128.0}
SPECIES_NAMES = {"homo sapiens": "human", "mus musculus": "mouse"}
UNREADABLE = "its metadata cannot be read"
#: The note on sections whose patient is not known.
BY_STUDY = "a sample of its study names no patient, so the whole study counts as one patient"
#: Micrometres per pixel of the shipped patches, whatever the slide's.
PATCH_MPP = 0.5


def is_hest(folder: Path) -> bool:
    images = any((folder / name).is_dir() for name in ("wsis", "patches"))
    return images and any((folder / "st").glob("*.h5ad"))


def read_hest(folder: Path, reading: Reading = AS_IT_IS) -> list[Section]:
    """The sections of a folder, or those that sections.csv names, sorted by name.

    If a section's patient is not known, its study counts as the patient. Raises BrokenSectionsError for files that are
    missing or damaged, DatasetError for sections with neither patient nor study, and UsageError for a `reading` with a
    condition that does not fit.
    """
    rows = read_rows(folder)
    files = {path.stem: path for path in sorted((folder / "st").glob("[!.]*.h5ad"))}
    known = _read_metadata(folder, files)
    names = chosen(files, rows, folder, reading, known)
    patients = {name: rows[name].patient for name in rows}
    by_study: set[str] = set()
    if not rows:
        patients, by_study = _patients({name: known[name] for name in names})
    unknown = [name for name in names if not patients.get(name) and UNREADABLE not in known[name]]
    if unknown:
        raise unstated(folder, f"which patient {unknown[0]} comes from", "section,patient", unknown)

    def read(name: str) -> Section:
        facts = known[name]
        if isinstance(facts.get(UNREADABLE), DatasetError):
            raise facts[UNREADABLE]
        row = rows.get(name, SectionRow(name, patients[name]))
        images = [p for p in sorted((folder / "wsis").glob("[!.]*")) if p.stem == name and p.suffix.lower() in IMAGES]
        stored = folder / "patches" / f"{name}.h5"
        patches = stored if stored.is_file() and not (images or row.image) else None
        image = row.image or patches or the_image(images, name, folder)
        pixel_sizes = tuple(
            (f"the metadata's {key}", Mpp(um, um) if (um := _number(facts.get(key))) else None)
            for key in ("pixel_size_um_estimated", "pixel_size_um_embedded")
        )
        row = SectionRow(name, row.patient, image, files[name], row.mpp, row.spot_diameter_um, row.pitch_um)
        technology = str(facts.get("st_technology", ""))
        diameter_um = POOLED_UM.get(technology.lower()) or _number(facts.get("spot_diameter"))
        section = annotated_section(row, pixel_sizes, diameter_um, has_slide=not patches)
        notes = (BY_STUDY, *section.notes) if name in by_study else section.notes
        species = SPECIES_NAMES.get(str(facts.get("species", "")).lower(), str(facts.get("species", "")))
        section = replace(section, notes=notes, technology=technology, species=species or section.species)
        return with_patches(section, patches, files[name].name) if patches else section

    return read_each(names, str, read)


def with_patches(section: Section, path: Path, spots_file: str) -> Section:
    """The section with a file's patches for its spots; spots without a patch are left out.

    The file holds `img` (uint8, n x P x P x 3), `barcode` (n or n x 1, the spots' names) and, unless it is 0.5 um, the
    patches' `pixel_size` as an attribute. Raises DatasetError if it does not.
    """
    try:
        patch_px, mpp, barcodes = _read_barcodes(path)
        left, rows = joined(section.spot_names, barcodes, spots_file, path.name)
    except DatasetError as error:
        raise DatasetError(f"{str(error).removesuffix('.')}; download it again, or {WHERE_TO_PUT_SLIDES}.") from error
    return replace(
        section,
        patches=StoredPatches(path, patch_px, mpp, tuple(rows)),
        spot_names=[section.spot_names[i] for i in left],
        centres=section.centres[left],
        counts=in_memory(section.counts.rows(np.array(left))),
        lost_spots=section.lost_spots + len(section.spot_names) + len(barcodes) - 2 * len(left),
        notes=(*section.notes, f"its slide is not there, only patches of {patch_px} px at {mpp:g} um/px"),
    )


def _read_barcodes(path: Path) -> tuple[int, float, list[str]]:
    """A file's patches: their size in pixels, a pixel's size in um, and their spots' names. Raises DatasetError."""
    with opened_hdf5(path, check_heaps=False) as file:  # they are large
        images, barcodes = file.get("img"), file.get("barcode")
        if not isinstance(images, h5py.Dataset) or not isinstance(barcodes, h5py.Dataset):
            raise ValueError("it needs the data sets img and barcode")
        n, *shape = images.shape
        if images.dtype != np.uint8 or len(shape) != 3 or shape[0] != shape[1] or shape[2] != 3:
            raise ValueError("img must be bytes, patches x P x P x 3")
        if barcodes.shape not in ((n,), (n, 1)):
            raise ValueError(f"barcode must name each of its {n} patches")
        is_text = h5py.check_string_dtype(barcodes.dtype)
        names = read_text(barcodes) if is_text else [str(number) for number in barcodes[()].ravel()]
        stated = next((one.attrs for one in (images, file) if "pixel_size" in one.attrs), None)
        if stated and stated.get_id("pixel_size").dtype.kind not in "iuf":
            raise ValueError("its pixel_size is no number")
        mpp = float(stated["pixel_size"]) if stated else PATCH_MPP
        if not PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]:
            raise ValueError(f"its pixel_size is {mpp:g} um")
        return int(shape[0]), mpp, names


def _read_metadata(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Each section's metadata from the tables and the JSON files; if both have a value, the JSON file's counts.

    If a JSON file cannot be read, the error stands under UNREADABLE.
    """
    known: dict[str, dict[str, Any]] = defaultdict(dict)
    for path in sorted(folder.glob("HEST_v*.csv")):
        table = read_table(path)
        if "id" in table:
            for line in table.to_dict("records"):
                known[str(line["id"])].update({key: value for key, value in line.items() if _is_said(value)})
    for name in names:
        path = folder / "metadata" / f"{name}.json"
        if path.exists():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                known[name].update({key: value for key, value in content.items() if _is_said(value)})
            except (OSError, ValueError, AttributeError, RecursionError) as error:
                known[name][UNREADABLE] = DatasetError(f"{path}: cannot be read as JSON ({error}).")
    return known


def _is_said(value: object) -> bool:
    """Whether a value is known. If it is not, HEST writes None, NaN or nothing."""
    return value not in (None, "") and value == value


def _patients(known: dict[str, dict[str, Any]]) -> tuple[dict[str, str], set[str]]:
    """The patient of each section, and the sections whose study counts as their patient.

    Each study counts its patients from 1, so a patient's name contains the study's. A sample that names no patient may
    come from any patient of its study. The study then counts as one patient, so that no split divides it.
    """
    studies = {name: str(facts.get("dataset_title", "")) for name, facts in known.items()}
    unnamed = {studies[name] for name, facts in known.items() if not facts.get("patient")} - {""}
    by_study = {name for name, study in studies.items() if study in unnamed}
    patients = {}
    for name, study in studies.items():
        patient = str(known[name].get("patient", ""))
        patients[name] = study if name in by_study else f"{patient} ({study})" if study else patient
    return patients, by_study


def _number(value: object) -> float | None:
    """A positive finite number; None for anything else."""
    return float(value) if isinstance(value, int | float) and 0 < value < math.inf else None
