"""All scores of a prediction beside those of the baselines, and notes on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
from scipy.special import stdtrit
from scipy.stats import spearmanr

from stpredict.arrays import Bool, Float, Int, Real
from stpredict.data.tiles import Tiles
from stpredict.evaluation.described import MOST_TAUGHT, is_described
from stpredict.evaluation.maps import GeneMap, choose_maps
from stpredict.evaluation.measured import Measured, Predicted, at, measure
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
from stpredict.evaluation.pieces import Piece, Row, join_pieces
from stpredict.evaluation.splits import (
    MODEL,
    RIDGE,
    SAME_PATIENT_MEAN,
    TRAINING_MEAN,
    TRUE_DEPTH,
    Baselines,
    Split,
    fit_baselines,
    score_test,
    true_depth,
)
from stpredict.statistics import metrics
from stpredict.statistics.blocks import blocks, rows_of_sections
from stpredict.statistics.conformal import LEVELS, empirical_coverage, half_widths, patients_needed
from stpredict.statistics.differences import between_groups, calibration
from stpredict.statistics.masks import measured_by_section
from stpredict.statistics.metrics import FALSE_DISCOVERIES, PATIENTS_FOR_INTERVALS, mean_of_known, rounded_mean
from stpredict.statistics.objectives import make_objective
from stpredict.statistics.sampling import draw_evenly
from stpredict.statistics.spatial import correlation_variance, false_discovery_rate, modified_t_test, moran_per_gene

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
    every, index = measure(tiles, predicted, known), predicted.index
    scored = np.isin(known, index)
    measured = every if scored.all() else at(every, np.flatnonzero(scored))
    found, how = score_rows(every, scored, predicted.expression, features, leak)
    del every
    counts, depth, section = measured.counts, measured.depth, measured.section
    ceiling = metrics.noise_ceiling(counts, depth, section)
    mean_ceiling = _mean_ceiling(ceiling, measured)
    rows = {name: score_row(row, measured, mean_ceiling, name) for name, row in found.items()}
    foreign = predicted.shares.foreign_unit
    if foreign:
        rows[MODEL] |= dict.fromkeys(OF_ONE_UNIT)
    by_row = {name: mean_of_known(row.controlled) for name, row in found.items()} | {CEILING: ceiling}
    by_chance, ceiling_by_chance = without_biology(predicted.expression, measured)
    per_gene, whole = score_model(predicted, measured, found[MODEL], by_row, leak)
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
        *about_what_baselines_know(found, there),
        f"noise ceiling {rounded_mean(ceiling)}; on counts without biology the model scores {by_chance}, "
        f"and the ceiling would be {ceiling_by_chance}",
        *about_model(whole, n_sections),
        *(() if foreign else about_prediction_intervals(whole["intervals"], n_patients, leak, unit)),
        about_intervals(n_patients, rows[MODEL]["interval"] is not None),
        *about_baselines(MODEL, rows, by_row),
    ]
    return Assessment(
        title, unit, sentences, rows, predicted.panel, per_gene, by_row,
        score_sections(found, measured), whole,
        choose_maps(predicted.panel, predicted.expression, found[MODEL].controlled, measured),
    )  # fmt: skip


def score_rows(
    known: Measured, scored: Bool, expression: Real, features: Float, leak: bool
) -> tuple[dict[str, Row], str]:  # fmt: skip
    """Scores of the baselines and, last, of the model's `expression` of the `scored` spots; how baselines were trained.

    A row is left out if a section lacks it.
    """
    splits, by = plan_splits(known, scored, leak)
    found = defaultdict[str, list[Piece]](list)
    for split in splits:
        predict = learn(split, features).predict if split.train.any() else partial(true_depth, split)
        for name, pieces in score_test(split, expression[split.test[scored]], predict, ranked=True).items():
            found[name] += pieces
    rows = {name: join_pieces(pieces) for name, pieces in found.items() if len(pieces) == len(found[MODEL])}
    if len(rows) > 2:
        return rows, f"baselines were trained on the data set's other {by}"
    return rows, "baselines that need training are missing: there is one section"


def plan_splits(known: Measured, scored: Bool, leak: bool) -> tuple[list[Split], str]:
    """The splits that the baselines of the `scored` spots are trained on, and whether by "patients" or "sections".

    Each patient is predicted from the others; each section, if there is one patient. If the model had a `leak`, the
    baselines have it, too, as they learn from the patient's other sections. They learn from no more spots than may be
    described.
    """
    by, groups = ("patients", known.patient) if len(set(known.patient)) > 1 and not leak else ("sections", known.part)
    taught = np.isin(np.arange(len(scored)), draw_evenly(known.section, MOST_TAUGHT))
    spots = known.counts, known.depth, known.section, known.patient, known.centres
    own = (groups == group for group in np.unique(groups[scored]))
    return [Split(*spots, taught & ~test, scored & test, known.per) for test in own], by


def learn(split: Split, features: Float) -> Baselines:
    """Baselines of a split, which learn Pearson residuals from its training spots."""
    train = np.flatnonzero(split.train)
    counts, depth, section = split.counts[train].astype(float), split.depth[train], split.section[train]
    objective = make_objective("residuals", counts, depth, section, np.ones(len(train), np.bool_), per=split.per)
    targets = objective.targets[is_described(features[train])]
    return fit_baselines(split, features, targets, objective.expression)


def without_biology(expression: Real, measured: Measured) -> tuple[float | None, float | None]:
    """What the prediction scores on counts without biology, and their noise ceiling: means over genes."""
    depth, section = measured.depth, measured.section
    noise = metrics.counts_without_biology(measured.counts, depth, section)
    by_chance = metrics.depth_controlled_correlation(expression, noise, depth, section)
    return rounded_mean(by_chance), rounded_mean(metrics.noise_ceiling(noise, depth, section))


def score_row(row: Row, measured: Measured, ceiling: float, name: str) -> dict[str, Any]:
    """One row of the tables: means over genes, and the quartiles of the first score. `ceiling` is the mean ceiling."""
    correlation = mean_of_known(row.controlled)
    known = correlation[np.isfinite(correlation)]
    mean, interval = _over_patients(row, measured) or (rounded_mean(correlation), None)
    pcc_m, pcc_h = row.pcc()
    scores: dict[str, Any] = {
        "depth_controlled": mean,
        "interval": interval,
        "quartiles": [round(float(q), 4) for q in np.percentile(known, (25, 50, 75))] if len(known) else None,
        "of_the_ceiling": mean / ceiling if mean is not None and ceiling > 0 else None,
        "log_cpm_pearson": rounded_mean(mean_of_known(row.log_cpm)),
        "log_cpm_spearman": rounded_mean(row.ranks),
        "pcc_m": _number(pcc_m),
        "pcc_h": _number(pcc_h),
    }
    if name in (TRAINING_MEAN, SAME_PATIENT_MEAN):
        scores = dict.fromkeys(scores)
    if name == TRUE_DEPTH:  # has no unit of expression
        return scores | dict.fromkeys(OF_ONE_UNIT)
    per_spot, *errors = row.of_spots()
    of_values = [value if np.isfinite(value) else None for value in errors]
    return scores | dict(zip(OF_ONE_UNIT, (_number(per_spot), *of_values), strict=True))


def score_model(
    predicted: Predicted, measured: Measured, row: Row, by_row: dict[str, Float], leak: bool
) -> tuple[dict[str, Float], dict[str, Any]]:
    """Scores of the model alone, whose `row` is given: per gene by the score's name, and over all genes."""
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
        "log_cpm_pearson": mean_of_known(row.log_cpm),
        "log_cpm_spearman": row.ranks,
        "moran_predicted": moran_predicted,
        "moran_measured": moran_measured,
        **({"ridge_depth_controlled": by_row[RIDGE]} if RIDGE in by_row else {}),
        "held_out_in_card": predicted.in_card,
    }
    foreign = predicted.shares.foreign_unit is not None
    possible = [
        level for level in LEVELS if not (leak or foreign) and len(set(measured.patient)) >= patients_needed(level)
    ]
    error = _errors(expression, measured) if possible else np.empty((0, 0))
    per_gene |= {f"half_width_{level:.0%}": half_widths(error, measured.patient, level) for level in possible}
    none = np.empty(0)
    low_to_high = (none, none) if foreign else calibration(expression, counts, depth, section)
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
                (name, between_groups(expression, counts, depth, groups, per))
                for name, groups in (("sections", section), ("patients", measured.patient))
            )
        },
        "intervals": [
            {
                "level": level,
                "median_half_width": width,
                "coverage": empirical_coverage(error, measured.patient, level),
            }
            for level in possible
            if (width := _median(per_gene[f"half_width_{level:.0%}"])) is not None
        ],
        "calibration": {
            name: [_number(x) for x in values]
            for name, values in zip(("predicted", "measured"), low_to_high, strict=True)
        },
    }
    return per_gene, whole


def score_sections(found: Mapping[str, Row], measured: Measured) -> list[dict[str, Any]]:
    """Per section its size, depth, noise ceiling and mean depth-controlled correlations; worst first."""
    sections = []
    for own in rows_of_sections(measured.section):
        counts, depth, section = measured.counts[own], measured.depth[own], measured.section[own]
        pieces = {row: values.of([section[0]]).pieces for row, values in found.items()}
        sections.append({
            "section": str(section[0]),
            "patient": str(measured.patient[own[0]]),
            "spots": len(own),
            "genes": int((~np.isnan(counts[0])).sum()),
            "median_depth": float(np.median(depth)),
            "noise_ceiling": rounded_mean(metrics.noise_ceiling(counts, depth, section)),
            "rows": {row: rounded_mean(some[0].controlled) if some else None for row, some in pieces.items()},
        })  # fmt: skip
    return sorted(sections, key=lambda one: (one["rows"][MODEL] is not None, one["rows"][MODEL], one["section"]))


def _errors(expression: Real, measured: Measured) -> Real:
    """How far the predicted expression is from the measured, spots x genes, float32."""
    error = np.empty_like(measured.counts)
    for some in blocks(*error.shape):
        observed = metrics.log_cpm(measured.counts[some], measured.depth[some], measured.per)
        error[some] = abs(expression[some] - observed)
    return error


def _over_patients(row: Row, measured: Measured) -> tuple[float, list[float]] | None:
    """Mean over patients of the mean depth-controlled correlation, and its 95 % Student interval; None for few."""
    parts = (row.of(sections) for _, sections in _patients(measured))
    means = _means(mean_of_known(part.controlled) for part in parts if part.pieces)
    if len(means) < PATIENTS_FOR_INTERVALS:
        return None
    mean, half = means.mean(), stdtrit(len(means) - 1, 0.975) * means.std(ddof=1) / np.sqrt(len(means))
    return round(float(mean), 4), [round(float(mean - half), 4), round(float(mean + half), 4)]


def _mean_ceiling(ceiling: Float, measured: Measured) -> float:
    """The mean noise ceiling over genes. If scores are means over patients, so is this: each patient counts once."""
    patients = _patients(measured)
    if len(patients) >= PATIENTS_FOR_INTERVALS:
        parts = (at(measured, own) for own, _ in patients)
        means = _means(metrics.noise_ceiling(part.counts, part.depth, part.section) for part in parts)
        if len(means) >= PATIENTS_FOR_INTERVALS:
            return float(means.mean())
    return rounded_mean(ceiling) or 0.0


def _patients(measured: Measured) -> list[tuple[Int, set[str]]]:
    """The spots and the sections of each patient."""
    spots = (np.flatnonzero(measured.patient == name) for name in np.unique(measured.patient))
    return [(own, set(measured.section[own].tolist())) for own in spots]


def _means(found: Iterable[Float]) -> Float:
    """The mean over genes of each patient that has one."""
    return np.array([values[np.isfinite(values)].mean() for values in found if np.isfinite(values).any()])


def _median(values: Float) -> float | None:
    known = values[np.isfinite(values)]
    return _number(float(np.median(known))) if len(known) else None


def _number(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
