"""Species of sections: how to tell them, and what to do with several in one data set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stpredict.data.counts import in_memory
from stpredict.data.genes import unversioned
from stpredict.data.reading import Reading
from stpredict.data.section import Section
from stpredict.data.tables import read_table
from stpredict.data.waiting_counts import Waiting
from stpredict.errors import DatasetError, UsageError, some

#: The least number of names that tell a species, and the part of them that must agree.
LEAST_NAMES, MOST = 20, 0.8
#: Symbols of human genes are in capitals, except open reading frames; those of mouse genes begin with a capital.
HUMAN = re.compile(r"(?!ENSMUSG)(?:ENSG\d{11}.*|[A-Z0-9._-]*(?:orf\d*\w*)?)")
MOUSE = re.compile(r"ENSMUSG\d{11}.*|[A-Z][a-z0-9._-]*[a-z].*")


def of_one_species(sections: list[Section], reading: Reading) -> list[Section]:
    """The sections of the requested species, or all; with orthologs, under the names of the second column.

    Raises UsageError for several species if none is requested, and for a species that no section has.
    """
    known = [replace(section, species=section.species or tell_species(section.genes)) for section in sections]
    if reading.orthologs:
        orthologs = read_orthologs(reading.orthologs)
        waiting = Waiting()
        return [waiting.take(in_orthologs(section, orthologs)) for section in known]
    there = Counter(section.species for section in known if section.species)
    if reading.species in (None, "all"):
        if len(there) > 1 and reading.species is None:
            of_each = ", ".join(f"{n} of {species}" for species, n in sorted(there.items()))
            raise UsageError(
                f"the sections are of several species ({of_each}), whose genes are not the same; --species "
                f"{there.most_common(1)[0][0]} takes these alone, --orthologs FILE translates, --species all takes "
                "genes as they are spelt; where a command has none of these, sections.csv names what to read."
            )
        return known
    chosen = [section for section in known if section.species == reading.species]
    if not chosen:
        seen = ", ".join(sorted(there)) or "nothing that tells"
        raise UsageError(f"--species {reading.species}: no section is of it; their genes and tables say {seen}.")
    return chosen


def tell_species(genes: Sequence[str]) -> str:
    """Human or mouse, by the spelling of genes; "" if that does not tell."""
    if len(genes) >= LEAST_NAMES:
        for species, spelt in (("human", HUMAN), ("mouse", MOUSE)):
            if sum(spelt.fullmatch(gene) is not None for gene in genes) >= MOST * len(genes):
                return species
    return ""


def read_orthologs(path: Path) -> dict[str, str]:
    """The second column's gene by the first column's, for pairs of which neither has another partner.

    The table has a header line, and commas or tabs between its columns. Raises DatasetError if it is no such table.
    """
    table = read_table(path, sep=None, engine="python", dtype=str, keep_default_na=False)
    if table.shape[1] != 2:
        raise DatasetError(
            f"{path.name}: has {table.shape[1]} columns, and two are needed, under a header: genes of one species, and "
            "those of the other that they become."
        )
    pairs = {(unversioned(a.strip()), unversioned(b.strip())) for a, b in table.itertuples(index=False) if a and b}
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    found = {a: b for a, b in sorted(pairs) if first[a] == second[b] == 1}
    if not found:
        raise DatasetError(f"{path.name}: pairs no gene with one gene.")
    return found


def in_orthologs(section: Section, orthologs: dict[str, str]) -> Section:
    """The section under its orthologs' names, if it names more of the first column's genes than of the second's.

    Genes without an ortholog are then left out, and a note says how many. Raises DatasetError if no gene has one.
    """
    own = set(section.genes)
    if len(own & set(orthologs)) <= len(own & set(orthologs.values())):
        return section
    kept = [i for i, gene in enumerate(section.genes) if gene in orthologs]
    lost = [gene for gene in section.genes if gene not in orthologs]
    notes = (f"{len(lost)} genes have no ortholog and are left out: {some(lost)}",) if lost else ()
    return replace(
        section,
        genes=[orthologs[section.genes[i]] for i in kept],
        counts=in_memory(section.counts.rows()[:, kept]),
        symbols={},
        notes=(*section.notes, f"its genes go by their {len(kept)} orthologs", *notes),
    )
