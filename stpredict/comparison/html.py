"""A comparison as one page that opens from disk, without scripts: one table, distributions over genes, and costs."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np

import stpredict
from stpredict.arrays import Float
from stpredict.comparison.summary import COST_COLUMNS, SCORE_COLUMNS, Summary, cell, papers_rows
from stpredict.evaluation.page_parts import distribution, fill, items, style, table
from stpredict.evaluation.splits import DEPTH_CONTROLLED
from stpredict.storage.files import atomic_path


def write_page(path: Path, summary: Summary) -> None:
    """Write the page: leaks and failures, the main results, the table, the genes' distributions, and notes."""
    warnings = [*summary.leaks, *(f"{row.name}: {row.reason}" for row in summary.failed)]
    systems = {row.name for row in summary.rows if row.is_system}
    titles, reported = papers_rows(summary)
    columns = SCORE_COLUMNS | COST_COLUMNS
    body = [[row.name, *(cell(row, key) for key in columns)] for row in summary.rows]
    why = {row.name: row.reason or "" for row in summary.failed}
    parts = {
        "title": escape(summary.title),
        "css": style(),
        "warnings": f'<ul id="warnings" aria-label="Warnings">{items(warnings)}</ul>' if warnings else "",
        "summary": "\n".join(f"<p>{escape(sentence)}</p>" for sentence in in_short(summary)),
        "scores": table(["", *columns.values()], body, systems, why),
        "reported": table(titles, reported) if reported else "",
        "distribution": distribution(by_row(summary), systems),
        "notes": f"<ul>{items(summary.notes)}</ul>",
        "version": escape(stpredict.__version__),
    }
    page = fill("comparison.html", parts)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")


def by_row(summary: Summary) -> dict[str, Float]:
    """Each row's depth-controlled correlation per gene, best first, and the noise ceiling."""
    scored = [row for row in summary.rows if row.per_gene]
    scored.sort(key=lambda row: -(row.scores.get(DEPTH_CONTROLLED) or 0.0))
    values = {row.name: np.array(list(row.per_gene.values())) for row in scored}
    return values | {"noise ceiling": np.array(list(summary.ceiling.values()))}


def in_short(summary: Summary) -> list[str]:
    """The main results for a hurried reader, in whole sentences."""
    scores = {row.name: value for row in summary.rows if (value := row.scores.get(DEPTH_CONTROLLED)) is not None}
    ours = {row.name: scores[row.name] for row in summary.rows if row.is_system and row.name in scores}
    others = {name: value for name, value in scores.items() if name not in ours}
    if not ours or not others:
        return ["No system has been trained and tested on all parts yet."]
    best, beside = max(ours, key=ours.__getitem__), max(others, key=others.__getitem__)
    sentences = [
        f"Of {len(ours)} systems, {best} agrees best with what was measured, controlled for depth: {ours[best]:.3f}.",
        f"The best of the simple predictors is {beside}: {others[beside]:.3f}.",
    ]
    below = [name for name, value in ours.items() if value <= others[beside]]
    if below:
        sentences.append(f"No better than that: {', '.join(below)}.")
    return sentences
