"""Which sections of a data set to read, and how; and what becomes of sections that cannot be read."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from stpredict.data.bins import ANY_BINS, Bins
from stpredict.data.section import GeneNames, Section
from stpredict.data.waiting_counts import Waiting
from stpredict.data.where import Facts, parse_where
from stpredict.errors import DatasetError, SlideError, StpredictError, UsageError, counted, some
from stpredict.storage.files import atomic_path
from stpredict.storage.text_tables import read_lines

Item = TypeVar("Item")
#: What a call leaves out: sections that cannot be read, slides without counts that cannot be used.
Thing = Literal["section", "slide"]
SPECIES = ("human", "mouse", "all")


@dataclass(frozen=True)
class Reading:
    """How a call reads a data set: the size of bins, a condition on its columns, a species, and a table of orthologs.

    `skip_broken` leaves out sections that cannot be read.
    """

    bins: Bins = ANY_BINS
    where: str | None = None
    species: str | None = None
    orthologs: Path | None = None
    skip_broken: bool = False

    def __post_init__(self) -> None:
        if self.species is not None and self.species not in SPECIES:
            raise UsageError(f"--species {self.species}: choose {', '.join(SPECIES)}.")
        if self.species and self.orthologs:
            raise UsageError("--orthologs joins species; leave --species out.")
        if self.where is not None:
            parse_where(self.where)

    def chosen(self, facts: Mapping[str, Facts]) -> list[str]:
        """The sections for which the condition holds; all without one. Raises UsageError as `Where.chosen`."""
        return list(facts) if self.where is None else parse_where(self.where).chosen(facts)


#: A reading without any request.
AS_IT_IS = Reading()


@dataclass(frozen=True)
class Broken:
    """A section that cannot be read, and why."""

    section: str
    error: StpredictError

    @property
    def why(self) -> str:
        return str(self.error)


class BrokenSectionsError(DatasetError):
    """Some sections of a data set cannot be read; it holds those that can."""

    def __init__(self, sections: list[Section], broken: list[Broken]) -> None:
        super().__init__(sections, broken)
        self.sections, self.broken = sections, broken

    def __str__(self) -> str:
        if len(self.broken) == 1:
            return self.broken[0].why
        each = "; ".join(f"{one.section} ({one.why.removesuffix('.')})" for one in self.broken)
        return f"{len(self.broken)} sections cannot be read: {each}; --skip-broken leaves them out."


def read_each(items: Iterable[Item], name: Callable[[Item], str], read: Callable[[Item], Section]) -> list[Section]:
    """`read` each item to a section. Its counts then wait in a temporary file, and equal names of genes are kept once.

    Raises BrokenSectionsError after the last, if some could not be read.
    """
    sections, broken, waiting, names = [], [], Waiting(), GeneNames()
    for item in items:
        try:
            section = read(item)
        except (DatasetError, SlideError) as error:
            broken.append(Broken(name(item), error))
        else:
            sections.append(names.shared(waiting.take(section)))
            del section  # before the next is read
    if broken:
        raise BrokenSectionsError(sections, broken)
    return sections


def readable(call: Callable[[], list[Section]]) -> tuple[list[Section], list[Broken]]:
    """The sections that `read_each` reads within a call, and those that it cannot read."""
    try:
        return call(), []
    except BrokenSectionsError as error:
        return error.sections, error.broken


def demand_whole(sections: list[Section], broken: list[Broken]) -> list[Section]:
    """The sections. Raises the error of the only broken one, or BrokenSectionsError for several."""
    if len(broken) == 1:
        raise broken[0].error
    if broken:
        raise BrokenSectionsError(sections, broken)
    return sections


def write_broken(broken: Mapping[str, str], path: Path, thing: Thing = "section") -> None:
    """Write a table of the sections, or slides, that were left out, with reasons.

    If there are none, remove an earlier table.
    """
    if not broken:
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow((thing, "why"))
        writer.writerows(broken.items())


def read_broken(path: Path, thing: Thing = "section") -> list[str]:
    """The sections, or slides, in a table from `write_broken`; none if there is no such table."""
    return [line.cells[thing] for line in read_lines(path, (thing, "why"), "")] if path.exists() else []


def about_left_out(names: Sequence[str], table: Path, thing: Thing = "section") -> str:
    """The closing sentence on the sections, or slides, that were left out."""
    why = {"section": "could not be read", "slide": "cannot be used"}[thing]
    what = f"{counted(len(names), thing)} {why} and {'is' if len(names) == 1 else 'are'}"
    return f"{what} left out: {some(names)}; {table} says why"
