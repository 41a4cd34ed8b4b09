"""Reasons to distrust a result as a whole: warnings that `--strict` turns into an error.

They depend on the result alone, so that a later call that finds it ends like the call that wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stpredict.model.reference import UNUSUAL_FROM

#: From a result's provenance to a sentence that may follow the slide's name; None if there is no doubt.
Doubt = Callable[[Mapping[str, Any]], str | None]


def unlike_training(provenance: Mapping[str, Any]) -> str | None:
    """Too many patches that look unlike the training data."""
    share = float(provenance["unusual_patches"])
    if share <= UNUSUAL_FROM:
        return None
    return f"{share:.0%} of patches look unlike those the model was trained on; expect little."


def unlike_bright_field(provenance: Mapping[str, Any]) -> str | None:
    """A slide that does not look like H&E in bright field. Older results do not record it."""
    said = provenance["slide"].get("appearance")
    return f"{said}." if said else None


#: To add a warning that means "do not trust", add its function here. `--strict` heeds all of them.
DOUBTS: tuple[Doubt, ...] = (unlike_training, unlike_bright_field)


def doubts(provenance: Mapping[str, Any]) -> list[str]:
    """Why a result with this provenance is not to be trusted, a sentence for each reason."""
    return [said for doubt in DOUBTS if (said := doubt(provenance))]
