"""The held-out scores of a training run on a list of genes, beside the baselines for the same genes.

    python tests/benchmarks/accuracy.py RUN_FOLDER GENES.txt

RUN_FOLDER is the MODEL.run that `stpredict train` left. The model was trained on its own, larger panel; the ridge
baseline is trained here on the listed genes alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from stpredict.cards import ROWS
from stpredict.data.panel import read_gene_list
from stpredict.data.tiles import read_tiles
from stpredict.engines.eager import load_network
from stpredict.evaluation.splits import DEPTH_CONTROLLED, LOG_CPM, PER_SPOT, RMSE, Split, evaluate_split
from stpredict.training.fit import pick_device, predict_z
from stpredict.training.objectives import make_objective
from stpredict.weights import load_model


def main(run_folder: str, gene_list: str) -> None:
    run, wanted = Path(run_folder), read_gene_list(Path(gene_list))
    tiles = read_tiles(run / "dataset.tiles.h5")
    with np.load(run / "features.npz") as saved:
        features = saved["spots"]
    for folder in sorted(run.glob("fold-*")):
        scores = json.loads((folder / "scores.json").read_text())
        model = load_model(folder / "model.safetensors")
        genes = [gene for gene in wanted if gene in model.panel]
        test = np.isin(tiles.section, scores["test"])
        counts = tiles.panel_counts(genes)
        objective = make_objective(model.card["objective"], counts, tiles.depth, tiles.section, ~test)
        expression = predict_z(load_network(model), tiles, np.flatnonzero(test), pick_device())
        split = Split(counts, tiles.depth, tiles.section, tiles.patient, tiles.centres, ~test, test)
        columns = [model.panel.index(gene) for gene in genes]
        found = evaluate_split(expression[:, columns], split, features, objective)
        print(f"held out: {scores['kind']} {scores['name']}; {len(genes)} of {len(wanted)} genes")
        for row in (name for name in ROWS if name in found["rows"]):
            values = [found["rows"][row][key] for key in (DEPTH_CONTROLLED, LOG_CPM, PER_SPOT, RMSE)]
            print(f"  {row:30}" + "".join(f"{'-' if value is None else f'{value:.3f}':>10}" for value in values))
        print(f"  noise ceiling {found['noise_ceiling']}, counts without biology {found['counts_without_biology']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
