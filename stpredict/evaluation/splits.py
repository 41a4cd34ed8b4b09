"""Score predictions of held-out spots beside simpler predictors, most of which never look at the image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stpredict.arrays import Bool, Float, Labels
from stpredict.evaluation.baselines import fit_ridge, predict_by_neighbours
from stpredict.evaluation.described import is_described
from stpredict.statistics import metrics
from stpredict.statistics.masks import measured_alike, measured_by_section
from stpredict.statistics.metrics import LOG_CPM_BY_SECTION, SPOTS_BY_SECTION, mean_of_known, rounded_mean
from stpredict.statistics.objectives import Objective
from stpredict.statistics.spatial import correlation_error

#: Names of scores in cards and tables.
DEPTH_CONTROLLED = "depth_controlled"
LOG_CPM = "log_cpm_per_gene"
PER_SPOT = "log_cpm_per_spot"
RMSE = "log_cpm_rmse"
#: Baselines with one prediction for all spots of a section: they have no correlation over spots.
TRAINING_MEAN, SAME_PATIENT_MEAN = "training mean", "same-patient mean"
TRUE_DEPTH = "depth (true)"
RIDGE = "ridge on colour and texture"
NEIGHBOURS = "k nearest neighbours"

Scores = dict[str, float | None]


@dataclass(frozen=True)
class Split:
    """Spots of one data set, and which of them are for training and which for testing.

    A count is NaN if the spot's section did not measure the gene. A share is a count over `depth`; expression is
    ln(1 + `per` x share).
    """

    counts: Float  # spots x genes of the panel
    depth: Float
    section: Labels
    patient: Labels
    centres: Float  # level-0 pixels, n x 2
    train: Bool
    test: Bool
    per: float = metrics.PER_MILLION


def score(predicted: Float, split: Split, across_genes: bool = True) -> Scores:
    """Scores of the test spots' predicted expression; without `across_genes`, only the scores per gene."""
    counts, depth, section = split.counts[split.test], split.depth[split.test], split.section[split.test]
    per_spot, rmse = metrics.spot_correlation(predicted, counts, depth, split.per) if across_genes else (None, None)
    mse, mae = metrics.log_cpm_errors(predicted, counts, depth, split.per) if across_genes else (None, None)
    pcc_m, pcc_h = metrics.triplex_correlation(predicted, counts, depth, section, split.per)
    scores = {
        DEPTH_CONTROLLED: rounded_mean(metrics.depth_controlled_correlation(predicted, counts, depth, section)),
        LOG_CPM: rounded_mean(metrics.log_cpm_correlation(predicted, counts, depth, section, split.per)),
        PER_SPOT: per_spot,
        RMSE: rmse,
        "pcc_m": pcc_m,
        "pcc_h": pcc_h,
        "mse": mse,
        "mae": mae,
    }
    return {name: None if value is None or not np.isfinite(value) else value for name, value in scores.items()}


def predict_baselines(split: Split, features: Float, objective: Objective) -> dict[str, Float]:
    """The baselines' predicted expression, test spots x genes.

    Some never look at the image; ridge and nearest neighbours read colour and texture (`features`, n x 52). All learn
    the objective's targets. The true depth stands for itself and has no unit of expression. Spots whose features are
    NaN are not learnt from, and predictions from such features are NaN. So is every prediction of a gene that no
    training spot measured.
    """
    train, test = split.train, split.test
    observed = metrics.log_cpm(split.counts[train], split.depth[train], split.per)
    shape = int(test.sum()), observed.shape[1]
    rows: dict[str, Float] = {TRAINING_MEAN: np.broadcast_to(mean_of_known(observed), shape)}
    same_patient = np.zeros(shape)
    for patient in np.unique(split.patient[test]):
        own = split.patient[train] == patient
        if not own.any():
            break
        same_patient[split.patient[test] == patient] = mean_of_known(observed[own])
    else:
        rows[SAME_PATIENT_MEAN] = same_patient
    log_depth = np.log1p(split.depth)
    rows[TRUE_DEPTH] = np.broadcast_to(log_depth[test, None], shape)
    described = np.isin(np.arange(len(features)), is_described(features))
    known, asked = train & described, features[test & described]

    def of_described(values: Float) -> Float:
        every = np.full(shape, np.nan)
        every[described[test]] = values
        return every

    ridge_depth = fit_ridge(features[known], log_depth[known, None]).predict(asked)
    rows["depth (ridge)"] = of_described(expression_at_depth(log_depth[train], observed, ridge_depth))
    del observed
    ridge = fit_ridge(features[known], objective.targets[known])
    rows[RIDGE] = of_described(objective.expression(ridge.predict(asked)))
    neighbours = predict_by_neighbours(
        features[known], objective.targets[known], asked, split.patient[known], split.section[known]
    )
    rows[NEIGHBOURS] = of_described(objective.expression(neighbours))
    return rows


def expression_at_depth(log_depth: Float, observed: Float, asked: Float) -> Float:
    """Expression at log depths `asked` (n x 1), by a line per gene through `observed` expression (spots x genes)."""
    expected = np.full((len(asked), observed.shape[1]), np.nan)
    for alike in measured_alike(observed):
        if alike.empty:
            continue
        known, depth = alike.of(observed), log_depth[alike.rows]
        away = depth - depth.mean()
        slope = away @ known / max(float(away @ away), np.finfo(float).tiny)
        expected[:, alike.columns] = known.mean(axis=0) + (asked - depth.mean()) * slope
    return expected


def where_predicted(predicted: Float, split: Split) -> tuple[Float, Split]:
    """A baseline's prediction of the test spots that it predicts, and the split with these alone.

    If it predicts none, all test spots stay.
    """
    there = np.isfinite(predicted).any(axis=1)
    if there.all() or not there.any():
        return predicted, split
    return predicted[there], replace(split, test=np.isin(np.arange(len(split.test)), np.flatnonzero(split.test)[there]))


def depth_controlled(predicted: Float, split: Split) -> Float:
    """The first score, per gene, of the test spots' predicted expression."""
    test = split.test
    return metrics.depth_controlled_correlation(predicted, split.counts[test], split.depth[test], split.section[test])


def correlations_of_sections(predicted: Float, split: Split) -> Float:
    """Correlation of ln(1 + CPM) over the test spots, sections (sorted) x genes."""
    counts, depth, section = split.counts[split.test], split.depth[split.test], split.section[split.test]
    return metrics.correlations_of_sections(predicted, counts, depth, section, split.per)[0]


def evaluate_split(predicted: Float, split: Split, features: Float, objective: Objective) -> dict[str, Any]:
    """Everything that a card says of one held-out part: all rows, the noise ceiling, and each gene's correlation.

    Beside each correlation stand its standard error, from the effective number of spots, and ridge's correlation. If
    sections measured different genes, the number of test sections that measured each gene stands there, too.
    """
    counts, depth, section = split.counts[split.test], split.depth[split.test], split.section[split.test]
    noise = metrics.counts_without_biology(counts, depth, section)
    per_gene = metrics.depth_controlled_correlation(predicted, counts, depth, section)
    ceiling = metrics.noise_ceiling(counts, depth, section)
    error = correlation_error(predicted, counts, depth, section, split.centres[split.test])
    measured = measured_by_section(counts, section).sum(axis=0)
    in_all = bool((measured == len(np.unique(section))).all())
    baselines = predict_baselines(split, features, objective)
    ridge = depth_controlled(*where_predicted(baselines[RIDGE], split))
    rows = {name: score(*where_predicted(values, split), name != TRUE_DEPTH) for name, values in baselines.items()}
    for name in rows.keys() & {TRAINING_MEAN, SAME_PATIENT_MEAN}:
        rows[name] |= dict.fromkeys((DEPTH_CONTROLLED, LOG_CPM, "pcc_m", "pcc_h"))
    by_section = {
        name: [_listed(r) for r in correlations_of_sections(values, own)]
        for name, (values, own) in (
            *((name, where_predicted(values, split)) for name, values in baselines.items()),
            ("model", (predicted, split)),
        )
    }
    return {
        "rows": {**rows, "model": score(predicted, split)},
        "noise_ceiling": rounded_mean(ceiling),
        "counts_without_biology": rounded_mean(metrics.depth_controlled_correlation(predicted, noise, depth, section)),
        "spots": int(split.test.sum()),
        "genes": len(per_gene),
        "genes_without_counts": int((np.isnan(per_gene) & (measured > 0)).sum()),
        **({} if in_all else {"genes_not_measured": int((measured == 0).sum())}),
        LOG_CPM_BY_SECTION: by_section,
        SPOTS_BY_SECTION: np.unique(section, return_counts=True)[1].tolist(),
        "per_gene": {
            "correlation": _listed(per_gene),
            "standard_error": _listed(error),
            "ridge": _listed(ridge),
            "noise_ceiling": _listed(ceiling),
            **({} if in_all else {"sections": measured.tolist()}),
        },
    }


def _listed(values: Float) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 4) for value in values]
