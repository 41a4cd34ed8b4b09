"""Reader of the HER2ST layout (Andersson et al. 2021, Nature Communications 12:6012).

Per section an image, counts `NAME.tsv[.gz]` (spots `XxY` by genes) and `NAME_selection.tsv` (x, y, new_x, new_y,
pixel_x, pixel_y, selected), in one folder, in those of the published repository (`ST-imgs/A/A1/ANY.jpg`, `ST-cnts`,
`ST-spotfiles`) or of its Zenodo archive (`images/HE`, `count-matrices`, `spot-selections`). The patient is the letter
that begins the section's name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from functools import partial
from pathlib import Path

from stpredict.data.reading import AS_IT_IS, Reading, read_each
from stpredict.data.rows import chosen, read_rows, the_image
from stpredict.data.scale import lattice_mpp
from stpredict.data.section import Section
from stpredict.data.spotted import read_selection, spotted_section
from stpredict.data.tables import IMAGES, files_of
from stpredict.errors import DatasetError

#: Micrometres per unit of new_x and new_y, the array's own coordinates.
UNIT_UM = 200.0
SELECTION = re.compile(r"(.+)_selection\.tsv(?:\.gz)?")
COUNTS = re.compile(r"(.+)\.tsv(?:\.gz)?")
#: Folders of pictures with the pathologist's drawings, named like the sections.
ANNOTATED = re.compile(r"ST-pat|annot.*", re.IGNORECASE)


def is_her2st(folder: Path) -> bool:
    return any(SELECTION.fullmatch(path.name) for path in folder.rglob("*_selection.tsv*"))


def read_her2st(folder: Path, reading: Reading = AS_IT_IS, require_images: bool = True) -> list[Section]:
    """All sections of a folder, sorted by name; without `require_images`, also those without an image.

    Raises BrokenSectionsError for files that are missing or do not fit together.
    """
    rows, files = read_rows(folder), files_of(folder)
    by_name, by_folder = defaultdict(list), defaultdict(list)
    for path in files:
        if path.suffix.lower() in IMAGES and not any(map(ANNOTATED.fullmatch, path.relative_to(folder).parts[:-1])):
            by_name[path.stem].append(path)
            by_folder[path.parent.name].append(path)  # repository layout: A/A1/any-name.jpg
    counts = {match[1]: path for path in files if (match := COUNTS.fullmatch(path.name))}
    selections = {match[1]: path for path in files if (match := SELECTION.fullmatch(path.name))}
    if not selections:
        raise DatasetError(f"{folder}: holds no *_selection.tsv, so it is not in the HER2ST layout.")

    def read(name: str) -> Section:
        row, images = rows.get(name), by_name[name] or by_folder[name]
        if name not in counts:
            raise DatasetError(f"{folder}: section {name} has no counts.")
        if row and row.image:
            images = [row.image]
        elif not images and not require_images:
            images = [Path()]
        return spotted_section(
            name,
            re.match(r"[A-Za-z]*", name).group() or name,  # type: ignore[union-attr]
            the_image(images, name, folder),
            counts[name],
            read_selection(selections[name]),
            selections[name].name,
            partial(lattice_mpp, unit_um=(UNIT_UM, UNIT_UM), section=name),
            row,
            spot_diameter_um=100.0,
            pitch_um=200.0,
        )

    return read_each(chosen(selections, rows, folder, reading), str, read)
