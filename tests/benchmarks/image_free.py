"""How far predictors without eyes get on the M2ORT papers' score: correlation across genes within a spot, and RMSE.

    python tests/benchmarks/image_free.py GENES.txt COUNTS_FOLDER...

The folders hold sections in the HER2ST layout; images are not needed. Sections in sorted order are shuffled by
random.Random(seed), seeds 0 to 9; the first 60 % train, the last 30 % test, and the papers choose their epochs on the
rest. Spots without counts in the panel are left out, since their shares of it are undefined. Only where patients are
left out, those of the total are kept: they have an RMSE, if no correlation.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np

from stpredict.arrays import Float
from stpredict.data.her2st import read_her2st
from stpredict.data.panel import read_gene_list
from stpredict.statistics.metrics import log_cpm, spot_correlation

SPLITS = 10


def main(gene_list: str, *folders: str) -> None:
    genes = read_gene_list(Path(gene_list))
    sections = [s for folder in folders for s in read_her2st(Path(folder), require_images=False)]
    sections.sort(key=lambda section: section.name)
    patients = [section.patient for section in sections]
    counts, depths, every_count, every_depth = [], [], [], []
    for section in sections:
        dense = section.counts.rows().toarray().astype(float)
        column = {gene: i for i, gene in enumerate(section.genes)}
        panel = np.column_stack([dense[:, column[g]] if g in column else np.zeros(len(dense)) for g in genes])
        counted = panel.any(axis=1)
        counts.append(panel[counted])
        depths.append(dense.sum(axis=1)[counted])
        every_count.append(panel)
        every_depth.append(dense.sum(axis=1))
    print(
        f"{len(sections)} sections of {len(set(patients))} patients, {sum(map(len, counts))} spots, {len(genes)} genes;"
    )
    dropped = sum(map(len, every_count)) - sum(map(len, counts))
    print(f"{dropped} spots without counts in the panel are left out, but of the total where patients are left out")
    print(f"{'correlation across genes within a spot (RMSE), ln(1 + CPM)':60}{'CPM of total':>16}{'of panel':>16}")
    panel_depths = [panel.sum(axis=1) for panel in counts]
    found = [
        by_splits(counts, depths, patients) | leaving_one_out(every_count, every_depth, patients),
        by_splits(counts, panel_depths, patients) | leaving_one_out(counts, panel_depths, patients),
    ]
    for row in found[0]:
        print(f"{row:60}" + "".join(f"{r:>9.3f} ({rmse:.2f})" for r, rmse in (table[row] for table in found)))


def by_splits(counts: list[Float], depths: list[Float], patients: list[str]) -> dict[str, Float]:
    """Mean over the splits by section; a patient without training sections gets the mean of all."""
    observed = [log_cpm(c, d) for c, d in zip(counts, depths, strict=True)]
    everyone, same_patient = [], []
    for seed in range(SPLITS):
        order = list(range(len(counts)))
        random.Random(seed).shuffle(order)
        train, test = order[: int(0.6 * len(order))], order[int(0.7 * len(order)) :]
        mean = np.concatenate([observed[i] for i in train]).mean(axis=0)
        own = {p: [observed[i] for i in train if patients[i] == p] for p in set(patients)}
        means = {p: np.concatenate(parts).mean(axis=0) if parts else mean for p, parts in own.items()}
        weights = [len(counts[i]) for i in test]
        for scores, choose in ((everyone, lambda _: mean), (same_patient, means.__getitem__)):  # noqa: B023
            parts = [score(choose(patients[i]), counts[i], depths[i]) for i in test]
            scores.append(np.average(parts, axis=0, weights=weights))
    return {
        "training mean, 60/10/30 by section": np.mean(everyone, axis=0),
        "mean of the same patient's training sections, same splits": np.mean(same_patient, axis=0),
    }


def leaving_one_out(counts: list[Float], depths: list[Float], patients: list[str]) -> dict[str, Float]:
    """Mean over the patients, each predicted by the mean of the others."""
    observed = [log_cpm(c, d) for c, d in zip(counts, depths, strict=True)]
    scores = []
    for patient in sorted(set(patients)):
        mean = np.concatenate([x for x, p in zip(observed, patients, strict=True) if p != patient]).mean(axis=0)
        own = [i for i, p in enumerate(patients) if p == patient]
        scores.append(score(mean, np.concatenate([counts[i] for i in own]), np.concatenate([depths[i] for i in own])))
    return {"training mean, leaving one patient out": np.mean(scores, axis=0)}


def score(mean: Float, counts: Float, depth: Float) -> tuple[float, float]:
    """Correlation and RMSE per spot of predicting the same for every spot."""
    return spot_correlation(np.tile(mean, (len(depth), 1)), counts, depth)


if __name__ == "__main__":
    main(*sys.argv[1:])
