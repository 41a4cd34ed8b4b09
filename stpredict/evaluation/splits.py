"""Score predictions of held-out spots beside predictors that never look at the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LinearRegression

from stpredict.arrays import Bool, Float, Labels
from stpredict.evaluation.baselines import fit_nearest_neighbours, fit_ridge
from stpredict.statistics import metrics
from stpredict.statistics.metrics import LOG_CPM_BY_SECTION, SPOTS_BY_SECTION, rounded_mean
from stpredict.statistics.objectives import Objective
from stpredict.statistics.spatial import correlation_error

#: Score names as they stand in cards and tables.
DEPTH_CONTROLLED = "depth_controlled"
LOG_CPM = "log_cpm_per_gene"
PER_SPOT = "log_cpm_per_spot"
RMSE = "log_cpm_rmse"
#: Predict the same for all spots of a section, so that no correlation over spots is theirs.
TRAINING_MEAN, SAME_PATIENT_MEAN = "training mean", "same-patient mean"
TRUE_DEPTH = "depth (true)"
RIDGE = "ridge on colour and texture"
NEIGHBOURS = "k nearest neighbours"

Scores = dict[str, float | None]


@dataclass(frozen=True)
class Split:
    """Spots of one data set, and which of them are for training and which for testing.

    `depth` is what shares are of, and expression ln(1 + `per` x share).
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
    """Scores of predicted expression of the test spots; without `across_genes` only the scores per gene."""
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
    """Test spots x genes as expression by what never looks at the image, and by ridge and nearest neighbours on colour
    and texture (n x 52), trained on the objective's targets.

    The true depth stands for itself and has no such unit.
    """
    train, test = split.train, split.test
    observed = metrics.log_cpm(split.counts, split.depth, split.per)
    n_test, n_genes = int(test.sum()), observed.shape[1]
    rows = {TRAINING_MEAN: np.tile(observed[train].mean(axis=0), (n_test, 1))}
    same_patient = np.zeros((n_test, n_genes))
    for patient in np.unique(split.patient[test]):
        own = train & (split.patient == patient)
        if not own.any():
            break
        same_patient[split.patient[test] == patient] = observed[own].mean(axis=0)
    else:
        rows[SAME_PATIENT_MEAN] = same_patient
    log_depth = np.log1p(split.depth)
    rows[TRUE_DEPTH] = np.tile(log_depth[test, None], n_genes)
    ridge_depth = fit_ridge(features[train], log_depth[train]).predict(features[test])
    on_depth = LinearRegression().fit(log_depth[train, None], observed[train])
    rows["depth (ridge)"] = on_depth.predict(ridge_depth[:, None])
    ridge = fit_ridge(features[train], objective.targets[train])
    # Of one gene scikit-learn makes a vector.
    rows[RIDGE] = objective.expression(ridge.predict(features[test]).reshape(n_test, n_genes))
    group = split.patient[train] if len(set(split.patient[train])) > 1 else split.section[train]
    neighbours = fit_nearest_neighbours(features[train], objective.targets[train], group)
    rows[NEIGHBOURS] = objective.expression(neighbours.predict(features[test]).reshape(n_test, n_genes))
    return rows


def evaluate_split(predicted: Float, split: Split, features: Float, objective: Objective) -> dict[str, Any]:
    """Everything that a card says of one held-out part: all rows, the noise ceiling, and of each gene its correlation.

    Beside that stand its standard error, from the effective number of spots, and ridge's correlation.
    """
    counts, depth, section = split.counts[split.test], split.depth[split.test], split.section[split.test]
    noise = metrics.counts_without_biology(counts, depth, section)
    per_gene = metrics.depth_controlled_correlation(predicted, counts, depth, section)
    ceiling = metrics.noise_ceiling(counts, depth, section)
    error = correlation_error(predicted, counts, depth, section, split.centres[split.test])
    baselines = predict_baselines(split, features, objective)
    ridge = metrics.depth_controlled_correlation(baselines[RIDGE], counts, depth, section)
    rows = {name: score(values, split, name != TRUE_DEPTH) for name, values in baselines.items()}
    for name in rows.keys() & {TRAINING_MEAN, SAME_PATIENT_MEAN}:
        rows[name] |= dict.fromkeys((DEPTH_CONTROLLED, LOG_CPM, "pcc_m", "pcc_h"))
    by_section = {
        name: [_listed(r) for r in metrics.correlations_of_sections(values, counts, depth, section, split.per)[0]]
        for name, values in (*baselines.items(), ("model", predicted))
    }
    return {
        "rows": {**rows, "model": score(predicted, split)},
        "noise_ceiling": rounded_mean(ceiling),
        "counts_without_biology": rounded_mean(metrics.depth_controlled_correlation(predicted, noise, depth, section)),
        "spots": int(split.test.sum()),
        "genes": len(per_gene),
        "genes_without_counts": int(np.isnan(per_gene).sum()),
        LOG_CPM_BY_SECTION: by_section,
        SPOTS_BY_SECTION: np.unique(section, return_counts=True)[1].tolist(),
        "per_gene": {
            "correlation": _listed(per_gene),
            "standard_error": _listed(error),
            "ridge": _listed(ridge),
            "noise_ceiling": _listed(ceiling),
        },
    }


def _listed(values: Float) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 4) for value in values]
