"""How many genes a panel, or several sections, cover: sentences on it, and refusals if these are too few."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stpredict.arrays import Bool, Float
from stpredict.data.genes import are_ensembl, why_not_shared
from stpredict.data.section import Section
from stpredict.errors import UsageError, some

#: A panel with fewer genes is an accident, unless the data measure so few or the user names the genes.
FEWEST_GENES = 50
#: The largest part of the spots that may have no counts in the panel.
MOST_LOST = 0.1
CHOOSE_SECTIONS = "choose sections that measured the same genes (--where, sections.csv)"
WAY_OUT = (
    f"take genes that only some sections measured (--panel coverage), {CHOOSE_SECTIONS}, or name genes (--genes-file)"
)


def about_panel(measured: Bool) -> str:
    """A sentence on a panel whose genes training sections `measured` in part (sections x genes)."""
    n_sections, n_genes = measured.shape
    fewest, most = (int(extreme(measured.sum(axis=0))) for extreme in (np.min, np.max))
    sections = "the only section" if n_sections == 1 else f"all {n_sections} sections"
    if fewest < n_sections:
        sections = f"{fewest} {f'to {most} ' if most > fewest else ''}of {n_sections} sections"
    return f"panel: {_number(n_genes, 'gene')}, {'measured' if fewest == n_sections else 'each measured'} in {sections}"


def demand_genes(n_genes: int, most_genes: int, what: str, why: str = "") -> None:
    """Raises UsageError for fewer genes than `FEWEST_GENES` if a section measured that many (`most_genes`)."""
    if n_genes < FEWEST_GENES <= most_genes:
        most = f"though one section measured {most_genes:,}{f', and {why}' if why else ''}"
        raise UsageError(f"{what} {_number(n_genes, 'gene')}, {most}; {WAY_OUT}.")


def demand_spots(depth: Float, counted: Bool, what: str) -> None:
    """Raises UsageError if too many spots with counts have none in `what`, whose counts sum to `depth` per spot."""
    lost, there = int((counted & (depth == 0)).sum()), int(counted.sum())
    if lost > MOST_LOST * there:
        raise UsageError(f"{lost:,} of {there:,} spots have no counts in {what}; {WAY_OUT}.")


def narrow(sections: Sequence[Section]) -> str:
    """The sections with the fewest measured genes, as a clause, if some measured far fewer than others."""
    named = sorted((section for section in sections if section.names_all_genes), key=lambda s: (len(s.genes), s.name))
    few = [f"{s.name} ({len(s.genes):,})" for s in named if len(s.genes) < len(named[-1].genes) / 2]
    return f"fewest were measured in {some(few)}" if few else ""


def why_nothing_shared(sections: Sequence[Section]) -> str:
    """Why sections may have no gene in common, and what to do."""
    first = sections[0].genes
    other = next((section for section in sections[1:] if set(first).isdisjoint(section.genes)), sections[-1])
    if reason := why_not_shared(first, other.genes):
        return reason
    if len({are_ensembl(section.genes) for section in sections}) > 1:
        return "do some name symbols, and others Ensembl ids?"
    return f"{narrow(sections) or 'their panels differ'}; {CHOOSE_SECTIONS}"


def widest(sections: Sequence[Section]) -> int:
    """The largest number of genes that a section measured."""
    return int(np.max([len(section.genes) for section in sections], initial=0))


def _number(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")
