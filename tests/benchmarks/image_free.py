"""How far predictors without eyes get on the field's per-spot score: ten random 60/10/30 splits of HER2ST by section.

    python tests/benchmarks/image_free.py GENES.txt COUNTS_FOLDER...

The folders hold sections in the HER2ST layout; images are not needed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from stpredict.data.her2st import read_her2st
from stpredict.data.panel import read_gene_list
from stpredict.metrics import log_cpm, spot_correlation

SPLITS = 10


def main(gene_list: str, *folders: str) -> None:
    genes = read_gene_list(Path(gene_list))
    sections = [s for folder in folders for s in read_her2st(Path(folder), require_images=False)]
    counts, depth = [], []
    for section in sections:
        column = {gene: i for i, gene in enumerate(section.genes)}
        dense = section.counts.toarray().astype(float)
        known = np.array([column.get(gene, -1) for gene in genes])
        counts.append(np.where(known >= 0, dense[:, known], 0.0))
        depth.append(dense.sum(axis=1))
    observed = [log_cpm(c, d) for c, d in zip(counts, depth, strict=True)]
    found = []
    for seed in range(SPLITS):
        order = np.random.default_rng(seed).permutation(len(sections))
        train, test = order[: int(0.6 * len(order))], order[int(0.7 * len(order)) :]
        everyone = np.concatenate([observed[i] for i in train]).mean(axis=0)
        scores = []
        for i in test:
            own = [observed[j] for j in train if sections[j].patient == sections[i].patient]
            means = (everyone, np.concatenate(own).mean(axis=0) if own else everyone)
            for mean in means:
                scores.append(spot_correlation(np.tile(mean, (len(depth[i]), 1)), counts[i], depth[i]))
        weights = np.array([len(depth[i]) for i in test])
        found.append([np.average(np.array(scores)[k::2], axis=0, weights=weights) for k in (0, 1)])
    (r, rmse), (own_r, own_rmse) = np.mean(found, axis=0)
    print(f"{len(sections)} sections, {len(genes)} genes, {SPLITS} splits, ln(1 + CPM), correlation and RMSE per spot:")
    print(f"training mean {r:.3f} ({rmse:.2f}), same-patient mean {own_r:.3f} ({own_rmse:.2f})")


if __name__ == "__main__":
    main(*sys.argv[1:])
