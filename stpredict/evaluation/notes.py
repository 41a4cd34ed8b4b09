"""The notes below an evaluation's tables, a clause each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from stpredict.arrays import Bool, Float
from stpredict.errors import counted
from stpredict.evaluation.pieces import Row
from stpredict.evaluation.splits import RIDGE
from stpredict.evaluation.tables import shown
from stpredict.statistics.conformal import describe_intervals
from stpredict.statistics.metrics import FALSE_DISCOVERIES, PATIENTS_FOR_INTERVALS


def about_foreign_unit(foreign: str | None, unit: str) -> Iterator[str]:
    """A note on the scores of a prediction whose unit measurements cannot have."""
    if foreign:
        yield (
            f"the model predicts {foreign!r}, a unit that these measurements do not have: correlations of each gene "
            f"and its maps make sense, and stand beside {unit} as measured; what compares values of different genes or "
            "needs one unit (per spot, RMSE, MSE, MAE, slopes, calibration, intervals), does not, and is left out"
        )


def about_measured(there: Bool) -> Iterator[str]:
    """A note on genes that only some scored sections measured; `there` is sections x genes."""
    n_sections, in_sections = len(there), there.sum(axis=0)
    rare = in_sections[(in_sections > 0) & (in_sections < n_sections)]
    if len(rare):
        low, high = rare.min(), rare.max()
        how_many = f"{low}" if low == high else f"{low} to {high}"
        yield (
            f"{counted(int((in_sections == n_sections).sum()), 'gene')} measured in all {n_sections} sections, "
            f"{len(rare):,} in {how_many} of {n_sections}; each is scored in the sections that measured it"
        )
    if none := int((in_sections == 0).sum()):
        yield f"{counted(none, 'gene')} measured in none of the scored sections, and without a score"


def about_what_baselines_know(rows: Mapping[str, Row], measured: Bool) -> Iterator[str]:
    """A note on genes that scored sections `measured` (sections x genes) and none did that the baselines learn from."""
    if RIDGE not in rows:
        return
    if unknown := int((measured.any(axis=0) & ~rows[RIDGE].known).sum()):
        genes = counted(unknown, "gene")
        yield f"the baselines know nothing of {genes}, measured in none of the sections that they learn from"


def about_constants(constant: dict[str, int], pairs: int) -> Iterator[str]:
    """A sentence for each kind of value that has no correlation, if there are any."""
    said = {
        "genes_never_counted": "of the genes never counted, which have no score",
        "genes_not_counted_in_a_section": f"of {pairs} pairs of gene and section not counted, left out of the means",
        "predictions_constant_in_a_section": f"of {pairs} pairs of gene and section predicted constant, which scores 0",
        "spots_without_panel_counts": "of the spots without counts in the panel, so no correlation across genes",
    }
    yield from (f"{constant[key]} {sentence}" for key, sentence in said.items() if constant[key])


def about_model(whole: dict[str, Any], n_sections: int) -> Iterator[str]:
    """Notes on chance, smoothness, and differences between sections and patients."""
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
    """Notes on the intervals meant to hold a new patient's measurement with its noise; none if there is a `leak`."""
    if leak:
        yield "no prediction intervals: the model was trained on patients of these names"
        return
    yield from describe_intervals(intervals, n_patients, unit)


def about_intervals(n_patients: int, known: bool) -> str:
    """A note on the intervals of the mean scores, or on why there are none."""
    if known:
        return (
            "depth-controlled means are over patients, each counting once, the other scores over sections; "
            f"intervals are 95 % Student intervals over {n_patients} patients"
        )
    people = "one patient" if n_patients == 1 else f"{n_patients} patients"
    scored = f" ({PATIENTS_FOR_INTERVALS} with a score are needed)"
    return f"{people}: too few for an interval{scored}, so these are single points"


def about_baselines(model: str, rows: dict[str, dict[str, Any]], by_row: dict[str, Float]) -> Iterator[str]:
    """Notes on whether the row `model` beats the others."""
    if RIDGE in by_row:
        known = np.isfinite(by_row[model]) & np.isfinite(by_row[RIDGE])
        share = float((by_row[model] > by_row[RIDGE])[known].mean()) if known.any() else float("nan")
        yield f"the model beats ridge on {share:.0%} of the genes"
    ours = rows[model]["depth_controlled"]
    ahead = [name for name, row in rows.items() if name != model and (row["depth_controlled"] or 0) >= (ours or 0)]
    if ahead:
        yield f"the model has learnt nothing that these had not: {', '.join(ahead)}"
