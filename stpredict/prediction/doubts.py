"""Why a result is not to be trusted as a whole: warnings that `--strict` makes an error of.

They are read from the result alone, so that a later call that finds it comes to the same end as the one that wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stpredict.model.reference import UNUSUAL_FROM

#: What a result's provenance says, as a sentence that may follow the slide's name; None where there is no doubt.
Doubt = Callable[[Mapping[str, Any]], str | None]


def unlike_training(provenance: Mapping[str, Any]) -> str | None:
    """Too many patches that look unlike the training data."""
    share = float(provenance["unusual_patches"])
    if share <= UNUSUAL_FROM:
        return None
    return f"{share:.0%} of patches look unlike those the model was trained on; expect little."


def unlike_bright_field(provenance: Mapping[str, Any]) -> str | None:
    """A slide that does not look like H&E in bright field. Older results do not say."""
    said = provenance["slide"].get("appearance")
    return f"{said}." if said else None


#: A further kind of warning that means "do not trust" is a function here, and `--strict` heeds it.
DOUBTS: tuple[Doubt, ...] = (unlike_training, unlike_bright_field)


def doubts(provenance: Mapping[str, Any]) -> list[str]:
    """Why the result of this provenance is not to be trusted, a sentence for each reason."""
    return [said for doubt in DOUBTS if (said := doubt(provenance))]
