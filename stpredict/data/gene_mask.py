"""Which sections measured which genes. If a section did not measure a gene, it has no count, not a count of zero."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from stpredict.arrays import Bool, Int
from stpredict.data.coverage import why_nothing_shared
from stpredict.data.section import Section
from stpredict.errors import DatasetError

#: Sections differ in genes if one lacks more than this part of the counted genes.
DIFFERENT = 0.1


@dataclass(frozen=True)
class GeneMask:
    """Which genes each section measured, sections x genes."""

    sections: list[str]
    table: Bool

    @cached_property
    def _row(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.sections)}

    def of(self, names: Iterable[str]) -> Bool:
        """The rows of the named sections, sections x genes."""
        return self.table[[self._row[name] for name in names]]

    def of_genes(self, columns: Int) -> GeneMask:
        """The same for some genes, by their positions."""
        return GeneMask(self.sections, self.table[:, columns])


def measured_genes(sections: Sequence[Section]) -> tuple[list[str], GeneMask | None]:
    """The genes that any section measured, sorted, and which section measured which; None if all measured all.

    Some tables list counted genes rather than all measured ones. Each of these measured what any of them lists.
    Raises DatasetError if some sections have no gene in common with any other.
    """
    genes = sorted(set().union(*(section.genes for section in sections)))
    column = {gene: i for i, gene in enumerate(genes)}
    table = np.zeros((len(sections), len(genes)), dtype=bool)
    for row, section in zip(table, sections, strict=True):
        row[[column[gene] for gene in section.genes]] = True
    listed = np.array([not section.names_all_genes for section in sections])
    table[listed] = table[listed].any(axis=0)
    if table.all():
        return genes, None
    if not are_linked(table):
        raise DatasetError(f"no gene was measured in all sections; {why_nothing_shared(sections)}")
    return genes, GeneMask([section.name for section in sections], table)


def about_genes(mask: GeneMask) -> str:
    """A sentence on sections that measured different genes."""
    n_genes, everywhere = mask.table.sum(axis=1), mask.table.all(axis=0).sum()
    return (
        f"sections measured {n_genes.min():,} to {n_genes.max():,} of {mask.table.shape[1]:,} genes, all of them "
        f"{everywhere:,}; a gene counts where it was measured"
    )


def are_linked(table: Bool) -> bool:
    """Whether shared genes link all sections (sections x genes), directly or through other sections."""
    kinds = csr_array(np.unique(table, axis=0).astype(np.int64))
    return int(connected_components(kinds @ kinds.T, directed=False)[0]) == 1


def differ(mask: GeneMask | None, names: Iterable[str], counted: Bool) -> bool:
    """Whether one of the sections lacks more than a tenth of the genes that are `counted` in any section."""
    if mask is None:
        return False
    lacking = (~mask.of(names) & counted).sum(axis=1)
    return bool((lacking > DIFFERENT * counted.sum()).any())
