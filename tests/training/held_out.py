"""Model files of held-out parts, and what their scores were reported to be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from calls import run

from stpredict.data.dataset import read_dataset
from stpredict.result.file import read_result
from stpredict.statistics.metrics import depth_controlled_correlation


def check_reported_correlation(
    fold: Path, dataset: Path, scratch: Path, mpp: float, *options: str, atol: float = 2e-2
) -> None:
    """`predict` at the spots of a held-out section gives the correlation of each gene that training reported.

    Training computes with weights in fp32, and files keep them in fp16.
    """
    scores = json.loads((fold / "scores.json").read_text())
    section = next(section for section in read_dataset(dataset) if [section.name] == scores["test"])
    spots = scratch / "spots.csv"
    np.savetxt(spots, section.centres, delimiter=",", header="x,y", comments="", fmt="%.6f")
    model = fold / "model.safetensors"
    done = run("predict", section.image, "-m", model, "--spots", spots, "--mpp", mpp, "-o", scratch, *options)
    assert done.exit_code == 0, done.output
    result = read_result(scratch / f"{section.name}.h5ad")
    predicted = np.column_stack([result.expression(gene) for gene in scores["panel"]])
    counts = section.counts.rows().toarray().astype(float)
    columns = [section.genes.index(gene) for gene in scores["panel"]]
    label = np.full(len(counts), section.name)
    correlation = depth_controlled_correlation(predicted, counts[:, columns], counts.sum(axis=1), label)
    np.testing.assert_allclose(correlation, scores["per_gene"]["correlation"], atol=atol)
    assert abs(np.nanmean(correlation) - scores["rows"]["model"]["depth_controlled"]) < 0.4 * atol
