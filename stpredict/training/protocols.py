"""Tests as published papers run them, for comparison with their numbers. Each comes with its faults."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stpredict.data.tiles import Measured, Tiles
from stpredict.data.twins import with_twins
from stpredict.errors import UsageError
from stpredict.evaluation.tables import PAPERS_COLUMNS
from stpredict.statistics.metrics import LOG_CPM_BY_SECTION, SPOTS_BY_SECTION, pcc_over_sections
from stpredict.training.folds import Fold, plan_folds
from stpredict.training.panels import Panel
from stpredict.training.recipes import Recipe
from stpredict.training.settings import Settings

#: How many genes both papers' panels have.
PANEL_SIZE = 250
#: TRIPLEX holds out one patient at a time if there are few, and this many parts of patients if there are more.
TRIPLEX_PARTS = 8


@dataclass(frozen=True)
class Protocol:
    """How a paper splits sections and chooses genes and targets, what its test leaks, and in words what is its own."""

    folds: Callable[[Tiles | Measured, int], list[Fold]]
    panel_rule: str
    smooth_labels: bool
    normalisation: str
    leak: str
    its_own: str


#: Choices that no protocol takes from its paper: for networks trained epoch by epoch, by this program's recipe or a
#: paper's, and for networks fitted at once.
OURS_TRAINED = (
    "the optimiser (AdamW), its schedule and number of epochs, clipped gradients, varied stains, teaching on "
    "unlabelled tissue, and the score that chooses the epoch"
)
OURS_WITH_RECIPE = "the depth-controlled correlation as the score that chooses the epoch"
OURS_FITTED = "the network, how its head is fitted, and the score that chooses a penalty"


def find_protocol(name: str) -> Protocol:
    """The protocol of a name. Raises UsageError if no protocol has it."""
    if name not in PROTOCOLS:
        raise UsageError(f"--protocol {name}: choose {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


def adopt_protocol(name: str, settings: Settings, panel: Panel) -> tuple[Settings, Panel]:
    """The settings and the panel, with a paper's choices. Raises UsageError if no protocol has the name."""
    paper = find_protocol(name)
    adopted = replace(
        settings, objective="mse", smooth_labels=paper.smooth_labels, min_depth=1, normalisation=paper.normalisation
    )
    return adopted, replace(panel, rule=paper.panel_rule, size=panel.size or PANEL_SIZE)


def m2ort_folds(tiles: Tiles | Measured, seed: int) -> list[Fold]:
    """Sections in sorted order, shuffled: 60 % train, 10 % choose the epochs, the rest test."""
    order = sorted(set(tiles.section.tolist()))
    random.Random(seed).shuffle(order)
    n, m = int(0.6 * len(order)), int(0.7 * len(order))
    if not n:
        raise UsageError("--protocol m2ort: needs two sections or more.")
    test = [name for name in with_twins(order[m:], tiles.twins) if name in order]  # never on both sides
    validation = [name for name in with_twins(order[n:m], tiles.twins) if name in order and name not in test]
    train = sorted(set(order) - {*test, *validation})
    if not train:
        raise UsageError("--protocol m2ort: needs two sections or more that differ.")
    shared = set(tiles.kin[np.isin(tiles.section, train)]) & set(tiles.kin[np.isin(tiles.section, test)])
    return [Fold("m2ort", "section" if shared else "patient", test, train, validation)]


def triplex_folds(tiles: Tiles | Measured, seed: int) -> list[Fold]:  # noqa: ARG001 (another protocol draws)
    """Each patient in turn, or eight parts of patients; the test sections themselves choose the epochs."""
    n_patients = len(set(tiles.kin))
    folds = plan_folds(tiles, "patient" if n_patients <= TRIPLEX_PARTS else str(TRIPLEX_PARTS))
    if not folds:
        raise UsageError("--protocol triplex: needs two patients or more.")
    leak = "epochs, or a linear head's penalty, were chosen on the test sections"
    return [Fold(f.name, f.kind, f.test_sections, None, f.test_sections, leak) for f in folds]


PROTOCOLS = {
    "m2ort": Protocol(
        m2ort_folds, "variance", smooth_labels=False, normalisation="total",  # the released code: of the panel
        leak="sections of one patient are on both sides of the split; the mean of the same patient's training sections "
        "passes the published networks",
        its_own="60/10/30 % of the sections, 250 genes of high variance in every training section, ln(1 + CPM) of all "
        "counts as its text has it, squared error, every spot scored",
    ),
    "triplex": Protocol(
        triplex_folds, "mean", smooth_labels=True, normalisation="1e4",  # the released code: of the panel, too
        leak="the epochs, and the genes of PCC(H), are chosen by the score on the test sections themselves",
        its_own="patients or parts of them in turn, epochs chosen on the test, 250 genes of highest mean count, "
        "ln(1 + counts per 10,000) averaged over neighbouring spots, squared error, every spot scored",
    ),
}  # fmt: skip


def show_protocol(name: str, held_out: Sequence[dict[str, Any]], unit: str, recipe: Recipe | None) -> Iterator[str]:
    """Each row's scores as papers define them, mean over held-out parts; the leak; and which choices are whose."""
    parts = f"{len(held_out)} held-out part{'s' if len(held_out) > 1 else ''}"
    yield f"paper protocol {name}, {unit}, mean over {parts}"
    if any(fold["kind"] == "section" or fold.get("leak") for fold in held_out):
        yield f"LEAK: {PROTOCOLS[name].leak}"
    yield f"{'':30}" + "".join(f"{title:>12}" for title in PAPERS_COLUMNS.values())
    for row in held_out[0]["rows"]:
        if all(row in fold["rows"] for fold in held_out):
            shown = {key: _mean(held_out, row, key) for key in PAPERS_COLUMNS}
            if shown["pcc_m"] != "-":
                shown["pcc_m"], shown["pcc_h"] = _pcc(held_out, row)
            yield f"{row:30}" + "".join(f"{value:>12}" for value in shown.values())
    yield f"the paper's: {PROTOCOLS[name].its_own}"
    if recipe:
        its_own = f"optimiser ({recipe.optimiser}), rate, schedule, epochs and batch"
        yield f"the recipe's, of {recipe.source}: {its_own}"
        yield f"ours: {'; '.join(filter(None, (recipe.ours, OURS_WITH_RECIPE)))}"
    else:
        yield f"ours: {OURS_FITTED if all(fold.get('epochs') == 0 for fold in held_out) else OURS_TRAINED}"
    yield "PCC(H) is of the genes that rank best over all held-out sections, chosen by the very scores it averages"


def _pcc(held_out: Sequence[dict[str, Any]], row: str) -> tuple[str, str]:
    """PCC(M) and PCC(H) as in TRIPLEX: over the sections of all parts, from genes that every part predicted."""
    shared = sorted(set(held_out[0]["panel"]).intersection(*(fold["panel"] for fold in held_out)))
    if not shared or not all(LOG_CPM_BY_SECTION in fold for fold in held_out):  # an older version's
        return "-", "-"
    r = []
    for fold in held_out:
        column = {gene: i for i, gene in enumerate(fold["panel"])}
        r.append(np.array(fold[LOG_CPM_BY_SECTION][row], dtype=float)[:, [column[gene] for gene in shared]])
    spots = np.concatenate([fold[SPOTS_BY_SECTION] for fold in held_out])
    found = pcc_over_sections(np.concatenate(r), spots)
    pcc_m, pcc_h = (f"{value:.3f}" if np.isfinite(value) else "-" for value in found)
    return pcc_m, pcc_h


def _mean(held_out: Sequence[dict[str, Any]], row: str, key: str) -> str:
    values = [fold["rows"][row][key] for fold in held_out]
    return "-" if None in values else f"{np.mean(values):.3f}"
