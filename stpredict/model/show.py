"""A model's card in words, as `models show` prints it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from stpredict.arrays import Float
from stpredict.errors import counted, some, some_of
from stpredict.model.card import ROWS, SCORES, better_baselines, objective_of
from stpredict.model.file import Model
from stpredict.model.measured import told_measured
from stpredict.model.notes import show_notes
from stpredict.model.origin import told_origin
from stpredict.model.reliability import PREDICTED_FROM, held_out_correlation, read_reliability
from stpredict.slides.views import views_in_words
from stpredict.statistics.conformal import describe_intervals
from stpredict.statistics.metrics import FALSE_DISCOVERIES

#: Of more training sections the card is told with the first few; --json names all.
MOST_NAMED = 12


def show_card(model: Model, n_genes: int = 10) -> Iterator[str]:
    """Lines for people: what a model is, how it was tested, and which genes it predicts best and worst."""
    card, training = model.card, model.card["training"]
    yield f"{model.name}: {card['architecture']}, {counted(len(model.panel), 'gene')}, sha256 {model.sha256[:16]}"
    yield (
        f"input: {card['patch_px']} px patches at {card['mpp']:g} um/px{views_in_words(model.views)}; "
        f"spots of {card['spot_diameter_um']:g} um"
    )
    trained_by = f"; objective {name}{_in_brackets(card.get('loss'))}" if (name := objective_of(card)) else ""
    yield f"output: {card['expression_unit']}{trained_by}"
    if origin := told_origin(card):
        yield origin
    for role in ("encoder", "teacher"):
        if known := training.get(role):
            yield f"{role}: {known['file']}, licence {known['licence']}, sha256 {known['sha256'][:16]}"
    if "sections" in training:
        yield (
            f"trained on: {counted(training['spots'], 'spot')} of {counted(len(training['sections']), 'section')} "
            f"({some(training['sections'], MOST_NAMED)}) of {counted(len(training['patients']), 'patient')}"
            f"{f', {what} counting alike' if (what := training.get('balance')) else ''}; "
            f"licence of the data: {training['licence']}"
        )
    yield from told_measured(card)
    if coarse := training.get("coarse_sections"):
        yield f"images coarser than the model, {training['coarse_mpp']:g} um/px at most: {', '.join(coarse)}"
    if form := training.get("patch_format"):
        yield f"patches of training were stored as {form}"
    if recipe := training.get("recipe"):
        ours = f"; ours: {recipe['ours']}" if recipe["ours"] else ""
        yield f"recipe: {recipe['name']}, of {recipe['source']}{ours}"
    if bank := training.get("bank"):
        yield (
            f"holds measurements of patients ({', '.join(training['patients'])}): {bank['of_each']} and expression of "
            f"{counted(bank['genes'], 'gene')} of {counted(bank['spots'], 'spot')}; licence of the data: "
            f"{training['licence']}. Who has this file has them"
        )
    if without_images := training.get("counts_only_sections"):
        yield (
            "how genes vary together: also from the counts of "
            f"{counted(len(without_images), 'section')} without images, of "
            f"{counted(len(training['counts_only_patients']), 'patient')}"
        )
    if slides := training.get("tissue_slides"):
        places = counted(training["tissue_patches"], "unlabelled place")
        yield f"taught also on {places} of {counted(slides, 'slide')} without counts"
    yield card["intended_use"]
    for fold in card["held_out"]:
        leak = "" if fold["kind"] == "patient" else ", of a patient that was also trained on"
        leak += f"; LEAK: {fold['leak']}" if fold.get("leak") else ""
        if coarse := fold.get("coarse_sections"):
            leak += f", from images of up to {fold['coarse_mpp']:g} um/px: {', '.join(coarse)}"
        yield ""
        yield (
            f"held out: {fold['kind']} {some_of(fold['name'])}{leak}; {counted(fold['spots'], 'spot')}{_how_deep(fold)}"
            f", {counted(fold['genes'], 'gene')}{_how_many_measured(fold)}, trained on {some(fold['train'])}"
        )
        yield f"  {'':30}" + "".join(f"{title:>20}" for title in SCORES.values())
        for row in (name for name in ROWS if name in fold["rows"]):
            scores = fold["rows"][row]
            yield f"  {row:30}" + "".join(f"{_shown(scores[key]):>20}" for key in SCORES)
        yield (
            f"  noise ceiling {_shown(fold['noise_ceiling'])}; on counts without biology the model scores "
            f"{_shown(fold['counts_without_biology'])}"
        )
        if beaten_by := better_baselines(fold):
            yield f"  here the model has learnt nothing that these had not: {', '.join(beaten_by)}"
    if lines := list(show_crossvalidation(card["held_out"])):
        yield from ("", *lines)
    yield from describe_intervals(card["intervals"], 0, card["expression_unit"]) if card.get("intervals") else ()
    correlation = held_out_correlation(card)
    known = [i for i in np.argsort(-correlation) if np.isfinite(correlation[i])]
    if known:
        yield ""
        yield "best predicted when held out: " + _named(model.panel, correlation, known[:n_genes])
        yield "worst: " + _named(model.panel, correlation, known[::-1][:n_genes])
        yield f"{int((correlation[known] >= PREDICTED_FROM).sum())} of {len(known)} genes reach {PREDICTED_FROM:g}"
        if untested := len(model.panel) - len(known):
            yield f"{counted(untested, 'gene')} not tested: in no held-out part's panel, or never counted there"
        reliability = read_reliability(card)
        if reliability:
            yield (
                f"{int(reliability.reliable.sum())} of {len(known)} genes are reliable: their interval lies above 0, "
                f"at a false discovery rate of {FALSE_DISCOVERIES:.0%}, and they beat ridge ({reliability.how})"
            )
    else:
        yield "never tested on held-out tissue"
    yield from show_notes(card)


def show_crossvalidation(folds: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Each row's depth-controlled correlation, averaged over held-out parts of the same kind, if there are several."""
    for kind in ("patient", "section"):
        own = [fold["rows"] for fold in folds if fold["kind"] == kind]
        if len(own) < 2:
            continue
        leak = "" if kind == "patient" else ", of patients that were also trained on"
        yield f"mean over {len(own)} held-out parts by {kind}{leak}, depth-controlled correlation (lowest to highest):"
        for row in (name for name in ROWS if all(name in rows for rows in own)):
            values = np.array([rows[row]["depth_controlled"] for rows in own], dtype=float)
            if not np.isfinite(values).any():
                continue
            mean, low, high = np.nanmean(values), np.nanmin(values), np.nanmax(values)
            yield f"  {row:30}{mean:8.3f} ({low:.3f} to {high:.3f})"


def _how_deep(fold: dict[str, Any]) -> str:
    """Which spots of a held-out part were scored. Older versions scored all."""
    if fold.get("min_depth", 0) <= 1:
        return " (all, however few counts they have)"
    return f" of {fold['min_depth']} counts or more ({fold['spots_left_out']} left out)"


def _how_many_measured(fold: dict[str, Any]) -> str:
    """The panel's genes that no section of a held-out part measured."""
    return f" ({fold['genes_not_measured']:,} of them not measured there)" if fold.get("genes_not_measured") else ""


def _named(panel: Sequence[str], correlation: Float, index: Sequence[int]) -> str:
    return ", ".join(f"{panel[i]} {correlation[i]:.2f}" for i in index)


def _in_brackets(text: object) -> str:
    return f" ({text})" if text else ""


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
