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
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans

from stpredict.arrays import Bool, Float, Int, Labels, UInt8
from stpredict.data.her2st import read_her2st
from stpredict.data.panel import choose_panel
from stpredict.data.section import Section
from stpredict.data.tiles import Tiles, read_tiles, write_tiles
from stpredict.evaluation import metrics
from stpredict.evaluation.baselines import fit_ridge
from stpredict.evaluation.features import colour_texture_features
from stpredict.training.objectives import make_objective
from stpredict.weights import load_model

SPLITS = {
    "section C5": (["B4", "C2", "C3", "C4"], ["C5"]),
    "patient B": (["C2", "C3", "C4", "C5"], ["B4"]),
    "patient C": (["B4"], ["C2", "C3", "C4", "C5"]),
}
SHIPPED = Path(__file__).parents[2] / "models" / "m2ort-small-her2st.safetensors"
MIN_DEPTH, PROGRAMMES, FEW = 500, 40, 3
CENTRES, WINDOW_PX, STRIDE_PX, WINDOWS, PATCHES = 200, 8, 3, 60_000, 1200
FLOOR = 1e-3  # of the largest variance of windows: less is noise
SQUARE_UM, BOOTSTRAPS = 1000.0, 1000
BASELINE = "52 features, ridge"
COLUMNS = "depth-controlled | seeds | minus ridge | 95 % over tissue | genes better | ln(1 + CPM) | no biology"
#: Kernel and bias of the convolution that whitens windows, and the centres that they are compared with.
Dictionary = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def density(patches: UInt8) -> torch.Tensor:
    return -torch.log((torch.from_numpy(patches).permute(0, 3, 1, 2).float() + 1) / 256)


def learn_dictionary(tiles: Tiles, sections: Sequence[str], seed: int) -> Dictionary:
    """Centres of whitened windows of the unlabelled patches of some sections."""
    rng = np.random.default_rng(seed)
    windows = []
    for name in sections:
        places = np.flatnonzero(tiles.unlabelled_section == name)
        places = np.sort(rng.choice(places, min(PATCHES // len(sections), len(places)), replace=False))
        image = density(tiles.read_patches(places, unlabelled=True))
        every = image.unfold(2, WINDOW_PX, 1).unfold(3, WINDOW_PX, 1)
        n = WINDOWS // len(sections)
        which, y, x = (rng.integers(0, every.shape[axis], n) for axis in (0, 2, 3))
        windows.append(every[which, :, y, x].reshape(n, -1).double().numpy())
    flat = np.concatenate(windows)
    mean = flat.mean(axis=0)
    variance, vectors = np.linalg.eigh(np.cov((flat - mean).T))
    kept = variance > FLOOR * variance.max()
    whiten = vectors[:, kept] / np.sqrt(variance[kept] + FLOOR * variance.max())
    means = MiniBatchKMeans(CENTRES, batch_size=4096, n_init=1, max_iter=15, random_state=seed)
    centres = means.fit((flat - mean) @ whiten).cluster_centers_
    kernel = whiten.T.reshape(-1, 3, WINDOW_PX, WINDOW_PX)
    return tuple(torch.as_tensor(x, dtype=torch.float32) for x in (kernel, -(mean @ whiten), centres))


def describe(dictionary: Dictionary, patches: UInt8, spot_share: float) -> Float:
    """How much nearer than average one patch's windows are to each centre: mean, spread, and mean within the spot."""
    kernel, bias, centres = dictionary
    whitened = torch.nn.functional.conv2d(density(patches), kernel, bias=bias, stride=STRIDE_PX)
    side = whitened.shape[-1]
    distance = torch.cdist(whitened[0].reshape(-1, side * side).T, centres)
    near = (distance.mean(dim=1, keepdim=True) - distance).clamp(min=0)
    from_centre = (torch.arange(side) + 0.5) / side - 0.5
    spot = (from_centre[:, None] ** 2 + from_centre**2 < (spot_share / 2) ** 2).reshape(-1)
    return torch.cat([near.mean(dim=0), near.std(dim=0), near[spot].mean(dim=0)]).double().numpy()


def counts_of(section: Section, panel: Sequence[str]) -> tuple[Float, Float]:
    """Counts of the panel's genes, and the depth, of the spots that are deep enough."""
    column = {gene: i for i, gene in enumerate(section.genes)}
    dense = section.counts.toarray().astype(float)
    depth = dense.sum(axis=1)
    known = np.array([column.get(gene, -1) for gene in panel])
    return np.where(known >= 0, dense[:, known], 0.0)[depth >= MIN_DEPTH], depth[depth >= MIN_DEPTH]


def signal_covariance(counts: Float, depth: Float, repeats: int = 4) -> Float:
    """Covariance of genes' Pearson residuals without the counts' noise, from counts thinned into halves."""
    rng = np.random.default_rng(0)
    total = np.zeros((counts.shape[1], counts.shape[1]))
    for _ in range(repeats):
        half = rng.binomial(counts.astype(np.int64), 0.5).astype(float)
        a, b = (metrics.pearson_residuals(part, depth / 2) for part in (half, counts - half))
        cross = (a - a.mean(axis=0)).T @ (b - b.mean(axis=0))
        total += (cross + cross.T) / len(counts)  # twice the halves' covariance is that of all counts
    return total / repeats


def gene_prior(covariances: dict[str, tuple[str, Float]], names: Sequence[str]) -> Float:
    """Mean over patients of the mean covariance of their sections."""
    patients = sorted({covariances[name][0] for name in names})
    means = [np.mean([covariances[n][1] for n in names if covariances[n][0] == p], axis=0) for p in patients]
    return np.mean(means, axis=0)


def fit_programmes(x: Float, residuals: Float, train: Bool, test: Bool, prior: Float, n: int = PROGRAMMES) -> Float:
    """Predicted residuals of the test spots; the one strength of the penalty is chosen by leave-one-out."""
    variance, vectors = np.linalg.eigh(prior)
    variance, vectors = variance[: -n - 1 : -1], vectors[:, : -n - 1 : -1]
    mean, spread = x[train].mean(axis=0), x[train].std(axis=0) + 1e-9
    u, s, vt = np.linalg.svd((x[train] - mean) / spread, full_matrices=False)
    centre = residuals[train].mean(axis=0) @ vectors
    programmes = residuals[train] @ vectors - centre
    projected = u.T @ programmes
    best, chosen = np.inf, projected
    for strength in np.logspace(1, 7, 25):
        shrink = s[:, None] ** 2 / (s[:, None] ** 2 + strength / variance)
        error = (((programmes - u @ (shrink * projected)) / (1 - u**2 @ shrink - 1 / train.sum())) ** 2).sum()
        best, chosen = min((best, chosen), (error, shrink / s[:, None] * projected), key=lambda pair: pair[0])
    return ((x[test] - mean) / spread @ vt.T @ chosen + centre) @ vectors.T


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


def compare(tiles: Tiles, colour: Float, sections: Sequence[Section], split: str, own_panel: bool, seeds: int) -> None:
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
    new_patients = set(tiles.patient[test]) - set(tiles.patient[train])
    allowed = [s for s in sections if s.patient not in new_patients and s.name not in tested]
    covariances = {s.name: (s.patient, signal_covariance(*counts_of(s, panel))) for s in allowed}
    priors = {"own": gene_prior(covariances, trained), "all": gene_prior(covariances, list(covariances))}
    found = {BASELINE: [fit_ridge(colour[train], objective.targets[train]).predict(colour[test])]}
    for name, prior in priors.items():
        predicted = fit_programmes(colour, residuals, train, test, prior) / spread
        found[f"52 features, programmes of {name} counts"] = [predicted]
    used = np.flatnonzero(train | test)
    share = tiles.spot_diameter_um / (tiles.patch_px * tiles.mpp)
    for seed in range(seeds):
        dictionary = learn_dictionary(tiles, trained, seed)
        x = np.zeros((len(section), 3 * CENTRES))
        x[used] = [describe(dictionary, tiles.read_patches([i]), share) for i in used]
        predicted = fit_ridge(x[train], objective.targets[train]).predict(x[test])
        found.setdefault("dictionary, ridge", []).append(predicted)
        for name, prior in priors.items():
            predicted = fit_programmes(x, residuals, train, test, prior) / spread
            found.setdefault(f"dictionary, programmes of {name} counts", []).append(predicted)
        few = fit_programmes(x, residuals, train, test, priors["all"], FEW) / spread
        found.setdefault(f"dictionary, only {FEW} programmes of all counts", []).append(few)
        order = np.random.default_rng(seed).permutation(len(panel))
        wrong = fit_programmes(x, residuals, train, test, priors["all"][np.ix_(order, order)]) / spread
        found.setdefault("control: programmes of shuffled genes", []).append(wrong)
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
    pictured = read_her2st(data / "her2st")
    sections = pictured + read_her2st(data / "her2st-counts", require_images=False)
    with tempfile.TemporaryDirectory() as folder:
        write_tiles(pictured, Path(folder) / "tiles.h5", mpp=0.69, unlabelled=2500, report=lambda _: None)
        tiles = read_tiles(Path(folder) / "tiles.h5")
        colour = colour_texture_features((tiles.read_patches([i])[0] for i in range(len(tiles.spot))), 1)
        for own_panel in (False, True):
            for split in SPLITS:
                compare(tiles, colour, sections, split, own_panel, int(seeds) if not own_panel else 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
