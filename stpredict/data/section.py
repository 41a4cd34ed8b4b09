"""One measured tissue section: an image, spots and their counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from scipy.sparse import csr_array

from stpredict.arrays import Float
from stpredict.slides.slide import Mpp


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
    lost_spots: int = 0  # in the selection or the counts, but not in both
    spot_diameter_um: float = 100.0
    pitch_um: float = 200.0
    #: Whether its genes are all that were measured, so that another one has no count, rather than a count of zero.
    names_all_genes: bool = False
    #: The symbols of genes by Ensembl id, where its table has both.
    symbols: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what whoever uses the section should know, each a clause without a full stop
