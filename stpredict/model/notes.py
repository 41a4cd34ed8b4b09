"""Notes on a model's scores on measured sections after it was made, kept in its file, beside its card.

A note is by somebody, about some sections, and not part of the model: results and caches stay valid.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stpredict.errors import UsageError, counted, first_line
from stpredict.model.file import Model, save_model

#: Scores to keep of the model's row in an evaluation, and their names.
SCORES = {"depth_controlled": "depth-controlled", "log_cpm_pearson": "expression per gene"}
RIDGE = "ridge on colour and texture"
MAX_BYTES = 64 << 20


def read_evaluation(path: Path, model: Model, whose: str) -> dict[str, Any]:
    """A note on a model from a file of `evaluate`. Raises UsageError for any other file, or another model's."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError("it is too large")
        said = json.loads(path.read_text())
        of, rows = said["model"], said["rows"]
        note = {
            "whose": whose,
            "data_set": str(said["data_set"]),
            "title": str(said["title"]),
            "unit": str(said["unit"]),
            "sections": len(said["sections"]),
            "patients": len({one["patient"] for one in said["sections"]}),
            "spots": sum(int(one["spots"]) for one in said["sections"]),
            "scores": {key: rows["model"][key] for key in SCORES},
            "ridge": {key: rows[RIDGE][key] for key in SCORES} if RIDGE in rows else None,
            "stpredict": str(said["stpredict"]),
            "noted": datetime.now(UTC).date().isoformat(),
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{path}: not what evaluate writes of a model (.evaluation.json; {first_line(error)})."
        ) from error
    if of != model.sha256:
        raise UsageError(f"{path.name}: scores another model than {model.name}, or another state of its file.")
    return note


def add_note(model: Model, note: Mapping[str, Any]) -> None:
    """Add a note to the model's file; its card, tensors and sha256 stay as they are."""
    save_model(model.path, model.tensors, {**model.card, "notes": [*model.card.get("notes", []), dict(note)]})


def show_notes(card: Mapping[str, Any]) -> Iterator[str]:
    """A line for each note."""
    for note in card.get("notes", []):
        scores = ", ".join(
            f"{title} correlation {_shown(note['scores'].get(key))}"
            + (f" (ridge {_shown(note['ridge'].get(key))})" if note.get("ridge") else "")
            for key, title in SCORES.items()
        )
        yield (
            f"noted {note['noted']} of {note['data_set']} ({note['whose']}): {scores}; "
            f"{counted(note['spots'], 'spot')}, {counted(note['sections'], 'section')}, "
            f"{counted(note['patients'], 'patient')}"
        )


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
