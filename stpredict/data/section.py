"""One measured tissue section: an image, spots and their counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scipy.sparse import csr_array

from stpredict.arrays import Float
from stpredict.data.stored_patches import StoredPatches
from stpredict.errors import DatasetError
from stpredict.slides.slide import Mpp

#: For who lacks a slide.
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
    counts: csr_array
    lost_spots: int = 0  # in the selection or the counts, but not in both; or without a patch, where there is no slide
    spot_diameter_um: float = 100.0
    pitch_um: float = 200.0
    #: Whether its genes are all that were measured, so that another one has no count, rather than a count of zero.
    names_all_genes: bool = False
    #: The symbols of genes by Ensembl id, where its table has both.
    symbols: dict[str, str] = field(default_factory=dict)
    #: What there is of it where its slide is not at hand; `image` is then that file.
    patches: StoredPatches | None = None
    notes: tuple[str, ...] = ()  # what whoever uses the section should know, each a clause without a full stop


def demand_slides(sections: Sequence[Section], what: str) -> None:
    """Raises DatasetError where a section has patches alone, and `what` needs its slide."""
    for section in sections:
        if section.patches:
            raise DatasetError(
                f"{section.image.name}: holds patches alone, and {what} needs the slide of section {section.name}; "
                f"{WHERE_TO_PUT_SLIDES}."
            )
