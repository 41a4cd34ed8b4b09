"""All scores of a prediction beside those of the baselines, and notes on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy.special import stdtrit
from scipy.stats import spearmanr

from stpredict.arrays import Bool, Float, Int
from stpredict.data.tiles import Tiles
from stpredict.evaluation.maps import GeneMap, choose_maps
from stpredict.evaluation.measured import Measured, Predicted, in_section, measure, where_predicted
from stpredict.evaluation.notes import (
    about_baselines,
    about_constants,
    about_foreign_unit,
    about_intervals,
    about_measured,
    about_model,
    about_prediction_intervals,
    about_what_baselines_know,
)
from stpredict.evaluation.splits import (
    RIDGE,
    SAME_PATIENT_MEAN,
    TRAINING_MEAN,
    TRUE_DEPTH,
    Split,
    predict_baselines,
)
from stpredict.statistics import metrics
from stpredict.statistics.conformal import LEVELS, empirical_coverage, half_widths, patients_needed
from stpredict.statistics.masks import measured_by_section
from stpredict.statistics.metrics import FALSE_DISCOVERIES, PATIENTS_FOR_INTERVALS, rounded_mean
from stpredict.statistics.objectives import make_objective
from stpredict.statistics.spatial import correlation_variance, false_discovery_rate, modified_t_test, moran_per_gene

MODEL = "model"
#: Scores that compare predicted with measured values, and so need the same unit for both.
OF_ONE_UNIT = ("log_cpm_per_spot", "log_cpm_rmse", "mse", "mae")
CEILING = "noise ceiling"


@dataclass(frozen=True)
class Assessment:
    """Scores by row and name, scores per gene by name, and `notes` on them."""

    title: str
    unit: str  # of expression, in all rows
    notes: list[str]
    rows: dict[str, dict[str, Any]]
    genes: list[str]
    per_gene: dict[str, Float]
    by_row: dict[str, Float]  # each row's depth-controlled correlation per gene, and the noise ceiling
    sections: list[dict[str, Any]]  # worst first
    whole: dict[str, Any]  # of the model alone
    maps: list[GeneMap]
    pictures: dict[str, bytes] = field(default_factory=dict)  # per section, a WebP made of its spots' patches
    left_out: dict[str, str] = field(default_factory=dict)  # sections that could not be read, and why


def score_all(
    title: str, notes: Sequence[str], tiles: Tiles, predicted: Predicted, known: Int, features: Float,
    leak: bool = False,
) -> Assessment:  # fmt: skip
    """Scores of the prediction and of baselines that were trained on the data set's other patients or sections.

    `features` belong to the spots `known`, in the same order. The predicted spots are among these, and the baselines
    may train on all of them. `leak` says that the model was trained on patients that are scored.
    """
    index = predicted.index
    measured = measure(tiles, predicted, index)
    counts, depth, section = measured.counts, measured.depth, measured.section
    baselines, how = predict_rows(measure(tiles, predicted, known), np.isin(known, index), features, leak)
    ceiling = metrics.noise_ceiling(counts, depth, section)
    mean_ceiling = _mean_ceiling(ceiling, measured)
    scored = {name: where_predicted(values, measured) for name, values in baselines.items()}
    scored[MODEL] = predicted.expression, measured
    rows = {name: score_row(values, own, mean_ceiling, name) for name, (values, own) in scored.items()}
    foreign = predicted.shares.foreign_unit
    if foreign:
        rows[MODEL] |= dict.fromkeys(OF_ONE_UNIT)
    by_row = {name: depth_controlled(values, own) for name, (values, own) in scored.items()} | {CEILING: ceiling}
    noise = metrics.counts_without_biology(counts, depth, section)
    by_chance = metrics.depth_controlled_correlation(predicted.expression, noise, depth, section)
    per_gene, whole = score_model(predicted, measured, by_row, leak)
    unit = predicted.shares.normalisation.unit
    n_patients, n_sections = len(set(measured.patient)), len(set(section))
    there = measured_by_section(counts, section)
    sentences = [
        f"spots: {len(index)}, sections: {n_sections}, patients: {n_patients}, genes: {len(predicted.panel)}; "
        f"expression is {unit}",
        *notes,
        *about_foreign_unit(foreign, unit),
        *about_measured(there),
        *about_constants(whole["constant"], int(there.sum())),
        how,
        *about_what_baselines_know(baselines, counts),
        f"noise ceiling {rounded_mean(ceiling)}; on counts without biology the model scores {rounded_mean(by_chance)}, "
        f"and the ceiling would be {rounded_mean(metrics.noise_ceiling(noise, depth, section))}",
        *about_model(whole, n_sections),
        *(() if foreign else about_prediction_intervals(whole["intervals"], n_patients, leak, unit)),
        about_intervals(n_patients, rows[MODEL]["interval"] is not None),
        *about_baselines(MODEL, rows, by_row),
    ]
    return Assessment(
        title, unit, sentences, rows, predicted.panel, per_gene, by_row,
        score_sections(scored, measured), whole,
        choose_maps(predicted.panel, predicted.expression, counts, depth, section, measured.centres),
    )  # fmt: skip


def predict_rows(known: Measured, scored: Bool, features: Float, leak: bool) -> tuple[dict[str, Float], str]:
    """The baselines' predictions of the `scored` spots, and a sentence on how they were trained.

    Each patient is predicted from the others; each section, if there is one patient. If the model had a `leak`, the
    baselines have it, too, as they learn from the patient's other sections. A row is left out if a part lacks it.
    """
    counts, depth, section, patient = known.counts, known.depth, known.section, known.patient
    by, groups = ("patients", patient) if len(set(patient)) > 1 and not leak else ("sections", known.part)
    if len(set(groups)) == 1:
        rows = {TRUE_DEPTH: np.tile(np.log1p(depth[scored])[:, None], counts.shape[1])}
        return rows, "baselines that need training are missing: there is one section"
    parts = []
    for group in np.unique(groups[scored]):
        own = groups == group
        test = own & scored
        objective = make_objective("residuals", counts, depth, section, ~own, per=known.per)
        split = Split(counts, depth, section, patient, known.centres, ~own, test, known.per)
        parts.append((test[scored], predict_baselines(split, features, objective)))
    rows = {}
    for name in (name for name in parts[0][1] if all(name in predicted for _, predicted in parts)):
        rows[name] = np.empty((int(scored.sum()), counts.shape[1]))
        for test, predicted in parts:
            rows[name][test] = predicted[name]
    return rows, f"baselines were trained on the data set's other {by}"


def depth_controlled(predicted: Float, measured: Measured) -> Float:
    return metrics.depth_controlled_correlation(predicted, measured.counts, measured.depth, measured.section)


def score_row(predicted: Float, measured: Measured, ceiling: float, name: str) -> dict[str, Any]:
    """One row of the tables: means over genes, and the quartiles of the first score. `ceiling` is the mean ceiling."""
    counts, depth, section, per = measured.counts, measured.depth, measured.section, measured.per
    correlation = depth_controlled(predicted, measured)
    known = correlation[np.isfinite(correlation)]
    mean, interval = _over_patients(predicted, measured) or (rounded_mean(correlation), None)
    pcc_m, pcc_h = metrics.triplex_correlation(predicted, counts, depth, section, per)
    row: dict[str, Any] = {
        "depth_controlled": mean,
        "interval": interval,
        "quartiles": [round(float(q), 4) for q in np.percentile(known, (25, 50, 75))] if len(known) else None,
        "of_the_ceiling": mean / ceiling if mean is not None and ceiling > 0 else None,
        "log_cpm_pearson": rounded_mean(metrics.log_cpm_correlation(predicted, counts, depth, section, per)),
        "log_cpm_spearman": rounded_mean(metrics.log_cpm_rank_correlation(predicted, counts, depth, section, per)),
        "pcc_m": _number(pcc_m),
        "pcc_h": _number(pcc_h),
    }
    if name in (TRAINING_MEAN, SAME_PATIENT_MEAN):
        row = dict.fromkeys(row)
    if name == TRUE_DEPTH:  # has no unit of expression
        return row | dict.fromkeys(("log_cpm_per_spot", "log_cpm_rmse", "mse", "mae"))
    per_spot, rmse = metrics.spot_correlation(predicted, counts, depth, per)
    errors = dict(zip(("mse", "mae"), metrics.log_cpm_errors(predicted, counts, depth, per), strict=True))
    values = {"log_cpm_rmse": rmse, **errors}.items()
    of_values = {name: value if np.isfinite(value) else None for name, value in values}
    return row | {"log_cpm_per_spot": _number(per_spot), **of_values}


def score_model(
    predicted: Predicted, measured: Measured, by_row: dict[str, Float], leak: bool
) -> tuple[dict[str, Float], dict[str, Any]]:
    """Scores of the model alone: per gene by the score's name, and over all genes."""
    expression, counts, depth, section = predicted.expression, measured.counts, measured.depth, measured.section
    per = measured.per
    variance = correlation_variance(expression, counts, depth, section, measured.centres)
    p = modified_t_test(by_row[MODEL], variance)
    fdr = false_discovery_rate(p)
    moran_predicted, moran_measured = moran_per_gene(expression, counts, depth, section, measured.centres)
    both = np.isfinite(moran_predicted) & np.isfinite(moran_measured)
    agree = spearmanr(moran_predicted[both], moran_measured[both])[0] if both.sum() > 2 else np.nan
    per_gene = {
        "depth_controlled": by_row[MODEL],
        "sections": measured_by_section(counts, section).sum(axis=0),  # how many measured the gene
        "noise_ceiling": by_row[CEILING],
        "of_the_ceiling": np.divide(
            by_row[MODEL], by_row[CEILING], out=np.full_like(by_row[MODEL], np.nan), where=by_row[CEILING] > 0
        ),
        "p_value": p,
        "false_discovery_rate": fdr,
        "log_cpm_pearson": metrics.log_cpm_correlation(expression, counts, depth, section, per),
        "log_cpm_spearman": metrics.log_cpm_rank_correlation(expression, counts, depth, section, per),
        "moran_predicted": moran_predicted,
        "moran_measured": moran_measured,
        **({"ridge_depth_controlled": by_row[RIDGE]} if RIDGE in by_row else {}),
        "held_out_in_card": predicted.in_card,
    }
    error = abs(expression - metrics.log_cpm(counts, depth, per))
    foreign = predicted.shares.foreign_unit is not None
    possible = [
        level for level in LEVELS if not (leak or foreign) and len(set(measured.patient)) >= patients_needed(level)
    ]
    per_gene |= {f"half_width_{level:.0%}": half_widths(error, measured.patient, level) for level in possible}
    none = np.empty(0)
    low_to_high = (none, none) if foreign else metrics.calibration(expression, counts, depth, section)
    whole = {
        "constant": asdict(metrics.count_constant(expression, counts, section)),
        "genes_tested": int(np.isfinite(p).sum()),
        "genes_beyond_chance": int((fdr <= FALSE_DISCOVERIES).sum()),
        "moran": {
            "predicted": rounded_mean(moran_predicted),
            "measured": rounded_mean(moran_measured),
            "spearman": _number(agree),
        },
        "between": {}
        if foreign
        else {
            name: dict(zip(("correlation", "slope"), map(_number, found), strict=True))
            for name, found in (
                (name, metrics.between_groups(expression, counts, depth, groups, per))
                for name, groups in (("sections", section), ("patients", measured.patient))
            )
        },
        "intervals": [
            {
                "level": level,
                "median_half_width": _median(per_gene[f"half_width_{level:.0%}"]),
                "coverage": empirical_coverage(error, measured.patient, level),
            }
            for level in possible
        ],
        "calibration": {
            name: [_number(x) for x in values]
            for name, values in zip(("predicted", "measured"), low_to_high, strict=True)
        },
    }
    return per_gene, whole


def score_sections(scored: Mapping[str, tuple[Float, Measured]], measured: Measured) -> list[dict[str, Any]]:
    """Per section its size, depth, noise ceiling and mean depth-controlled correlations; worst first.

    `scored` has each row's prediction, with the measurements of the same spots."""
    found = []
    for name in np.unique(measured.section):
        own = measured.section == name
        counts, depth, section = measured.counts[own], measured.depth[own], measured.section[own]
        found.append({
            "section": str(name),
            "patient": str(measured.patient[own][0]),
            "spots": int(own.sum()),
            "genes": int((~np.isnan(counts[0])).sum()),
            "median_depth": float(np.median(depth)),
            "noise_ceiling": rounded_mean(metrics.noise_ceiling(counts, depth, section)),
            "rows": {
                row: rounded_mean(depth_controlled(*in_section(values, there, name)))
                for row, (values, there) in scored.items()
            },
        })  # fmt: skip
    return sorted(found, key=lambda one: (one["rows"][MODEL] is not None, one["rows"][MODEL], one["section"]))


def _over_patients(predicted: Float, measured: Measured) -> tuple[float, list[float]] | None:
    """Mean over patients of the mean depth-controlled correlation, and its 95 % Student interval; None for few."""
    means = _per_patient(
        measured,
        lambda own: metrics.depth_controlled_correlation(
            predicted[own], measured.counts[own], measured.depth[own], measured.section[own]
        ),
    )
    if len(means) < PATIENTS_FOR_INTERVALS:
        return None
    mean, half = means.mean(), stdtrit(len(means) - 1, 0.975) * means.std(ddof=1) / np.sqrt(len(means))
    return round(float(mean), 4), [round(float(mean - half), 4), round(float(mean + half), 4)]


def _mean_ceiling(ceiling: Float, measured: Measured) -> float:
    """The mean noise ceiling over genes. If scores are means over patients, so is this: each patient counts once."""
    means = _per_patient(
        measured, lambda own: metrics.noise_ceiling(measured.counts[own], measured.depth[own], measured.section[own])
    )
    return float(means.mean()) if len(means) >= PATIENTS_FOR_INTERVALS else rounded_mean(ceiling) or 0.0


def _per_patient(measured: Measured, score: Callable[[Bool], Float]) -> Float:
    """The mean over genes for each patient that has one."""
    found = (score(measured.patient == name) for name in np.unique(measured.patient))
    return np.array([values[np.isfinite(values)].mean() for values in found if np.isfinite(values).any()])


def _median(values: Float) -> float | None:
    known = values[np.isfinite(values)]
    return _number(float(np.median(known))) if len(known) else None


def _number(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
