"""An assessment as lines for a terminal and as files: a page, everything as JSON, and a CSV with a line per gene."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import stpredict
from stpredict.evaluation.html import write_page
from stpredict.evaluation.scores import Assessment
from stpredict.evaluation.splits import MODEL
from stpredict.evaluation.tables import COLUMNS, PAPERS_COLUMNS, shown
from stpredict.storage.csv_cells import plain_cell
from stpredict.storage.files import atomic_path

JSON_SUFFIX = ".evaluation.json"
PAGE_SUFFIX = ".evaluation.html"
#: Fields that are not written as JSON: the table of genes has them, or they are drawn.
NOT_IN_JSON = ("per_gene", "by_row", "genes", "maps", "pictures")
WIDTH = 30


def show(assessment: Assessment) -> Iterator[str]:
    """The tables and notes on them."""
    yield assessment.title
    yield f"{'':{WIDTH}}" + "".join(f"{title:>20}" for title in COLUMNS.values())
    for name, row in assessment.rows.items():
        yield f"{name:{WIDTH}}" + "".join(f"{shown(key, row[key]):>20}" for key in COLUMNS)
        if row["interval"]:
            low, high = row["interval"]
            yield f"{'':{WIDTH}}{f'({low:.3f} to {high:.3f})':>20}"
    yield ""
    yield f"{'as the papers score':{WIDTH}}" + "".join(f"{title:>12}" for title in PAPERS_COLUMNS.values())
    for name, row in assessment.rows.items():
        yield f"{name:{WIDTH}}" + "".join(f"{shown(key, row[key]):>12}" for key in PAPERS_COLUMNS)
    yield ""
    for note in assessment.notes:
        yield f"- {note}"
    if len(assessment.sections) > 1:
        worst = assessment.sections[0]
        yield f"- worst section: {worst['section']}, where the model scores {shown('', worst['rows'][MODEL])}"


def write(assessment: Assessment, stem: Path, what: dict[str, Any]) -> Iterator[Path]:
    """Write STEM.evaluation.html, STEM.evaluation.json and STEM.genes.csv. The JSON also says `what` was scored."""
    path = stem.with_name(f"{stem.name}{PAGE_SUFFIX}")
    write_page(path, assessment)
    yield path
    path = stem.with_name(f"{stem.name}{JSON_SUFFIX}")
    content = {key: value for key, value in asdict(assessment).items() if key not in NOT_IN_JSON}
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
                (plain_cell(assessment.genes[i]), *(f"{value:.4g}" if np.isfinite(value) else "" for value in values))
            )
    yield path
