"""The origin of a model that others made, from its card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NEVER_TESTED = "never tested by this program on held-out tissue"


@dataclass(frozen=True)
class Origin:
    """The authors' statements about a model, in their words; None for facts that they do not state."""

    by: str | None = None
    source: str | None = None
    licence: str | None = None
    tissue: str | None = None
    citation: str | None = None
    commercial: bool | None = None  # may it be used commercially?


def origin_of(card: dict[str, Any]) -> Origin | None:
    """A card's statements about the publisher of its model; None for a model that `train` made."""
    said = card.get("published")
    return None if said is None else Origin(**{key: said.get(key) for key in Origin.__dataclass_fields__})


def told_origin(card: dict[str, Any]) -> str | None:
    """One line on a published model: its authors, tissue, licence and unit, and whether it was tested here."""
    origin = origin_of(card)
    if origin is None:
        return None
    encoder = (card["training"].get("encoder") or {}).get("licence")
    licence = f"licence {origin.licence or 'not stated'}"
    licence += f" (encoder: {encoder})" if encoder else ""
    may = {True: ", commercial use allowed", False: ", not for commercial use", None: ""}[origin.commercial]
    parts = (
        f"published by {origin.by or 'somebody who is not named'}",
        f"from {origin.source}" if origin.source else None,
        f"trained on {origin.tissue}" if origin.tissue else "tissue it was trained on not stated",
        licence + may,
        f"unit, in its authors' words: {card['expression_unit']}",
        "tested by others than its authors (`models show` has the scores)" if card.get("notes") else NEVER_TESTED,
    )
    return f"{card['name']}: " + "; ".join(part for part in parts if part)
