"""Patches that are cut when they are read, so that the disk never holds those of more than one section."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from stpredict.arrays import Int, UInt8
from stpredict.data.section import Section, without_counts
from stpredict.data.section_files import Cut, cut_patches
from stpredict.data.stored_rows import StoredRows, stored_rows
from stpredict.slides.slide import open_slide
from stpredict.slides.views import patch_shape
from stpredict.storage.new_hdf5 import new_hdf5


@dataclass
class SectionPatches:
    """The patches of sections' spots. Spots are numbered through all sections, in their order.

    If spots of one section are read, the whole section is cut into `folder`, since more of its spots will be read; the
    section before is removed. If spots of several sections are read, that is a sample, and they alone are cut. The
    pixels are the same in both ways. Patches that were cut before are read where they are.
    """

    sections: Sequence[Section]
    how: Cut
    folder: Path
    report: Callable[[str], None]
    _current: int = -1  # the section that is cut
    _rows: StoredRows | None = None  # its patches
    _told: set[str] = field(default_factory=set)  # lines that were reported

    def __post_init__(self) -> None:
        self.sections = [without_counts(section) for section in self.sections]
        self._starts = np.cumsum([0, *(len(section.spot_names) for section in self.sections)])

    def read(self, index: Int | Sequence[int]) -> UInt8:
        """Patches n x P x P x 3, or stacks of views n x V x P x P x 3. Raises SlideError if a slide is damaged."""
        places = np.asarray(index, dtype=np.int64)
        of_section = np.searchsorted(self._starts, places, side="right") - 1
        numbers = np.unique(of_section)
        if len(numbers) == 1 and numbers[0] != self._current and not self.sections[numbers[0]].patches:
            self._rows = self._cut(self.sections[numbers[0]])
            self._current = int(numbers[0])
        patches = np.empty((len(places), *patch_shape(self.how.patch_px, self.how.views)), np.uint8)
        for number in numbers:
            own = of_section == number
            rows = places[own] - self._starts[number]
            if stored := self.sections[number].patches:
                patches[own] = stored.read(rows)
            elif number == self._current and self._rows:
                patches[own] = self._rows.read(rows)
            else:
                self._current = -1
                patches[own] = self._cut(some_spots(self.sections[number], rows)).read(range(len(rows)))
        return patches

    def _cut(self, section: Section) -> StoredRows:
        path = self.folder / "section.h5"
        path.unlink(missing_ok=True)
        with new_hdf5(path) as file:
            shape = (len(section.centres), *patch_shape(self.how.patch_px, self.how.views))
            wanted = [(section.centres, file.create_dataset("patches", shape, np.uint8))]
            with open_slide(section.image) as slide:
                cut_patches(slide, section, self.how, wanted)
                for note in slide.notes:
                    self._tell(f"{section.name}: {note}")
        return stored_rows(path, "patches")

    def _tell(self, line: str) -> None:
        """Report a line, unless it was reported when the section was cut before."""
        if line not in self._told:
            self._told.add(line)
            self.report(line)


def some_spots(section: Section, rows: Int) -> Section:
    """A section that has a slide with some of its spots, without their counts."""
    names = [section.spot_names[row] for row in rows]
    return replace(without_counts(section), spot_names=names, centres=section.centres[rows])
