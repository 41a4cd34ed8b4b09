"""Pages of results that tests open, one of them with hostile names."""

from __future__ import annotations

import dataclasses

import numpy as np
from conftest import SLIDE

from stpredict.rendering.colour import ColourScale
from stpredict.rendering.report import write_report
from stpredict.result.file import Gene
from stpredict.slides.slide import open_slide

UNIT = "ln(1 + CPM) of the expected share"
HOSTILE = ["</script><script>window.hacked = 1</script>", "<&>\u2028{{js}}<!--", "<img src=x onerror=window.hacked=1>"]
SIZE = (2220, 2967)
FOLD = {
    "kind": "patient", "name": "B", "spots": 283, "genes": 1205, "train": ["C2", "C3"], "noise_ceiling": 0.375,
    "counts_without_biology": 0.001,
    "rows": {
        row: {"depth_controlled": r, "log_cpm_per_gene": r, "log_cpm_per_spot": None, "log_cpm_rmse": None}
        for row, r in {"training mean": 0.0, "ridge on colour and texture": 0.042, "model": 0.033}.items()
    },
}  # fmt: skip


def scale(gene, low=4.0, high=6.0):
    return ColourScale(gene, low, high, UNIT, "the model's card")


def report_of(result, path, genes=None, scales=None):
    genes = range(len(result.genes)) if genes is None else genes
    with open_slide(SLIDE) as slide:
        write_report(path, result, genes, scales or [scale(result.genes[i].name) for i in genes], slide)
    return path


def hostile_report(result, path):
    genes = [Gene(name, r, 5.0) for name, r in zip(HOSTILE, (0.35, 0.02, np.nan), strict=True)]
    provenance = result.provenance | {"model": {"name": HOSTILE[0], "sha256": HOSTILE[2]}}
    provenance["card"] = {"intended_use": HOSTILE[0], "held_out": [FOLD | {"name": HOSTILE[2]}]}
    return report_of(dataclasses.replace(result, name=HOSTILE[0], genes=genes, provenance=provenance), path)
