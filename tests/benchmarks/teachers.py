"""Which regression predicts expression best from few measured spots: features, and what is known of genes together.

    python tests/benchmarks/teachers.py SHARED_FOLDER [SEEDS]

SHARED_FOLDER holds `data/her2st` (with images) and `data/her2st-counts` (without). Prints Markdown. Compared with ridge
regression on the 52 colour and texture features:

- *dictionary*: k-means of whitened windows of optical density, learnt on unlabelled patches of the training sections; a
  patch is described by how near its windows are to each centre (Coates, Lee and Ng 2011);
- *programmes*: how genes vary together, learnt from counts alone as the covariance of their two halves, whose noise is
  independent. Ridge regression runs along its eigenvectors, each penalised by the inverse of its variance.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from stpredict.arrays import Bool, Float, Int, Labels
from stpredict.data.dataset import read_counts, read_dataset
from stpredict.data.panel import choose_panel
from stpredict.data.tiles import Tiles, read_tiles, write_tiles
from stpredict.evaluation import metrics
from stpredict.evaluation.baselines import fit_ridge
from stpredict.evaluation.features import colour_texture_features
from stpredict.training.dictionary import learn_windows
from stpredict.training.heads import describe_patches
from stpredict.training.objectives import make_objective
from stpredict.training.programmes import N_PROGRAMMES, fit_programmes, gene_covariance
from stpredict.weights import load_model

SPLITS = {
    "section C5": (["B4", "C2", "C3", "C4"], ["C5"]),
    "patient B": (["C2", "C3", "C4", "C5"], ["B4"]),
    "patient C": (["B4"], ["C2", "C3", "C4", "C5"]),
}
SHIPPED = Path(__file__).parents[2] / "models" / "m2ort-small-her2st.safetensors"
MIN_DEPTH, FEW = 500, 3
SQUARE_UM, BOOTSTRAPS = 1000.0, 1000
BASELINE = "52 features, ridge"
COLUMNS = "depth-controlled | seeds | minus ridge | 95 % over tissue | genes better | ln(1 + CPM) | no biology"


def residuals_of(counts: Float, depth: Float, section: Labels) -> Float:
    """Pearson residuals within each section."""
    residuals = np.zeros_like(counts)
    for name in np.unique(section):
        residuals[section == name] = metrics.pearson_residuals(counts[section == name], depth[section == name])
    return residuals


def squares_of(tiles: Tiles, spots: Bool) -> Int:
    """A number per spot for the square of tissue that it lies in."""
    square = np.floor(tiles.centres[spots] * tiles.mpp / SQUARE_UM).astype(int)
    keys = [f"{s} {x} {y}" for s, (x, y) in zip(tiles.section[spots], square, strict=True)]
    return np.unique(keys, return_inverse=True)[1]


def bootstrap_difference(a: Float, b: Float, residuals: Float, section: Labels, block: Int) -> tuple[float, float]:
    """95 % interval of the difference of the mean correlations of two predictions, squares of tissue drawn anew."""
    rng = np.random.default_rng(0)
    n = block.max() + 1
    drawn = rng.multinomial(n, np.full(n, 1 / n), BOOTSTRAPS)[:, block]

    def correlations(p: Float) -> Float:
        per_section = []
        for name in np.unique(section):
            rows = section == name
            w = drawn[:, rows] / np.maximum(drawn[:, rows].sum(axis=1, keepdims=True), 1)
            x, y = p[rows] - p[rows].mean(axis=0), residuals[rows] - residuals[rows].mean(axis=0)
            mx, my = w @ x, w @ y
            scale = (w @ x**2 - mx**2) * (w @ y**2 - my**2)
            r = np.where(scale > 1e-20, (w @ (x * y) - mx * my) / np.sqrt(np.maximum(scale, 1e-20)), np.nan)
            per_section.append(np.nanmean(r, axis=1))
        return np.nanmean(per_section, axis=0)

    return tuple(np.percentile(correlations(a) - correlations(b), [2.5, 97.5]))


def compare(tiles: Tiles, colour: Float, split: str, own_panel: bool, seeds: int) -> None:
    """Print the rows of one split; the panel is the shipped model's, or chosen on the training sections alone."""
    trained, tested = SPLITS[split]
    train, test = np.isin(tiles.section, trained), np.isin(tiles.section, tested) & (tiles.depth >= MIN_DEPTH)
    own = choose_panel(tiles.counts[np.flatnonzero(train)].toarray(), tiles.section[train], tiles.genes)
    panel = own if own_panel else list(load_model(SHIPPED).panel)
    counts, depth, section = tiles.panel_counts(panel), tiles.depth, tiles.section
    objective = make_objective("residuals", counts, depth, section, train)
    residuals = residuals_of(counts, depth, section)
    spread = residuals[train].std(axis=0)
    spread[spread == 0] = 1.0
    pictured = replace(tiles, counts_only=None)
    priors = {name: gene_covariance(each, panel, trained)[0] for name, each in (("own", pictured), ("all", tiles))}
    found = {BASELINE: [fit_ridge(colour[train], objective.targets[train]).predict(colour[test])]}

    def add(row: str, x: Float, covariance: Float, n: int = N_PROGRAMMES) -> None:
        fitted = fit_programmes(x[train], residuals[train], covariance, n)
        found.setdefault(row, []).append(fitted.predict(x[test]) / spread)

    for name, prior in priors.items():
        add(f"52 features, programmes of {name} counts", colour, prior)
    used = np.flatnonzero(train | test)
    for seed in range(seeds):
        network = learn_windows(tiles, trained, len(panel), seed)
        x = np.zeros((len(section), network.head.in_features))
        x[used] = describe_patches(network, tiles, used, torch.device("cpu"))
        predicted = fit_ridge(x[train], objective.targets[train]).predict(x[test])
        found.setdefault("dictionary, ridge", []).append(predicted)
        for name, prior in priors.items():
            add(f"dictionary, programmes of {name} counts", x, prior)
        add(f"dictionary, only {FEW} programmes of all counts", x, priors["all"], FEW)
        order = np.random.default_rng(seed).permutation(len(panel))
        add("control: programmes of shuffled genes", x, priors["all"][np.ix_(order, order)])
    c, d, s = counts[test], depth[test], section[test]
    observed, block, base = residuals_of(c, d, s), squares_of(tiles, test), objective.expression(found[BASELINE][0])
    base_r = metrics.depth_controlled_correlation(base, c, d, s)
    noise = metrics.counts_without_biology(c, d, s)
    ceiling, where = np.nanmean(metrics.noise_ceiling(c, d, s)), "the training" if own_panel else "all"
    print(f"\n{split} from {', '.join(trained)}; {test.sum()} spots, {len(panel)} genes chosen on {where} sections, "
          f"noise ceiling {ceiling:.3f}\n")  # fmt: skip
    print(f"| | {COLUMNS} |\n{'|---' * (COLUMNS.count('|') + 2)}|")
    for row, predictions in found.items():
        expression = [objective.expression(z) for z in predictions]
        r = np.array([metrics.depth_controlled_correlation(e, c, d, s) for e in expression])
        log_r = np.mean([np.nanmean(metrics.log_cpm_correlation(e, c, d, s)) for e in expression])
        none = np.nanmean(metrics.depth_controlled_correlation(expression[0], noise, d, s))
        low, high = bootstrap_difference(expression[0], base, observed, s, block)
        scores, better = np.nanmean(r, axis=1), np.mean((r.mean(axis=0) > base_r)[np.isfinite(base_r)])
        seeded = f"{scores.min():.3f} to {scores.max():.3f}" if len(scores) > 1 else ""
        gain = f"{scores.mean() - np.nanmean(base_r):+.3f} | {low:+.3f} to {high:+.3f} | {better:.0%}"
        paired = f"| {gain if row != BASELINE else ' | | '} |"
        print(f"| {row} | {scores.mean():.3f} | {seeded} {paired} {log_r:.3f} | {none:.3f} |", flush=True)


def main(shared: str, seeds: str = "3") -> None:
    torch.set_num_threads(1)
    data = Path(shared) / "data"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiles.h5"
        more = read_counts(data / "her2st-counts")
        write_tiles(
            read_dataset(data / "her2st"), path, counts_only=more, mpp=0.69, unlabelled=2500, report=lambda _: None
        )
        tiles = read_tiles(path)
        colour = colour_texture_features((tiles.read_patch(i) for i in range(len(tiles.spot))), 1)
        for own_panel in (False, True):
            for split in SPLITS:
                compare(tiles, colour, split, own_panel, int(seeds) if not own_panel else 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
