"""Which recipe predicts expression best from few measured spots; writes accuracy.md beside this script.

    python tests/benchmarks/accuracy.py SHARED_FOLDER SCRATCH_FOLDER [ROW...]

SHARED_FOLDER holds `data/her2st` (with images) and `data/her2st-counts` (without). Without ROWs all of ROWS are
predicted; predictions are kept in SCRATCH_FOLDER, and the tables are of all that lie there. Compared with ridge
regression on the 52 colour and texture features:

- *dictionary*: k-means of whitened windows of optical density, learnt on unlabelled patches of the training sections; a
  patch is described by how near its windows are to each centre (Coates, Lee and Ng 2011);
- *programmes*: how genes vary together, learnt from counts alone as the covariance of their two halves, whose noise is
  independent. Ridge regression runs along its eigenvectors, each penalised by the inverse of its variance;
- *small M2ORT*, trained on the spots, or before that taught on unlabelled patches what another predicts for them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stpredict.arrays import Bool, Float, Int, Labels
from stpredict.data.dataset import read_counts, read_dataset
from stpredict.data.normalisation import NORMALISATIONS
from stpredict.data.panel import choose_panel
from stpredict.data.tiles import Tiles, read_tiles, write_tiles
from stpredict.evaluation import metrics
from stpredict.evaluation.baselines import fit_ridge
from stpredict.evaluation.features import colour_texture_features
from stpredict.evaluation.splits import DEPTH_CONTROLLED, LOG_CPM, RIDGE
from stpredict.files import atomic_path
from stpredict.networks.dictionary import Dictionary
from stpredict.networks.m2ort import M2ORT, M2ORTConfig
from stpredict.slides.symmetry import SYMMETRIES, turn
from stpredict.training.dictionary import learn_windows
from stpredict.training.fit import Log, predict_z, ridge_lessons, teach, train_on_spots
from stpredict.training.heads import fit_head
from stpredict.training.objectives import Objective, make_objective
from stpredict.training.programmes import N_PROGRAMMES, fit_programmes, gene_covariance
from stpredict.training.settings import Settings
from stpredict.weights import Model, load_model

HEAD = """# Accuracy

Written by `python tests/benchmarks/accuracy.py SHARED_FOLDER SCRATCH_FOLDER`; a row of the first two tables alone by
the same with its name behind it. `dictionary-all` is what `stpredict train DATASET -o MODEL --arch dictionary
--counts-only FOLDER` fits, `dictionary-own` the same without `--counts-only`, and `stpredict train DATASET -o MODEL`
makes M2ORT-Small.

Fitted on measured spots, scored on held-out spots of 500 counts or more, on the genes that are among the 1,500 most
variable of every training section.
"""
BY_HAND = "## What to read from it"
REPORT = Path(__file__).with_suffix(".md")
MODELS = Path(__file__).parents[2] / "models"
SPLITS = {
    "C5": (["B4", "C2", "C3", "C4"], ["C5"]),
    "B": (["C2", "C3", "C4", "C5"], ["B4"]),
    "C": (["B4"], ["C2", "C3", "C4", "C5"]),
}
#: Rows of the table and how many seeds they have; those that draw nothing have one.
ROWS = {
    "ridge": ("52 features, ridge", 1),
    "ridge-scaled": ("52 features scaled within each section, ridge", 1),
    "features-own": ("52 features, programmes of own counts", 1),
    "features-all": ("52 features, programmes of all counts", 1),
    "dictionary-ridge": ("dictionary, ridge", 3),
    "dictionary-own": ("dictionary, programmes of own counts", 3),
    "dictionary-all": ("dictionary, programmes of all counts", 3),
    "dictionary-scaled": ("the same, features scaled within each section", 3),
    "dictionary-tta": ("dictionary, programmes of all counts; tested on the mean of eight turns", 1),
    "dictionary-turned": ("the same, fitted on the mean of eight turns too", 1),
    "dictionary-few": ("dictionary, only 3 programmes of all counts", 3),
    "shuffled": ("control: programmes of shuffled genes", 3),
    "m2ort": ("small M2ORT, not taught", 1),
    "m2ort-taught": ("small M2ORT, taught by ridge on the 52 features", 1),
    "m2ort-dictionary": ("small M2ORT, taught by the dictionary with programmes of all counts", 1),
}
BASELINE = "ridge"
MIN_DEPTH, FEW = 500, 3
SQUARE_UM, BOOTSTRAPS = 1000.0, 1000
#: A seventh of M2ORT-Small's computation, and less than `stpredict train` spends on that, which is 25,000 patches to be
#: taught on and epochs that are chosen. All its rows have the same.
STUDENT: dict[str, Any] = {"channels": 64, "depth": 3, "heads": 2, "head_dim": 32}
TEACH_PATCHES, EPOCHS = 4000, 2
UNLABELLED = 5000
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Part:
    """One split: what is trained on and tested, and what its rows share. The panel is of the training sections."""

    tiles: Tiles
    colour: Float  # of the spots
    unlabelled_colour: Float
    sections: list[str]  # to train on
    train: Bool
    test: Bool
    panel: list[str]
    scratch: Path

    @cached_property
    def objective(self) -> Objective:
        return make_objective("residuals", self.counts, self.tiles.depth, self.tiles.section, self.train)

    @cached_property
    def counts(self) -> Float:
        return self.tiles.panel_counts(self.panel)

    @cached_property
    def covariances(self) -> dict[str, Float]:
        """How genes vary together: by the training sections alone, and by those without images too."""
        pictured = replace(self.tiles, counts_only=None)
        return {name: gene_covariance(each, self.panel, self.sections)[0]
                for name, each in (("own", pictured), ("all", self.tiles))}  # fmt: skip

    def described(self, seed: int, turned: bool = False) -> Float:
        """The dictionary's features of all spots, or their means over the eight flips and rotations of each patch."""
        path = self.scratch / f"described-{seed}{'-turned' if turned else ''}.npy"
        if not path.exists():
            network = learn_windows(self.tiles, self.sections, len(self.panel), seed)
            found = (self.described_one(network, spot, turned) for spot in range(len(self.train)))
            save(path, np.concatenate([*found]))
        return np.load(path)

    def described_one(self, network: Dictionary, spot: int, turned: bool) -> Float:
        patch = self.tiles.read_patches([spot])
        patches = np.concatenate([turn(patch, code) for code in range(SYMMETRIES if turned else 1)])
        with torch.inference_mode():
            return network.features(torch.from_numpy(patches)).double().numpy().mean(axis=0, keepdims=True)


def open_part(split: str, tiles: Tiles, colour: Float, unlabelled_colour: Float, scratch: Path) -> Part:
    sections, tested = SPLITS[split]
    train, test = np.isin(tiles.section, sections), np.isin(tiles.section, tested) & (tiles.depth >= MIN_DEPTH)
    panel = choose_panel(tiles.counts[np.flatnonzero(train)].toarray(), tiles.section[train], tiles.genes)
    folder = scratch / split
    folder.mkdir(exist_ok=True)
    return Part(tiles, colour, unlabelled_colour, sections, train, test, panel, folder)


def predict_row(row: str, part: Part, seed: int) -> Float:
    """z of the tested spots, spots x genes."""
    train, test, objective = part.train, part.test, part.objective
    if row.startswith("m2ort"):
        return student(row, part, seed)
    features = part.described(seed) if row.startswith(("dictionary", "shuffled")) else part.colour
    if row in ("dictionary-tta", "dictionary-turned"):
        turned = part.described(seed, turned=True)
        features = np.where(test[:, None], turned, features) if row == "dictionary-tta" else turned
    if row.endswith("scaled"):
        features = scaled_within(features, part.tiles.section)
    if row.endswith(("ridge", "ridge-scaled")):
        return fit_ridge(features[train], objective.targets[train]).predict(features[test])
    covariance = part.covariances["own" if row.endswith("own") else "all"]
    if row == "shuffled":
        order = np.random.default_rng(seed).permutation(len(part.panel))
        covariance = covariance[np.ix_(order, order)]
    scale = objective.residual_scale
    n = FEW if row.endswith("few") else N_PROGRAMMES
    return fit_programmes(features[train], objective.targets[train] / scale, covariance, n).predict(
        features[test]
    ) * scale  # fmt: skip


def scaled_within(features: Float, section: Labels) -> Float:
    """Features with mean 0 and spread 1 in each section, as if every slide were stained alike."""
    scaled = np.zeros_like(features)
    for name in np.unique(section):
        own = features[section == name]
        scaled[section == name] = (own - own.mean(axis=0)) / (own.std(axis=0) + 1e-9)
    return scaled


def student(row: str, part: Part, seed: int) -> Float:
    """A small M2ORT, trained on the spots and, unless the row is the untaught one's, taught before."""
    settings = Settings(teach_patches=TEACH_PATCHES, seed=seed)
    rows, places = np.flatnonzero(part.train), np.flatnonzero(np.isin(part.tiles.unlabelled_section, part.sections))
    log = Log(part.scratch / f"{row}-{seed}.csv", lambda line: print(f"{row}: {line}", flush=True))
    torch.manual_seed(seed)
    network = M2ORT(M2ORTConfig(len(part.panel), **STUDENT))
    if row != "m2ort":
        lessons = ridge_lessons(part.colour, part.unlabelled_colour, part.objective, rows)
        if row == "m2ort-dictionary":
            lessons[places, : len(part.panel)] = dictionary_lessons(part, rows, places, seed)
        teach(network, part.tiles, lessons, places, settings, log, part.scratch / f"{row}-{seed}-teach.pt", CPU)
    train_on_spots(
        network, part.tiles, part.objective, rows, np.empty(0, np.int64), part.counts, EPOCHS, "train", settings, log,
        part.scratch / f"{row}-{seed}-train.pt", CPU,
    )  # fmt: skip
    return predict_z(network, part.tiles, np.flatnonzero(part.test), CPU)


def dictionary_lessons(part: Part, rows: Int, places: Int, seed: int) -> Float:
    """What the dictionary, fitted on spots `rows`, predicts at unlabelled `places`, places x genes."""
    network = learn_windows(part.tiles, part.sections, len(part.panel), seed)
    total = NORMALISATIONS["total"]
    fit_head(network, part.described(seed)[rows], rows, part.tiles, part.panel, part.objective, total)
    with torch.inference_mode():
        patches = (torch.from_numpy(part.tiles.read_patches([place], unlabelled=True)) for place in places)
        return np.concatenate([network(patch).double().numpy() for patch in patches])


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


@dataclass(frozen=True)
class Scored:
    """One row in one split: means over genes of each seed, and of the mean over seeds the comparison with ridge."""

    depth_controlled: Float
    log_cpm: float
    gain: float
    interval: tuple[float, float]
    better: float  # share of genes
    no_biology: float


def score_rows(part: Part) -> dict[str, Scored]:
    """Every row whose predictions lie there."""
    c, d, s = part.counts[part.test], part.tiles.depth[part.test], part.tiles.section[part.test]
    observed, block = residuals_of(c, d, s), squares_of(part.tiles, part.test)
    noise = metrics.counts_without_biology(c, d, s)
    predicted = {
        row: [part.objective.expression(np.load(path)) for path in sorted(part.scratch.glob(f"{row}-[0-9].npy"))]
        for row in ROWS
    }
    if not predicted[BASELINE]:
        return {}
    base = predicted[BASELINE][0]
    base_r = metrics.depth_controlled_correlation(base, c, d, s)
    known = np.isfinite(base_r)
    found = {}
    for row, expressions in predicted.items():
        if not expressions:
            continue
        r = np.array([metrics.depth_controlled_correlation(e, c, d, s) for e in expressions])
        found[row] = Scored(
            np.nanmean(r, axis=1),
            float(np.mean([np.nanmean(metrics.log_cpm_correlation(e, c, d, s)) for e in expressions])),
            float(np.nanmean(r) - np.nanmean(base_r)),
            bootstrap_difference(expressions[0], base, observed, s, block),
            float((r.mean(axis=0) > base_r)[known].mean()),
            float(np.nanmean(metrics.depth_controlled_correlation(expressions[0], noise, d, s))),
        )  # fmt: skip
    return found


def write_report(parts: dict[str, Part]) -> None:
    """The tables, before what was written by hand in the report that stands there."""
    scored = {split: score_rows(part) for split, part in parts.items()}
    lines = [HEAD]
    for split, part in parts.items():
        c, d, s = part.counts[part.test], part.tiles.depth[part.test], part.tiles.section[part.test]
        ceiling = np.nanmean(metrics.noise_ceiling(c, d, s))
        lines.append(
            f"- **{split}**: {'section C5' if split == 'C5' else f'patient {split}'} from {', '.join(part.sections)}; "
            f"{len(d)} spots, {len(part.panel)} genes, noise ceiling {ceiling:.3f}"
        )
    lines += ["", "Mean over genes and seeds (lowest to highest seed; where none stand, there was one):", ""]
    head = [f"{split}: {what}" for what in ("depth-controlled", "ln(1 + CPM)") for split in parts]
    lines += _head(["row", "recipe", *head])
    rows = [row for row in ROWS if any(row in found for found in scored.values())]
    for row in rows:
        cells = [_range(found[row].depth_controlled) if row in found else "" for found in scored.values()]
        cells += [f"{found[row].log_cpm:.3f}" if row in found else "" for found in scored.values()]
        lines.append(_line([f"`{row}`", ROWS[row][0], *cells]))
    lines += ["", "Depth-controlled, minus ridge of the same genes (95 % over tissue), share of genes better; and what "
              "counts without biology give:", ""]  # fmt: skip
    kinds = ("minus ridge", "genes better", "no biology")
    lines += _head(["row", *(f"{split}: {kind}" for split in parts for kind in kinds)])
    for row in rows:
        lines.append(_line([f"`{row}`", *(cell for found in scored.values() for cell in _paired(row, found))]))
    lines += ["", "As shipped, from the cards, each with ridge beside it (spots that were scored):", ""]
    lines += _head(["model", *head, *(f"{split}: genes better than ridge" for split in parts)])
    for path in sorted(MODELS.glob("*.safetensors")):
        lines.append(_line([f"`{path.stem}`", *_shipped(load_model(path), parts)]))
    by_hand = REPORT.read_text().partition(BY_HAND)[2] if REPORT.exists() else "\n"
    REPORT.write_text("\n".join(lines) + f"\n\n{BY_HAND}{by_hand}")


def _paired(row: str, found: dict[str, Scored]) -> list[str]:
    if row not in found or row == BASELINE:
        return ["", "", f"{found[row].no_biology:.3f}" if row in found else ""]
    one = found[row]
    gain = f"{one.gain:+.3f} ({one.interval[0]:+.3f} to {one.interval[1]:+.3f})"
    return [gain, f"{one.better:.0%}", f"{one.no_biology:.3f}"]


def _shipped(model: Model, parts: dict[str, Part]) -> list[str]:
    """What a card says of the same splits."""
    folds = {fold["name"]: fold for fold in model.card["held_out"]}
    cells = []
    for key in (DEPTH_CONTROLLED, LOG_CPM):
        for split in parts:
            rows = folds[split]["rows"]
            depth = f" ({folds[split]['spots']} spots)" if key == DEPTH_CONTROLLED else ""
            cells.append(f"{rows['model'][key]:.3f}, ridge {rows[RIDGE][key]:.3f}{depth}")
    for split in parts:
        per_gene = folds[split]["per_gene"]
        ours, theirs = (np.array(per_gene.get(key, []), dtype=float) for key in ("correlation", "ridge"))
        # Older cards do not hold ridge's correlation of each gene.
        cells.append(f"{(ours > theirs)[np.isfinite(ours)].mean():.0%}" if len(theirs) else "-")
    return cells


def _range(scores: Float) -> str:
    return f"{scores.mean():.3f}" + (f" ({scores.min():.3f} to {scores.max():.3f})" if len(scores) > 1 else "")


def _head(titles: Sequence[str]) -> list[str]:
    return [_line(titles), "|---" * len(titles) + "|"]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def save(path: Path, values: Float) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, values)


def open_data(shared: Path, scratch: Path) -> tuple[Tiles, Float, Float]:
    """The tiles, and the 52 features of spots and of unlabelled patches; kept in `scratch`."""
    path, cache = scratch / "her2st.tiles.h5", scratch / "features.npz"
    if not path.exists():
        sections, more = read_dataset(shared / "data" / "her2st"), read_counts(shared / "data" / "her2st-counts")
        write_tiles(sections, path, counts_only=more, mpp=0.69, unlabelled=UNLABELLED, report=print)
    tiles = read_tiles(path)
    if not cache.exists():
        n, extra = len(tiles.spot), len(tiles.unlabelled_section)
        spots = colour_texture_features(tiles.read_patches([i])[0] for i in range(n))
        unlabelled = colour_texture_features(tiles.read_patches([i], unlabelled=True)[0] for i in range(extra))
        with atomic_path(cache) as temporary, temporary.open("wb") as file:
            np.savez(file, spots=spots, unlabelled=unlabelled)
    with np.load(cache) as saved:
        return tiles, saved["spots"], saved["unlabelled"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("rows", nargs="*", metavar="ROW", choices=[*ROWS, []], help=", ".join(ROWS))
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=[*SPLITS])
    parser.add_argument("--seeds", type=int, default=3, help="at most so many of each row")
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    tiles, colour, unlabelled_colour = open_data(arguments.shared, arguments.scratch)
    parts = {split: open_part(split, tiles, colour, unlabelled_colour, arguments.scratch) for split in SPLITS}
    for split in arguments.splits:
        for row in arguments.rows or ROWS:
            for seed in range(min(ROWS[row][1], arguments.seeds)):
                path = parts[split].scratch / f"{row}-{seed}.npy"
                if not path.exists():
                    save(path, predict_row(row, parts[split], seed))
    write_report(parts)


if __name__ == "__main__":
    main()
