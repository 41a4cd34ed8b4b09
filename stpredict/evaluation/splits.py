"""Score predictions of held-out spots beside simpler predictors, most of which never look at the image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stpredict.arrays import Bool, Float, Int, Labels, Real
from stpredict.evaluation.baselines import NearestNeighbours, fit_neighbours, fit_ridge
from stpredict.evaluation.described import is_described
from stpredict.evaluation.pieces import Piece, Row, join_pieces, score_section
from stpredict.statistics import metrics
from stpredict.statistics.blocks import rows_of_sections
from stpredict.statistics.masks import measured_alike, measured_by_section
from stpredict.statistics.metrics import LOG_CPM_BY_SECTION, SPOTS_BY_SECTION, mean_of_known, rounded_mean
from stpredict.statistics.objectives import Objective
from stpredict.statistics.regression import LinearMap
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
MODEL = "model"

Scores = dict[str, float | None]


@dataclass(frozen=True)
class Split:
    """Spots of one data set, and which of them are for training and which for testing.

    A count is NaN if the spot's section did not measure the gene. A share is a count over `depth`; expression is
    ln(1 + `per` x share).
    """

    counts: Real  # spots x genes of the panel
    depth: Float
    section: Labels
    patient: Labels
    centres: Float  # level-0 pixels, n x 2
    train: Bool
    test: Bool
    per: float = metrics.PER_MILLION


@dataclass(frozen=True)
class Baselines:
    """What the baselines have learnt from the training spots of a `split`; `features` are of all its spots.

    A value is NaN for a gene that no training spot measured.
    """

    split: Split
    features: Float
    mean: Float  # expression per gene
    of_patient: dict[str, Float]  # the same of each patient
    at_depth: Line
    depth: LinearMap  # log depth from features
    ridge: LinearMap  # targets from features
    neighbours: list[tuple[Int | slice, NearestNeighbours]]  # the same, of some genes each
    expression: Callable[[Float], Float]  # from targets

    def predict(self, spots: Int) -> dict[str, Float]:
        """Predicted expression of some of the split's spots, spots x genes; NaN where features are."""
        shape, patient, features = (len(spots), len(self.mean)), self.split.patient[spots], self.features[spots]
        described = is_described(features)
        rows = {TRAINING_MEAN: np.broadcast_to(self.mean, shape)}
        names, own = np.unique(patient, return_inverse=True)
        if all(name in self.of_patient for name in names):
            rows[SAME_PATIENT_MEAN] = np.array([self.of_patient[name] for name in names])[own]
        rows |= true_depth(self.split, spots)

        def everywhere(values: Float) -> Float:
            if len(described) == len(spots):
                return values
            every = np.full(shape, np.nan)
            every[described] = values
            return every

        asked = features[described]
        rows["depth (ridge)"] = everywhere(self.at_depth.at(self.depth.predict(asked)))
        rows[RIDGE] = everywhere(self.expression(self.ridge.predict(asked)))
        nearest = np.full((len(asked), len(self.mean)), np.nan)
        for genes, fitted in self.neighbours:
            nearest[:, genes] = fitted.predict(asked)
        rows[NEIGHBOURS] = everywhere(self.expression(nearest))
        return rows


def true_depth(split: Split, spots: Int) -> dict[str, Float]:
    """The row that stands for the true depth, which has no unit of expression."""
    log_depth = np.log1p(split.depth[spots])
    return {TRUE_DEPTH: np.broadcast_to(log_depth[:, None], (len(spots), split.counts.shape[1]))}


def fit_baselines(
    split: Split, features: Float, targets: Float, expression: Callable[[Float], Float]
) -> Baselines:  # fmt: skip
    """Learn from the training spots. `targets`, which `expression` turns into expression, are of those described alone.

    Some baselines never look at the image; ridge and nearest neighbours read colour and texture (`features`, n x 52).
    Spots whose features are NaN are not learnt from.
    """
    train = np.flatnonzero(split.train)
    known = train[is_described(features[train])]
    patient, log_depth = split.patient[train], np.log1p(split.depth)
    observed = metrics.log_cpm(split.counts[train], split.depth[train], split.per)
    mean, at_depth = mean_of_known(observed), fit_line(log_depth[train], observed)
    of_patient = {name: mean_of_known(observed[patient == name]) for name in np.unique(patient)}
    del observed
    return Baselines(
        split, features, mean, of_patient, at_depth,
        fit_ridge(features[known], log_depth[known, None]), fit_ridge(features[known], targets),
        fit_neighbours(features[known], targets, split.patient[known], split.section[known]), expression,
    )  # fmt: skip


def predict_baselines(split: Split, features: Float, objective: Objective) -> dict[str, Float]:
    """The baselines' predicted expression, test spots x genes. All learn the objective's targets."""
    return _fit(split, features, objective).predict(np.flatnonzero(split.test))


def _fit(split: Split, features: Float, objective: Objective) -> Baselines:
    known = np.intersect1d(np.flatnonzero(split.train), is_described(features))
    return fit_baselines(split, features, objective.targets[known], objective.expression)


@dataclass(frozen=True)
class Line:
    """A line for each gene: expression is `middle` at the mean `log_depth` of training, and rises by `slope`."""

    log_depth: Float
    middle: Float
    slope: Float

    def at(self, log_depth: Float) -> Float:
        """Expression at log depths (n x 1), spots x genes."""
        expected: Float = self.middle + (log_depth - self.log_depth) * self.slope
        return expected


def fit_line(log_depth: Float, observed: Float) -> Line:
    """A line per gene through `observed` expression (spots x genes) at log depths; NaN if no spot measured the gene."""
    line = Line(*np.full((3, observed.shape[1]), np.nan))
    for alike in measured_alike(observed):
        if alike.empty:
            continue
        known, depth = alike.of(observed), log_depth[alike.rows]
        away, genes = depth - depth.mean(), alike.columns
        line.log_depth[genes], line.middle[genes] = depth.mean(), known.mean(axis=0)
        line.slope[genes] = away @ known / max(float(away @ away), np.finfo(float).tiny)
    return line


def score_test(
    split: Split, predicted: Real, predict: Callable[[Int], Mapping[str, Real]], ranked: bool = False
) -> dict[str, list[Piece]]:  # fmt: skip
    """The pieces of the test spots' scores: of the rows that `predict` gives for some spots, and of the model.

    `predicted` is the model's expression of all test spots, the others' is of a section's spots at a time.
    """
    test, pieces = np.flatnonzero(split.test), defaultdict[str, list[Piece]](list)
    for own in rows_of_sections(split.section[test]):
        spots = test[own]
        rows = {**predict(spots), MODEL: predicted[own]}
        label = str(split.section[spots[0]])
        found = score_section(label, rows, split.counts[spots], split.depth[spots], split.per, ranked)
        for name, piece in found.items():
            pieces[name].append(piece)
    return pieces


def score(predicted: Real, split: Split, across_genes: bool = True) -> Scores:
    """Scores of the test spots' predicted expression; without `across_genes`, only the scores per gene."""
    return scores_of(join_pieces(score_test(split, predicted, lambda _: {})[MODEL]), across_genes)


def scores_of(row: Row, across_genes: bool = True) -> Scores:
    """A row's scores; without `across_genes`, only the scores per gene."""
    per_spot, rmse, mse, mae = row.of_spots() if across_genes else (None,) * 4
    pcc_m, pcc_h = row.pcc()
    scores = {
        DEPTH_CONTROLLED: rounded_mean(mean_of_known(row.controlled)),
        LOG_CPM: rounded_mean(mean_of_known(row.log_cpm)),
        PER_SPOT: per_spot,
        RMSE: rmse,
        "pcc_m": pcc_m,
        "pcc_h": pcc_h,
        "mse": mse,
        "mae": mae,
    }
    return {name: None if value is None or not np.isfinite(value) else value for name, value in scores.items()}


def where_predicted(predicted: Real, split: Split) -> tuple[Real, Split]:
    """A baseline's prediction of the test spots that it predicts, and the split with these alone.

    If it predicts none, all test spots stay.
    """
    there = np.isfinite(predicted).any(axis=1)
    if there.all() or not there.any():
        return predicted, split
    return predicted[there], replace(split, test=np.isin(np.arange(len(split.test)), np.flatnonzero(split.test)[there]))


def evaluate_split(predicted: Real, split: Split, features: Float, objective: Objective) -> dict[str, Any]:
    """Everything that a card says of one held-out part: all rows, the noise ceiling, and each gene's correlation.

    Beside each correlation stand its standard error, from the effective number of spots, and ridge's correlation. If
    sections measured different genes, the number of test sections that measured each gene stands there, too.
    """
    counts, depth, section = split.counts[split.test], split.depth[split.test], split.section[split.test]
    noise = metrics.counts_without_biology(counts, depth, section)
    by_chance = rounded_mean(metrics.depth_controlled_correlation(predicted, noise, depth, section))
    del noise
    pieces = score_test(split, predicted, _fit(split, features, objective).predict)
    found = {name: join_pieces(parts) for name, parts in pieces.items() if len(parts) == len(pieces[MODEL])}
    per_gene, ridge = (mean_of_known(found[name].controlled) for name in (MODEL, RIDGE))
    ceiling = metrics.noise_ceiling(counts, depth, section)
    error = correlation_error(predicted, counts, depth, section, split.centres[split.test])
    measured = measured_by_section(counts, section).sum(axis=0)
    in_all = bool((measured == len(np.unique(section))).all())
    rows = {name: scores_of(row, name != TRUE_DEPTH) for name, row in found.items()}
    for name in rows.keys() & {TRAINING_MEAN, SAME_PATIENT_MEAN}:
        rows[name] |= dict.fromkeys((DEPTH_CONTROLLED, LOG_CPM, "pcc_m", "pcc_h"))
    return {
        "rows": rows,
        "noise_ceiling": rounded_mean(ceiling),
        "counts_without_biology": by_chance,
        "spots": int(split.test.sum()),
        "genes": len(per_gene),
        "genes_without_counts": int((np.isnan(per_gene) & (measured > 0)).sum()),
        **({} if in_all else {"genes_not_measured": int((measured == 0).sum())}),
        LOG_CPM_BY_SECTION: {name: [_listed(r) for r in row.log_cpm] for name, row in found.items()},
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
