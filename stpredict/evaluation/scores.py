"""All scores of a prediction beside those of the baselines, and what is to be said of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy.special import stdtrit
from scipy.stats import spearmanr

from stpredict.arrays import Bool, Float, Int, Labels
from stpredict.data.tiles import Tiles
from stpredict.data.twins import tied_patients
from stpredict.evaluation.maps import GeneMap, choose_maps
from stpredict.evaluation.notes import (
    about_baselines,
    about_constants,
    about_intervals,
    about_model,
    about_prediction_intervals,
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
from stpredict.statistics.metrics import FALSE_DISCOVERIES, PATIENTS_FOR_INTERVALS, rounded_mean
from stpredict.statistics.normalisation import Normalisation
from stpredict.statistics.objectives import make_objective
from stpredict.statistics.spatial import correlation_variance, false_discovery_rate, modified_t_test, moran_per_gene

MODEL = "model"
CEILING = "noise ceiling"


@dataclass(frozen=True)
class Shares:
    """What expression is made of: shares of `depth`, which is of all spots of the data set."""

    depth: Float
    normalisation: Normalisation


@dataclass(frozen=True)
class Predicted:
    """Expression of the data set's spots `index` for the genes `panel`, and each gene's correlation in the card."""

    index: Int
    panel: list[str]
    expression: Float
    in_card: Float
    shares: Shares


@dataclass(frozen=True)
class Measured:
    """What was measured in the scored spots. `counts` are spots x genes of the panel, `centres` level-0 pixels.

    Expression is ln(1 + `per` x counts / `depth`). Sections that are one have one `part`, and their patients one label.
    """

    counts: Float
    depth: Float
    section: Labels
    patient: Labels
    centres: Float
    per: float
    part: Labels


@dataclass(frozen=True)
class Assessment:
    """Scores by row and name, scores per gene by name, and in `notes` what to know of them."""

    title: str
    unit: str  # of expression, in all rows
    notes: list[str]
    rows: dict[str, dict[str, Any]]
    genes: list[str]
    per_gene: dict[str, Float]
    by_row: dict[str, Float]  # each row's depth-controlled correlation per gene, and the noise ceiling
    sections: list[dict[str, Any]]  # worst first
    whole: dict[str, Any]  # what is said of the model alone
    maps: list[GeneMap]
    pictures: dict[str, bytes] = field(default_factory=dict)  # per section a WebP made of its spots' patches


def score_all(
    title: str, notes: Sequence[str], tiles: Tiles, predicted: Predicted, known: Int, features: Float,
    leak: bool = False,
) -> Assessment:  # fmt: skip
    """Scores of the prediction and of baselines that were trained on the data set's other patients or sections.

    `features` are of the spots `known`, in order, the predicted ones among them; the baselines may train on all of
    these. `leak` says that the model was trained on patients that are scored.
    """
    index = predicted.index
    measured = measure(tiles, predicted, index)
    counts, depth, section = measured.counts, measured.depth, measured.section
    baselines, how = predict_rows(measure(tiles, predicted, known), np.isin(known, index), features, leak)
    predictions = {**baselines, MODEL: predicted.expression}
    ceiling = metrics.noise_ceiling(counts, depth, section)
    mean_ceiling = _mean_ceiling(ceiling, measured)
    rows = {name: score_row(values, measured, mean_ceiling, name) for name, values in predictions.items()}
    by_row = {name: depth_controlled(values, measured) for name, values in predictions.items()} | {CEILING: ceiling}
    noise = metrics.counts_without_biology(counts, depth, section)
    by_chance = metrics.depth_controlled_correlation(predicted.expression, noise, depth, section)
    per_gene, whole = score_model(predicted, measured, by_row, leak)
    unit = predicted.shares.normalisation.unit
    n_patients, n_sections = len(set(measured.patient)), len(set(section))
    sentences = [
        f"spots: {len(index)}, sections: {n_sections}, patients: {n_patients}, genes: {len(predicted.panel)}; "
        f"expression is {unit}",
        *notes,
        *about_constants(whole["constant"], n_sections * len(predicted.panel)),
        how,
        f"noise ceiling {rounded_mean(ceiling)}; on counts without biology the model scores {rounded_mean(by_chance)}, "
        f"and the ceiling would be {rounded_mean(metrics.noise_ceiling(noise, depth, section))}",
        *about_model(whole, n_sections),
        *about_prediction_intervals(whole["intervals"], n_patients, leak, unit),
        about_intervals(n_patients, rows[MODEL]["interval"] is not None),
        *about_baselines(MODEL, rows, by_row),
    ]
    return Assessment(
        title, unit, sentences, rows, predicted.panel, per_gene, by_row,
        score_sections(predictions, measured), whole,
        choose_maps(predicted.panel, predicted.expression, counts, depth, section, measured.centres),
    )  # fmt: skip


def measure(tiles: Tiles, predicted: Predicted, index: Int) -> Measured:
    """What was measured in the spots `index`."""
    return Measured(
        tiles.panel_counts(predicted.panel)[index], predicted.shares.depth[index], tiles.section[index],
        tiles.kin[index], tiles.centres[index], predicted.shares.normalisation.per,
        tied_patients(tiles.section, tiles.section, tiles.twins)[index],
    )  # fmt: skip


def predict_rows(known: Measured, scored: Bool, features: Float, leak: bool) -> tuple[dict[str, Float], str]:
    """The `scored` spots as the baselines predict each patient's (sections', where there is one patient) from the rest.

    Where the model had a `leak` they have it, too, as far as other sections go. Rows that not every one of them has are
    left out. Comes with a sentence on how they were trained.
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
    """One row of the tables: means over genes, and the quartiles of the first score; `ceiling` is the mean one."""
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
    mse, mae = metrics.log_cpm_errors(predicted, counts, depth, per)
    return row | {"log_cpm_per_spot": _number(per_spot), "log_cpm_rmse": rmse, "mse": mse, "mae": mae}


def score_model(
    predicted: Predicted, measured: Measured, by_row: dict[str, Float], leak: bool
) -> tuple[dict[str, Float], dict[str, Any]]:
    """What is scored of the model alone: per gene by name, and over all genes."""
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
    possible = [level for level in LEVELS if not leak and len(set(measured.patient)) >= patients_needed(level)]
    per_gene |= {f"half_width_{level:.0%}": half_widths(error, measured.patient, level) for level in possible}
    low_to_high = metrics.calibration(expression, counts, depth, section)
    whole = {
        "constant": asdict(metrics.count_constant(expression, counts, section)),
        "genes_tested": int(np.isfinite(p).sum()),
        "genes_beyond_chance": int((fdr <= FALSE_DISCOVERIES).sum()),
        "moran": {
            "predicted": rounded_mean(moran_predicted),
            "measured": rounded_mean(moran_measured),
            "spearman": _number(agree),
        },
        "between": {
            name: dict(zip(("correlation", "slope"), map(_number, found), strict=True))
            for name, found in (
                (name, metrics.between_groups(expression, counts, depth, groups, per))
                for name, groups in (("sections", section), ("patients", measured.patient))
            )
        },
        "intervals": [
            {
                "level": level,
                "median_half_width": _number(float(np.median(per_gene[f"half_width_{level:.0%}"]))),
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


def score_sections(predictions: dict[str, Float], measured: Measured) -> list[dict[str, Any]]:
    """Per section its size, depth, noise ceiling and the rows' mean depth-controlled correlations; worst first."""
    found = []
    for name in np.unique(measured.section):
        own = measured.section == name
        counts, depth, section = measured.counts[own], measured.depth[own], measured.section[own]
        found.append({
            "section": str(name),
            "patient": str(measured.patient[own][0]),
            "spots": int(own.sum()),
            "median_depth": float(np.median(depth)),
            "noise_ceiling": rounded_mean(metrics.noise_ceiling(counts, depth, section)),
            "rows": {
                row: rounded_mean(metrics.depth_controlled_correlation(values[own], counts, depth, section))
                for row, values in predictions.items()
            },
        })  # fmt: skip
    return sorted(found, key=lambda one: (one["rows"][MODEL] is not None, one["rows"][MODEL], one["section"]))


def _over_patients(predicted: Float, measured: Measured) -> tuple[float, list[float]] | None:
    """Mean over patients of the mean depth-controlled correlation and its 95 % Student interval; None for few."""
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
    """The mean noise ceiling over genes; over patients first, each counting once, where scores are taken so."""
    means = _per_patient(
        measured, lambda own: metrics.noise_ceiling(measured.counts[own], measured.depth[own], measured.section[own])
    )
    return float(means.mean()) if len(means) >= PATIENTS_FOR_INTERVALS else rounded_mean(ceiling) or 0.0


def _per_patient(measured: Measured, score: Callable[[Bool], Float]) -> Float:
    """A mean over genes of each patient that has one."""
    found = (score(measured.patient == name) for name in np.unique(measured.patient))
    return np.array([values[np.isfinite(values)].mean() for values in found if np.isfinite(values).any()])


def _number(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
