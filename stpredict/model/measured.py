"""What a card says of where its genes were measured in training, where its sections differ in that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stpredict.errors import counted

if TYPE_CHECKING:
    from stpredict.data.tiles import Tiles

#: Keys of a card's genes, each a list over the panel: whether any training section measured the gene, and how many
#: sections and patients; and of each technology a list of how many sections.
IN_TRAINING, IN_SECTIONS, IN_PATIENTS = "measured_in_training", "measured_in_sections", "measured_in_patients"
BY_TECHNOLOGY = "measured_by"


def told_measured(card: dict[str, Any]) -> Iterator[str]:
    """A line for people; none where all training sections measured all genes."""
    genes = card["genes"]
    if not genes.get(IN_SECTIONS):
        return
    fewest, most = min(genes[IN_SECTIONS]), max(genes[IN_SECTIONS])
    of = f"{fewest} to {most}" if most > fewest else f"{most}"
    by = [f"{name} {counted(sum(map(bool, times)), 'gene')}" for name, times in sorted(genes[BY_TECHNOLOGY].items())]
    told = f" ({', '.join(by)})" if by else ""
    yield f"genes: each measured in {of} of {counted(len(card['training']['sections']), 'section')}{told}"


def measured_where(tiles: Tiles, panel: Sequence[str], sections: Sequence[str]) -> dict[str, Any]:
    """What a card says of a panel that was trained on some sections; nothing where all measured all."""
    measured = tiles.measured_by(sections, panel)
    if measured.all():
        return {}
    of_section = dict(zip(tiles.section.tolist(), tiles.kin.tolist(), strict=True))
    patients = np.array([of_section[name] for name in sections])
    in_patients = np.array([measured[patients == name].any(axis=0) for name in np.unique(patients)])
    technologies = np.array([tiles.technology.get(name, "") for name in sections])
    return {
        IN_TRAINING: measured.any(axis=0).tolist(),
        IN_SECTIONS: measured.sum(axis=0).tolist(),
        IN_PATIENTS: in_patients.sum(axis=0).tolist(),
        BY_TECHNOLOGY: {
            str(name): measured[technologies == name].sum(axis=0).tolist() for name in np.unique(technologies) if name
        },
    }
