"""The tables of accuracy.md, of the predictions that accuracy.py left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accuracy_splits import Part

from stpredict.arrays import Bool, Float, Int, Labels
from stpredict.data.tiles import Tiles
from stpredict.evaluation.splits import DEPTH_CONTROLLED, LOG_CPM, RIDGE
from stpredict.model.file import Model, load_model
from stpredict.statistics import metrics

HEAD = """# Accuracy

Written by `python tests/benchmarks/accuracy.py SHARED_FOLDER SCRATCH_FOLDER`; a row of the first two tables alone by
the same with its name behind it. `dictionary-all` is what `stpredict train DATASET -o MODEL --arch dictionary
--counts-only FOLDER` fits, `dictionary-own` the same without `--counts-only`, and `stpredict train DATASET -o MODEL`
makes M2ORT-Small.

Fitted on measured spots, scored on held-out spots of 500 counts or more, on the genes that are among the 1,500 most
variable of every training section.
"""
BY_HAND = "## What to read from it"
REPORT = Path(__file__).with_name("accuracy.md")
MODELS = Path(__file__).parents[2] / "models"
BASELINE = "ridge"
SQUARE_UM, BOOTSTRAPS = 1000.0, 1000


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


def score_rows(part: Part, rows: Iterable[str]) -> dict[str, Scored]:
    """Every row whose predictions lie there."""
    c, d, s = part.counts[part.test], part.tiles.depth[part.test], part.tiles.section[part.test]
    observed, block = residuals_of(c, d, s), squares_of(part.tiles, part.test)
    noise = metrics.counts_without_biology(c, d, s)
    predicted = {row: [np.load(path) for path in sorted(part.scratch.glob(f"{row}-[0-9].npy"))] for row in rows}
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


def write_report(parts: Mapping[str, Part], rows: Mapping[str, str]) -> None:
    """The tables of `rows`, with their words, before what was written by hand in the report that stands there."""
    scored = {split: score_rows(part, rows) for split, part in parts.items()}
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
    there = [row for row in rows if any(row in found for found in scored.values())]
    for row in there:
        cells = [_range(found[row].depth_controlled) if row in found else "" for found in scored.values()]
        cells += [f"{found[row].log_cpm:.3f}" if row in found else "" for found in scored.values()]
        lines.append(_line([f"`{row}`", rows[row], *cells]))
    lines += ["", "Depth-controlled, minus ridge of the same genes (95 % over tissue), share of genes better; and what "
              "counts without biology give:", ""]  # fmt: skip
    kinds = ("minus ridge", "genes better", "no biology")
    lines += _head(["row", *(f"{split}: {kind}" for split in parts for kind in kinds)])
    for row in there:
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


def _shipped(model: Model, parts: Mapping[str, Part]) -> list[str]:
    """What a card says of the same splits."""
    folds = {fold["name"]: fold for fold in model.card["held_out"]}
    cells = []
    for key in (DEPTH_CONTROLLED, LOG_CPM):
        for split in parts:
            if split not in folds:
                cells.append("")
                continue
            rows = folds[split]["rows"]
            depth = f" ({folds[split]['spots']} spots)" if key == DEPTH_CONTROLLED else ""
            cells.append(f"{rows['model'][key]:.3f}, ridge {rows[RIDGE][key]:.3f}{depth}")
    for split in parts:
        per_gene = folds[split]["per_gene"] if split in folds else {}
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
