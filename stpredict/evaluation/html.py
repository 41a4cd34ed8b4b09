"""An assessment as one page that opens from disk, without scripts: for people who know tissue, not statistics."""

from __future__ import annotations

from base64 import b64encode
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

import stpredict
from stpredict.evaluation.figures import calibration_curve, spot_map
from stpredict.evaluation.maps import GeneMap
from stpredict.evaluation.page_parts import distribution, fill, items, style, table
from stpredict.evaluation.scores import CEILING, Assessment
from stpredict.evaluation.splits import MODEL, RIDGE
from stpredict.evaluation.tables import COLUMNS, PAPERS_COLUMNS, shown
from stpredict.storage.files import atomic_path

#: A note that begins with one of these stands above everything else.
WARNINGS = ("LEAK", "the model has learnt nothing")
KINDS = {"best": "among the best predicted", "middling": "in the middle", "worst": "among the worst predicted"}
#: Sections in the table; a cohort has hundreds, and the worst ones matter.
MAX_SECTIONS = 40


def write_page(path: Path, assessment: Assessment) -> None:
    """Write the page: warnings, a summary in words, the genes' distribution, maps, calibration, sections, tables."""
    warnings = [note for note in assessment.notes if note.startswith(WARNINGS)]
    others = [note for note in assessment.notes if note not in warnings]
    parts = {
        "title": escape(assessment.title),
        "css": style(),
        "warnings": f'<ul id="warnings" aria-label="Warnings">{items(warnings)}</ul>' if warnings else "",
        "summary": "\n".join(f"<p>{escape(sentence)}</p>" for sentence in summary(assessment)),
        "distribution": distribution({_row(name): values for name, values in assessment.by_row.items()}, {_row(MODEL)}),
        "maps": "\n".join(_gene(one, assessment.pictures.get(one.section)) for one in assessment.maps),
        "calibration": _calibration(assessment),
        "sections": _sections(assessment),
        "scores": "".join(_scores(assessment, columns) for columns in (COLUMNS, PAPERS_COLUMNS)),
        "notes": f"<ul>{items(others)}</ul>",
        "version": escape(stpredict.__version__),
    }
    page = fill("page.html", parts)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")


def summary(assessment: Assessment) -> list[str]:
    """The main results for a hurried reader, in whole sentences."""
    ours = assessment.rows[MODEL]["depth_controlled"]
    known = np.isfinite(assessment.by_row[MODEL])
    if ours is None:
        return ["None of the genes was counted here, so nothing can be said."]
    sentences = [
        f"Over {known.sum()} genes, predicted and measured maps correlate by {ours:.2f} on average. "
        f"The noise of the counts allows at most {np.nanmean(assessment.by_row[CEILING]):.2f}."
    ]
    others = {name: row["depth_controlled"] or 0.0 for name, row in assessment.rows.items() if name != MODEL}
    best = max(others, key=others.__getitem__)
    if ours <= 0:
        sentences.append("That is no better than chance.")
    verdict = "more than" if ours > max(others[best], 0) else "no more than"
    sentences.append(f"That is {verdict} the best of the simple predictors beside it: {best}, {others[best]:.2f}.")
    tested, beyond = assessment.whole["genes_tested"], assessment.whole["genes_beyond_chance"]
    sentences.append(
        f"{beyond} of {tested} genes agree with their measurement better than unrelated maps as smooth do by chance."
    )
    return sentences


def _gene(one: GeneMap, picture: bytes | None) -> str:
    """One gene: the tissue, a map as measured, a map as predicted."""
    gene, section = escape(one.gene), escape(one.section)
    figures = []
    if picture:
        source = f"data:image/webp;base64,{b64encode(picture).decode()}"
        figures.append(("tissue", "Tissue under the spots", f'<img src="{source}" alt="H&amp;E of section {section}">'))
    for title, values in (("Measured", one.measured), ("Predicted", one.predicted)):
        figures.append(("map", title, spot_map(one.centres, values, f"{title} {gene} in section {section}")))
    drawn = "".join(
        f'<figure class="{kind}"><figcaption>{title}</figcaption>{it}</figure>' for kind, title, it in figures
    )
    correlation = f"correlation {one.in_section:.2f}; over {one.sections} {one.correlation:.2f}"
    return (
        f'<div class="gene"><h3>{gene}<span class="kind">{KINDS[one.kind]}</span></h3>'
        f'<p class="note">Section {section}: {correlation}</p><div class="three">{drawn}</div></div>'
    )


def _calibration(assessment: Assessment) -> str:
    predicted, measured = (assessment.whole["calibration"][key] for key in ("predicted", "measured"))
    if not predicted:
        return '<p class="note">The model predicts in a unit that the measurements do not have.</p>'
    if None in predicted or None in measured:
        return '<p class="note">There are too few spots in each section to say.</p>'
    text = (
        "In each section, every gene’s spots are sorted by its prediction into ten groups, low to high. Each dot is "
        "one group, averaged over genes and sections. On the dashed line, predicted differences are as large as "
        "measured ones; a flatter curve means that they are overstated, a steeper one that they are understated."
    )
    reach = f"Predicted groups reach from {predicted[0]:.2f} to {predicted[-1]:.2f} times the gene’s mean, "
    reach += f"what was measured in them from {measured[0]:.2f} to {measured[-1]:.2f} times."
    return (
        f'<div class="plot">{calibration_curve(predicted, measured)}'
        f'<div><p class="note">{escape(text)}</p><p class="note">{escape(reach)}</p></div></div>'
    )


def _sections(assessment: Assessment) -> str:
    shown_rows = [name for name in (MODEL, RIDGE) if name in assessment.rows]
    head = ["section", "patient", "spots", "genes", "median counts", *map(_row, shown_rows), "noise ceiling"]
    body = [
        [one["section"], one["patient"], str(one["spots"]), str(one["genes"]), f"{one['median_depth']:.0f}",
         *(shown("", one["rows"][name]) for name in shown_rows), shown("", one["noise_ceiling"])]
        for one in assessment.sections[:MAX_SECTIONS]
    ]  # fmt: skip
    rest = len(assessment.sections) - MAX_SECTIONS
    more = f'<p class="note">{rest} better sections stand in the .evaluation.json.</p>' if rest > 0 else ""
    return table(head, body, {_row(MODEL)}) + more


def _scores(assessment: Assessment, columns: dict[str, str]) -> str:
    body = [[_row(name), *(_with_interval(key, row) for key in columns)] for name, row in assessment.rows.items()]
    return table(["", *columns.values()], body, {_row(MODEL)})


def _with_interval(key: str, row: dict[str, Any]) -> str:
    """A score as text; the first score comes with its interval, if it has one."""
    interval = row["interval"] if key == "depth_controlled" else None
    return shown(key, row[key]) + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def _row(name: str) -> str:
    return "this model" if name == MODEL else name
