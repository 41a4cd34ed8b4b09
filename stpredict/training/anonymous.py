"""Cards that number sections and patients rather than name them. The names stay in the run's folder."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from stpredict.data.tiles import Tiles
from stpredict.storage.files import atomic_path

#: In the folder of a run: the section or patient behind each number.
NAMES = "names.csv"
#: By kind, the fields of a card's training that hold names. A held-out part that is no patient holds sections.
OF_TRAINING = {
    "section": ("sections", "coarse_sections", "counts_only_sections"),
    "patient": ("patients", "counts_only_patients", "tissue_patients"),
}
OF_FOLDS = ("test", "train", "validation", "coarse_sections")

Names = dict[str, dict[str, str]]


def numbered(tiles: Tiles) -> Names:
    """By kind, an anonymous name for each patient and section of a tiles file, also those without images or counts."""
    both = [tiles, *([tiles.counts_only] if tiles.counts_only else [])]
    found = {kind: sorted({label for one in both for label in getattr(one, kind).tolist()}) for kind in OF_TRAINING}
    found["patient"] = sorted({*found["patient"], *tiles.tissue.values()})
    return {kind: {name: f"{kind} {number}" for number, name in enumerate(labels, 1)} for kind, labels in found.items()}


def write_names(names: Names, folder: Path) -> None:
    """Write the names behind the numbers to the run's folder, which is not given away with the model."""
    rows = [(called, name) for labels in names.values() for name, called in labels.items()]
    with atomic_path(folder / NAMES) as temporary, temporary.open("w", newline="") as file:
        csv.writer(file).writerows([("called", "name"), *rows])


def without_names(card: dict[str, Any], names: Names) -> dict[str, Any]:
    """The card with anonymous names; a held-out part may be several patients, or sections, together."""

    def call(kind: str, text: str) -> str:
        return names[kind].get(text) or "+".join(names[kind].get(part, part) for part in text.split("+"))

    training = dict(card["training"])
    for kind, keys in OF_TRAINING.items():
        training |= {key: [call(kind, name) for name in training[key]] for key in keys if key in training}
    folds = []
    for fold in card["held_out"]:
        listed = {key: [call("section", name) for name in fold[key]] for key in OF_FOLDS if fold.get(key)}
        folds.append({**fold, **listed, "name": call(fold["kind"], fold["name"])})
    return {**card, "training": {**training, "anonymous": True}, "held_out": folds}
