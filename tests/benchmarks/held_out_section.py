"""Does `predict` on a held-out section's image give the correlation that training reported for it?

    python tests/benchmarks/held_out_section.py DATASET RUN_FOLDER FOLD [ENGINE]

RUN_FOLDER is the MODEL.run that `stpredict train` left, with shares of the total count, FOLD one of its fold-N folders.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from stpredict.data.dataset import read_dataset
from stpredict.result.file import read_result
from stpredict.statistics.metrics import depth_controlled_correlation


def main(dataset: str, run_folder: str, fold: str, engine: str = "auto") -> None:
    folder = Path(run_folder) / fold
    scores = json.loads((folder / "scores.json").read_text())
    reported = np.array(scores["per_gene"]["correlation"], dtype=float)
    found = []
    for section in read_dataset(Path(dataset)):
        if section.name not in scores["test"]:
            continue
        with tempfile.TemporaryDirectory() as out:
            spots = Path(out) / "spots.csv"
            np.savetxt(spots, section.centres, delimiter=",", header="x,y", comments="")
            call = ["stpredict", "predict", section.image, "-m", folder / "model.safetensors", "--spots", spots,
                    "--mpp", f"{np.mean(section.mpp):.4f}", "--engine", engine, "-o", out]  # fmt: skip
            subprocess.run([str(part) for part in call], check=True)
            result = read_result(Path(out) / f"{section.name}.h5ad")
            predicted = np.column_stack([result.expression(gene) for gene in scores["panel"]])
        column = {gene: i for i, gene in enumerate(section.genes)}
        all_counts = section.counts.rows().toarray().astype(float)
        counts = np.column_stack(
            [all_counts[:, column[gene]] if gene in column else np.zeros(len(all_counts)) for gene in scores["panel"]]
        )
        depth = all_counts.sum(axis=1)
        deep = depth >= scores.get("min_depth", 0)
        label = np.full(int(deep.sum()), section.name)
        found.append(depth_controlled_correlation(predicted[deep], counts[deep], depth[deep], label))
    correlation = np.nanmean(found, axis=0)
    print(f"{fold}: reported {np.nanmean(reported):.4f}, from predict with {engine} {np.nanmean(correlation):.4f}, ")
    print(f"largest difference of a gene {np.nanmax(abs(correlation - reported)):.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
