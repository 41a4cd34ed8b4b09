"""Reports on the sections of a data set: a line each if they are few, a table and one line if they are many."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

from stpredict.data.section import Section
from stpredict.errors import counted, some
from stpredict.storage.files import atomic_path

#: Up to this many sections have a line each; more have a table.
LISTED = 12
#: Time between lines on the progress of cutting many sections.
LINE_EVERY_S = 60.0
COLUMNS = (
    "section", "patient", "spots", "lost", "genes", "counts_per_spot", "mpp_x", "mpp_y", "spot_diameter_um", "pitch_um",
    "notes",
)  # fmt: skip


def section_log(sections: Sequence[Section], report: Callable[[str], None]) -> Callable[[Section], None]:
    """A function to call once a section is cut. It reports a line on each of few, and the progress of many."""
    total, began = sum(len(section.spot_names) for section in sections), time.monotonic()
    n_cut, n_spots, last = 0, 0, began

    def tell(section: Section) -> None:
        nonlocal n_cut, n_spots, last
        n_cut, n_spots, now = n_cut + 1, n_spots + len(section.spot_names), time.monotonic()
        if len(sections) <= LISTED:
            report(_line(section))
        elif now - last >= LINE_EVERY_S and n_spots < total:
            last = now
            left = timedelta(seconds=round((now - began) / max(n_spots, 1) * (total - n_spots)))
            report(f"cut {n_cut:,} of {len(sections):,} sections, {n_spots:,} of {total:,} spots, about {left} left")

    return tell


def _line(section: Section) -> str:
    lacked = "counts, position or patch" if section.patches else "counts or position"
    n_here = counted(len(section.spot_names), "spot")
    mpp = f"mpp {section.mpp.x:.4f} x {section.mpp.y:.4f}"
    return f"{section.name}: {n_here}, {section.lost_spots} without {lacked}, {mpp}"


def tell_together(sections: Sequence[Section], table: Path | None, report: Callable[[str], None]) -> None:
    """Report each note once for all sections that have it. For many sections, write and report `table`, too."""
    many = len(sections) > LISTED
    if many:
        spots, lost = sum(len(s.spot_names) for s in sections), sum(s.lost_spots for s in sections)
        patients = len({section.patient for section in sections})
        more = f"; {table} says more of each" if table else ""
        report(
            f"{len(sections)} sections of {counted(patients, 'patient')}, {counted(spots, 'spot')}, {lost} more "
            f"without counts, position or patch{more}"
        )
    if stored := sum(section.patches is not None for section in sections):
        others = "" if stored == len(sections) else "; those of the others are cut from their slides"
        report(f"patches of {stored} of {len(sections)} sections stay in the data set's own files, not copied{others}")
    if many and table:
        with atomic_path(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(_row(section) for section in sections)
    of_note: dict[str, list[str]] = {}
    for section in sections:
        for note in section.notes:
            of_note.setdefault(note, []).append(section.name)
    alone = 0
    for note, names in of_note.items():
        if many and table and len(names) == 1:  # the table has it
            alone += 1
        else:
            report(f"{some(names)}: {note}")
    if alone and table:
        report(f"{alone} notes on one section each stand in {table.name}")


def _row(section: Section) -> list[object]:
    n = len(section.spot_names)
    return [
        section.name, section.patient, n, section.lost_spots, len(section.genes),
        round(float(section.counts.per_spot.sum()) / n, 1), round(section.mpp.x, 4), round(section.mpp.y, 4),
        section.spot_diameter_um, section.pitch_um, "; ".join(section.notes),
    ]  # fmt: skip
