"""Reader of HEST-1k (Jaume et al. 2024): `st/ID.h5ad` with `wsis/ID.tif`, and what is known of them.

Patient, mpp and spot diameter are read from `metadata/ID.json` and the table `HEST_v*.csv` (columns id, patient,
dataset_title, ...), where the folder holds them; `sections.csv` comes before both, and says which sections to read.
The patches that HEST-1k ships are not used: they are cut anew, from the slide.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from stpredict.data.annotated import annotated_section
from stpredict.data.rows import SectionRow, chosen, read_rows, the_image, unstated
from stpredict.data.section import Section
from stpredict.data.tables import IMAGES, read_table
from stpredict.errors import DatasetError
from stpredict.slides.slide import Mpp


def is_hest(folder: Path) -> bool:
    return (folder / "wsis").is_dir() and any((folder / "st").glob("*.h5ad"))


def read_hest(folder: Path) -> list[Section]:
    """The sections of a folder, or those that sections.csv names, sorted by name.

    Raises DatasetError for files that are missing or damaged, and for sections of which no patient is known.
    """
    rows = read_rows(folder)
    files = {path.stem: path for path in sorted((folder / "st").glob("[!.]*.h5ad"))}
    names = chosen(files, rows, folder)
    known = _read_metadata(folder, names)
    patients = {name: rows[name].patient for name in rows} or _patients(known)
    unknown = [name for name in names if not patients.get(name)]
    if unknown:
        raise unstated(folder, f"which patient {unknown[0]} comes from", "section,patient", unknown)
    sections = []
    for name in names:
        row = rows.get(name, SectionRow(name, patients[name]))
        images = [p for p in sorted((folder / "wsis").glob("[!.]*")) if p.stem == name and p.suffix.lower() in IMAGES]
        image = row.image or the_image(images, name, folder)
        stated = tuple(
            (f"the metadata's {key}", Mpp(um, um) if (um := _number(known[name].get(key))) else None)
            for key in ("pixel_size_um_estimated", "pixel_size_um_embedded")
        )
        row = SectionRow(name, row.patient, image, files[name], row.mpp, row.spot_diameter_um, row.pitch_um)
        sections.append(annotated_section(row, stated, _number(known[name].get("spot_diameter"))))
    return sections


def _read_metadata(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """What the tables and the JSON files say of each section; the JSON files where both do."""
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
                raise DatasetError(f"{path}: cannot be read as JSON ({error}).") from error
    return known


def _is_said(value: object) -> bool:
    """HEST writes None, NaN or nothing for what is not known."""
    return value not in (None, "") and value == value


def _patients(known: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The patients by section. Each of the studies counts its patients from 1, so their names bear the study's."""
    of = {name: (str(facts["patient"]), str(facts.get("dataset_title", ""))) for name, facts in known.items()
          if facts.get("patient")}  # fmt: skip
    return {name: f"{patient} ({study})" if study else patient for name, (patient, study) in of.items()}


def _number(value: object) -> float | None:
    """A positive finite number; None for anything else."""
    return float(value) if isinstance(value, int | float) and 0 < value < math.inf else None
