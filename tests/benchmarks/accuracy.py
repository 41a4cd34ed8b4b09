"""Which recipe predicts expression best from few measured spots; writes accuracy.md beside this script.

    python tests/benchmarks/accuracy.py SHARED_FOLDER SCRATCH_FOLDER [ROW...]

SHARED_FOLDER holds `data/her2st` (with images) and `data/her2st-counts` (without). Without ROWs all of ROWS are
predicted; predictions are kept in SCRATCH_FOLDER, and the tables are of all that lie there. Compared with ridge
regression on the 52 colour and texture features:

- *dictionary*: k-means of whitened windows of optical density, learnt on unlabelled patches of the training sections; a
  patch is described by how near its windows are to each centre (Coates, Lee and Ng 2011);
- *programmes*: how genes vary together, learnt from counts alone as the covariance of their two halves, whose noise is
  independent. Ridge regression runs along its eigenvectors, each penalised by the inverse square of its variance;
- *small M2ORT*, trained on the spots, or before that taught on unlabelled patches what another predicts for them;
- whole systems: M2ORT-Small, M2OST and TRIPLEX, all trained alike;
- M2ORT *taught densely*: each of its tokens what the dictionary sees there, its head then fitted along programmes;
- the same with other lessons: of squares around each token, of parts of it, or of tokens that are masked.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accuracy_lessons import LESSON_ROWS, teach_lessons
from accuracy_networks import DENSE, RECIPES, SYSTEMS, teach_dense, train_student, train_system
from accuracy_splits import SPLITS, Part, open_data, open_part, save
from accuracy_tables import write_report

from stpredict.arrays import Float, Labels
from stpredict.evaluation.baselines import fit_ridge
from stpredict.machine import usable_cores
from stpredict.statistics.spatial import neighbour_mean
from stpredict.training.programmes import N_PROGRAMMES, fit_programmes


@dataclass(frozen=True)
class Row:
    """What is fitted, how often, each time from another seed, and on which splits."""

    words: str
    seeds: int
    splits: tuple[str, ...] = tuple(SPLITS)


#: Those that draw nothing, or are made of all seeds, have one.
ROWS = {
    "ridge": Row("52 features, ridge", 1),
    "ridge-scaled": Row("52 features scaled within each section, ridge", 1),
    "features-own": Row("52 features, programmes of own counts", 1),
    "features-all": Row("52 features, programmes of all counts", 1),
    "dictionary-ridge": Row("dictionary, ridge", 3),
    "dictionary-own": Row("dictionary, programmes of own counts", 3),
    "dictionary-all": Row("dictionary, programmes of all counts", 3),
    "dictionary-scaled": Row("the same, features scaled within each section", 3),
    "dictionary-tta": Row("dictionary, programmes of all counts; tested on the mean of eight turns", 3),
    "dictionary-turned": Row("the same, fitted on the mean of eight turns too", 3),
    "dictionary-cropped": Row("the same, fitted and tested on the mean of five overlapping parts of a patch", 3),
    "dictionary-varied": Row("dictionary, programmes of all counts; fitted on patches of varied stains", 3),
    "dictionary-many": Row("dictionary of 400 windows, programmes of all counts", 3),
    "dictionary-smooth": Row("dictionary, programmes of all counts; training labels smoothed over neighbours", 3),
    "dictionary-around": Row("the same, half of a prediction the mean over the spot and its neighbours", 3),
    "dictionary-ensemble": Row("mean of three seeds of `dictionary-all`", 1),
    "dictionary-even": Row("dictionary, programmes penalised by the inverse of their variance, not of its square", 3),
    "dictionary-few": Row("dictionary, only 3 programmes of all counts", 3),
    "shuffled": Row("control: programmes of shuffled genes", 3),
    **{row: Row(f"small M2ORT, {recipe.words}", 3) for row, recipe in RECIPES.items()},
    **{row: Row(words, 3, ("C5", "B")) for row, words in SYSTEMS.items()},
    **{row: Row(words, 3) for row, (_, words, _) in DENSE.items()},
    **{row: Row(words, 3) for row, words in LESSON_ROWS.items()},
}
#: Rows for which the dictionary describes patches in a way of their own; and those tested on others than fitted on.
DESCRIBED = ("turned", "cropped", "many", "varied")
TESTED = {"tta": "turned", "varied": "plain"}
FEW = 3


def predict_row(row: str, part: Part, seed: int, shared: Path) -> Float:
    """Expression of the tested spots, spots x genes."""
    if row in RECIPES:
        return train_student(row, part, seed)
    if row in SYSTEMS:
        return train_system(row, part, seed, shared)
    if row in DENSE:
        return teach_dense(row, part, seed, shared)
    if row in LESSON_ROWS:
        return teach_lessons(row, part, seed)
    return part.objective.expression(fit_described(row, part, seed))


def fit_described(row: str, part: Part, seed: int) -> Float:
    """z of the tested spots by linear regression on features of their patches."""
    train, test, objective = part.train, part.test, part.objective
    variation = row.removeprefix("dictionary-")
    if variation == "ensemble":
        return np.mean([fit_described("dictionary-all", part, each) for each in range(3)], axis=0)
    how = variation if variation in DESCRIBED else "plain"
    features = part.colour if row.startswith(("ridge", "features")) else part.described(seed, how)
    if row.endswith("scaled"):
        features = scaled_within(features, part.tiles.section)
    if row.endswith(("ridge", "ridge-scaled")):
        return fit_ridge(features[train], objective.targets[train]).predict(features[test])
    covariance = part.covariances["own" if row.endswith("own") else "all"]
    if row == "shuffled":
        order = np.random.default_rng(seed).permutation(len(part.panel))
        covariance = covariance[np.ix_(order, order)]
    if variation == "even":
        variance, vectors = np.linalg.eigh(covariance)
        covariance = vectors * np.sqrt(variance.clip(0)) @ vectors.T
    mean_around = neighbour_mean(part.tiles.section, part.tiles.centres)
    scale = objective.residual_scale
    residuals = objective.targets / scale
    if variation == "smooth":
        residuals = mean_around @ residuals
    fitted = fit_programmes(features[train], residuals[train], covariance, FEW if row.endswith("few") else N_PROGRAMMES)
    if variation in TESTED:
        features = part.described(seed, TESTED[variation])
    z = fitted.predict(features) * scale
    return ((z + mean_around @ z) / 2 if variation == "around" else z)[test]


def scaled_within(features: Float, section: Labels) -> Float:
    """Features with mean 0 and spread 1 in each section, as if every slide were stained alike."""
    scaled = np.zeros_like(features)
    for name in np.unique(section):
        own = features[section == name]
        scaled[section == name] = (own - own.mean(axis=0)) / (own.std(axis=0) + 1e-9)
    return scaled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("rows", nargs="*", metavar="ROW", choices=[*ROWS, []], help=", ".join(ROWS))
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=[*SPLITS])
    parser.add_argument("--seeds", type=int, default=3, help="at most so many of each row")
    parser.add_argument("--threads", type=int, default=usable_cores())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    data = open_data(arguments.shared, arguments.scratch)
    parts = {split: open_part(split, *data, arguments.scratch) for split in SPLITS}
    for seed in range(arguments.seeds):
        for name in arguments.rows or ROWS:
            for split in arguments.splits:
                path = parts[split].scratch / f"{name}-{seed}.npy"
                if seed < ROWS[name].seeds and split in ROWS[name].splits and not path.exists():
                    save(path, predict_row(name, parts[split], seed, arguments.shared))
    write_report(parts, {name: row.words for name, row in ROWS.items()})


if __name__ == "__main__":
    main()
