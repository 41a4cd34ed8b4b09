"""One measured tissue section: an image, spots and their counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from scipy.sparse import csr_array

from stpredict.arrays import Float
from stpredict.data.counts import Counts, in_memory
from stpredict.data.stored_patches import StoredPatches
from stpredict.errors import DatasetError
from stpredict.slides.slide import Mpp

Kind = TypeVar("Kind")
#: Advice for users whose slide is missing.
WHERE_TO_PUT_SLIDES = "put the slide into wsis/, or name it in the column image of sections.csv"


@dataclass(frozen=True)
class Section:
    """A section of `patient`. `centres` are level-0 pixels (n x 2), `counts` spots x genes over all measured genes."""

    name: str
    patient: str
    image: Path
    mpp: Mpp
    spot_names: list[str]
    centres: Float
    genes: list[str]
    counts: Counts
    lost_spots: int = 0  # in the selection or the counts but not in both, or without slide and patch
    spot_diameter_um: float = 100.0
    pitch_um: float = 200.0
    #: Whether `genes` names all measured genes. Then another gene has no count, rather than a count of zero.
    names_all_genes: bool = False
    #: The symbols of genes by Ensembl id, if the section's table has both.
    symbols: dict[str, str] = field(default_factory=dict)
    #: Its patches, if its slide is not at hand; `image` is then their file.
    patches: StoredPatches | None = None
    technology: str = ""  # as the data set calls it, "" if it does not say
    species: str = ""  # "human", "mouse" or another name, "" if nothing tells
    notes: tuple[str, ...] = ()  # for users of the section, each a clause without a full stop


def without_counts(section: Section) -> Section:
    """The section without genes and counts, which cutting does not need."""
    return replace(section, genes=[], symbols={}, counts=in_memory(csr_array((len(section.spot_names), 0))))


class GeneNames:
    """The names that sections have for genes. Most sections have the same ones, which are then kept once."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._genes: list[list[str]] = []
        self._symbols: list[dict[str, str]] = []

    def shared(self, section: Section) -> Section:
        """The section. Its names, and its list and table of them if another section has equal ones, are shared."""
        name = self._names.setdefault
        genes = _known(self._genes, [name(gene, gene) for gene in section.genes])
        symbols = {name(gene, gene): name(symbol, symbol) for gene, symbol in section.symbols.items()}
        return replace(section, genes=genes, symbols=_known(self._symbols, symbols))


def _known(known: list[Kind], one: Kind) -> Kind:
    """The equal one of those that are `known`, or else `one`, which is known from then on."""
    for other in known:
        if other == one:
            return other
    known.append(one)
    return one


def demand_slides(sections: Sequence[Section], what: str) -> None:
    """Raises DatasetError if a section has patches alone. `what` needs slides."""
    for section in sections:
        if section.patches:
            raise DatasetError(
                f"{section.image.name}: holds patches alone, and {what} needs the slide of section {section.name}; "
                f"{WHERE_TO_PUT_SLIDES}."
            )
