"""An assessment as lines for a terminal and as files: everything as JSON, and a CSV with a line per gene."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import stpredict
from stpredict.assessment import Assessment
from stpredict.files import atomic_path
from stpredict.rendering.table import plain_cell

JSON_SUFFIX = ".evaluation.json"
COLUMNS = {
    "depth_controlled": "depth-controlled",
    "of_the_ceiling": "of the ceiling",
    "log_cpm_pearson": "ln(1+CPM) Pearson",
    "log_cpm_spearman": "Spearman",
    "log_cpm_per_spot": "per spot",
    "log_cpm_rmse": "RMSE",
}


def show(assessment: Assessment) -> Iterator[str]:
    """The table and what to know of it."""
    yield assessment.title
    yield f"{'':30}" + "".join(f"{title:>19}" for title in COLUMNS.values())
    for name, row in assessment.rows.items():
        yield f"{name:30}" + "".join(f"{_cell(key, row[key]):>19}" for key in COLUMNS)
        if row["interval"]:
            low, high = row["interval"]
            yield f"{'':30}{f'({low:.3f} to {high:.3f})':>19}"
    for note in assessment.notes:
        yield f"- {note}"


def write(assessment: Assessment, stem: Path, what: dict[str, Any]) -> Iterator[Path]:
    """Write STEM.evaluation.json, which also says `what` was scored, and STEM.genes.csv; yield both."""
    path = stem.with_name(f"{stem.name}{JSON_SUFFIX}")
    content = {key: value for key, value in asdict(assessment).items() if key not in ("per_gene", "genes")}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({**what, **content, "stpredict": stpredict.__version__}, indent=1))
    yield path
    path = stem.with_name(f"{stem.name}.genes.csv")
    order = np.argsort(-np.nan_to_num(assessment.per_gene["depth_controlled"], nan=-2), kind="stable")
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("gene", *assessment.per_gene))
        for i in order:
            values = (scores[i] for scores in assessment.per_gene.values())
            writer.writerow(
                (plain_cell(assessment.genes[i]), *(f"{value:.4f}" if np.isfinite(value) else "" for value in values))
            )
    yield path


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0%}" if key == "of_the_ceiling" else f"{value:.3f}"
