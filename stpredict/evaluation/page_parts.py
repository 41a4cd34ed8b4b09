"""Parts of the pages with scores: a template, its style, tables, and the distribution of scores over genes."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from stpredict.arrays import Float
from stpredict.evaluation.figures import axis, ramp, spread

NO_NOTES: Mapping[str, str] = {}
PAGE = Path(__file__).parent / "page"


def fill(template: str, parts: Mapping[str, str]) -> str:
    """A template from the folder `page`, its {{parts}} replaced by HTML."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], (PAGE / template).read_text(encoding="utf-8"))


def style() -> str:
    """The style that all pages share."""
    return fill("page.css", {"ramp": ", ".join(ramp(9))})


def distribution(by_row: Mapping[str, Float], ours: Container[str]) -> str:
    """A line per row for its genes' scores. Rows without any are left out; rows named in `ours` stand out."""
    known = {name: values[np.isfinite(values)] for name, values in by_row.items()}
    known = {name: values for name, values in known.items() if len(values)}
    ends = np.concatenate([np.percentile(values, (5, 95)) for values in known.values()] or [np.zeros(1)])
    low, high = min(-0.1, np.floor(ends.min() * 10) / 10), max(0.3, np.ceil(ends.max() * 10) / 10)
    lines = []
    for name, values in known.items():
        kind = " ours" if name in ours else ""
        lines.append(
            f'<span class="name{kind}">{escape(name)}</span>{spread(values, low, high, bool(kind))}'
            f'<span class="value{kind}" title="mean">{values.mean():.2f}</span>'
        )
    return f'<div class="spread">{"".join(lines)}<span class="name"></span>{axis(low, high)}<span></span></div>'


def table(
    head: Sequence[str], body: Iterable[Sequence[str]], ours: Container[str] = (), why: Mapping[str, str] = NO_NOTES
) -> str:
    """A table of text. A row stands out if its first cell is one of `ours`, and has its reason in `why` below it."""
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    rows = "".join(
        f'<tr class="{"ours" if row[0] in ours else "other"}"><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        + (f'<tr class="why"><td colspan="{len(head)}">{escape(why[row[0]])}</td></tr>' if row[0] in why else "")
        for row in body
    )
    return f'<div class="table"><table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table></div>'


def items(notes: Iterable[str]) -> str:
    """Notes as items of a list."""
    return "".join(f"<li>{escape(note)}</li>" for note in notes)
