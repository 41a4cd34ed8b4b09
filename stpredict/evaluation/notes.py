"""What an evaluation says in words below its tables, a clause each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stpredict.arrays import Float
from stpredict.evaluation.splits import RIDGE
from stpredict.evaluation.tables import shown
from stpredict.statistics.conformal import describe_intervals
from stpredict.statistics.metrics import FALSE_DISCOVERIES, PATIENTS_FOR_INTERVALS


def about_constants(constant: dict[str, int], pairs: int) -> Iterator[str]:
    """A sentence for each kind of thing that cannot be correlated, where there is any."""
    said = {
        "genes_never_counted": "of the genes never counted, which have no score",
        "genes_not_counted_in_a_section": f"of {pairs} pairs of gene and section not counted, left out of the means",
        "predictions_constant_in_a_section": f"of {pairs} pairs of gene and section predicted constant, which scores 0",
        "spots_without_panel_counts": "of the spots without counts in the panel, so no correlation across genes",
    }
    yield from (f"{constant[key]} {sentence}" for key, sentence in said.items() if constant[key])


def about_model(whole: dict[str, Any], n_sections: int) -> Iterator[str]:
    """On chance, smoothness, and differences between sections and patients."""
    yield (
        f"{whole['genes_beyond_chance']} of {whole['genes_tested']} genes correlate beyond what unrelated maps as "
        f"smooth would (modified t-test, false discovery rate {FALSE_DISCOVERIES:.0%})"
    )
    moran = whole["moran"]
    yield (
        f"Moran's I of the maps: predicted {shown('', moran['predicted'])}, measured {shown('', moran['measured'])}; "
        f"rank correlation across genes {shown('', moran['spearman'])}"
    )
    for name, found in whole["between"].items():
        if found["correlation"] is not None:
            yield (
                f"between {name}: predicted against measured pseudobulk, "
                f"correlation {shown('', found['correlation'])}, slope {shown('', found['slope'])}"
            )
    if n_sections < 3:
        yield "differences between sections cannot be scored: there are fewer than three"


def about_prediction_intervals(
    intervals: list[dict[str, Any]], n_patients: int, leak: bool, unit: str
) -> Iterator[str]:
    """On the intervals that are to hold a measurement of a new patient, with its noise; none under a `leak`."""
    if leak:
        yield "no prediction intervals: the model was trained on patients of these names"
        return
    yield from describe_intervals(intervals, n_patients, unit)


def about_intervals(n_patients: int, known: bool) -> str:
    """On the intervals of the mean scores, if they are `known`."""
    if known:
        return (
            "depth-controlled means are over patients, each counting once, the other scores over sections; "
            f"intervals are 95 % Student intervals over {n_patients} patients"
        )
    people = "one patient" if n_patients == 1 else f"{n_patients} patients"
    scored = f" ({PATIENTS_FOR_INTERVALS} with a score are needed)"
    return f"{people}: too few for an interval{scored}, so these are single points"


def about_baselines(model: str, rows: dict[str, dict[str, Any]], by_row: dict[str, Float]) -> Iterator[str]:
    """Whether the row `model` beats the others."""
    if RIDGE in by_row:
        known = np.isfinite(by_row[model])
        share = float((by_row[model] > by_row[RIDGE])[known].mean()) if known.any() else float("nan")
        yield f"the model beats ridge on {share:.0%} of the genes"
    ours = rows[model]["depth_controlled"]
    ahead = [name for name, row in rows.items() if name != model and (row["depth_controlled"] or 0) >= (ours or 0)]
    if ahead:
        yield f"the model has learnt nothing that {' and '.join(ahead)} had not"
