"""A comparison as lines for a terminal and as files: a page, all as JSON, and CSVs of the systems and of the genes."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import stpredict
from stpredict.comparison.html import write_page
from stpredict.comparison.summary import COST_COLUMNS, SCORE_COLUMNS, Summary, cell, papers_rows
from stpredict.comparison.table import COSTS, Row
from stpredict.storage.csv_cells import plain_cell
from stpredict.storage.files import atomic_path

PAGE, EVERYTHING, SYSTEMS, GENES = "comparison.html", "results.json", "systems.csv", "genes.csv"
#: Columns of systems.csv beside scores and costs.
OF_ROW = ("between_seeds", "of_the_ceiling", "above_ridge", "seeds")


def show(summary: Summary) -> Iterator[str]:
    """The tables, notes on them, and why rows are missing."""
    yield summary.title
    yield from summary.leaks
    for columns in (SCORE_COLUMNS, COST_COLUMNS):
        rows = [row for row in summary.rows if columns is SCORE_COLUMNS or row.is_system]
        yield from in_columns(["", *columns.values()], [[row.name, *(cell(row, k) for k in columns)] for row in rows])
        yield ""
    titles, reported = papers_rows(summary)
    if reported:
        yield from in_columns(titles, reported)
        yield ""
    yield from (f"- {note}" for note in summary.notes)
    yield from (f"- {row.name}: {row.reason}" for row in summary.failed)


def in_columns(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table whose columns are as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for first, *others in (titles, *rows):
        yield "  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])])


def write(summary: Summary, folder: Path) -> Iterator[Path]:
    """Write the page, results.json, systems.csv with a line per row, and genes.csv with a line per gene."""
    write_page(folder / PAGE, summary)
    yield folder / PAGE
    with atomic_path(folder / EVERYTHING) as temporary:
        temporary.write_text(json.dumps({**asdict(summary), "stpredict": stpredict.__version__}, indent=1))
    yield folder / EVERYTHING
    columns = [key for key in SCORE_COLUMNS if key not in OF_ROW]
    names = ["system", *columns, "interval_low", "interval_high", *OF_ROW, *COSTS, "epochs", "reason"]
    yield write_csv(folder / SYSTEMS, names, (in_csv(row, columns) for row in summary.rows))
    scored = [row for row in summary.rows if row.per_gene]
    genes = sorted({gene for row in scored for gene in row.per_gene})
    yield write_csv(folder / GENES, ["gene", *(row.name for row in scored), "noise ceiling", "sections"], (
        [plain_cell(gene), *(row.per_gene.get(gene) for row in scored), summary.ceiling.get(gene),
         summary.sections.get(gene)]
        for gene in genes
    ))  # fmt: skip


def in_csv(row: Row, columns: Sequence[str]) -> list[Any]:
    """The cells of a row of systems.csv."""
    return [
        row.name, *(row.scores.get(key) for key in columns), *(row.interval or (None, None)),
        *(getattr(row, key) for key in OF_ROW), *(row.costs.get(key) for key in COSTS), cell(row, "epochs"),
        plain_cell(row.reason or ""),
    ]  # fmt: skip


def write_csv(path: Path, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write a CSV. Numbers have five digits; a cell is empty if its value is not known."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for row in rows:
            writer.writerow(f"{value:.5g}" if isinstance(value, float) else value for value in row)
    return path
