"""The words of a report: how far a slide, a gene and a model are to be trusted, and how the result was made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, isfinite, isnan
from typing import Any

import numpy as np

from stpredict.errors import counted, some, some_of
from stpredict.model.card import ROWS, SCORES, better_baselines, objective_of
from stpredict.model.reference import UNUSUAL_FROM
from stpredict.model.reliability import PREDICTED_FROM
from stpredict.prediction.quality import flags_in_words
from stpredict.result.file import UNUSUAL, Gene, Result

#: Words for a correlation (Evans 1996, Straightforward Statistics for the Behavioral Sciences), each up to its limit.
WORDS = ((0.4, "weak"), (0.6, "moderate"), (inf, "strong"))
#: The slide's path concerns only its owner; the others are per gene, or shown elsewhere.
NOT_SHOWN = {"card", "display_range", "settings.genes", "slide.path"}

#: The meaning of a spot's value in a result of --tta.
TURNED = "mean over the eight flips and rotations of its patch (--tta)"


def facts(result: Result, genes: Sequence[int]) -> Iterator[tuple[str, bool]]:
    """Yield sentences to read before believing a map of this slide, each with whether it is a warning."""
    provenance, spots, canvas = result.provenance, result.spots, result.canvas
    unusual = float(provenance["unusual_patches"])
    much = unusual > UNUSUAL_FROM
    yield f"{unusual:.0%} of patches look unlike the training data{'; expect little' if much else ''}", much
    held_out = np.array([result.genes[index].held_out_correlation for index in genes])
    for which, what in ((held_out < PREDICTED_FROM, "not predicted when the model was"), (np.isnan(held_out), "never")):
        if which.any():
            yield f"{which.sum()} of {counted(len(genes), 'gene')} shown: {what} tested", True
    failed = int(np.sum(~np.isfinite(result.expression(result.genes[genes[0]].name)))) if genes else 0
    lost = f"; {failed} more could not be read from the slide" if failed else ""
    yield f"{counted(len(spots) - failed, 'spot')} predicted{lost}", failed > 0
    counts = {name: int(flag.sum()) for name, flag in result.flagged().items()}
    if flags := flags_in_words(counts, len(spots), but=UNUSUAL):
        yield f"Of the spots {flags}", True
    native, given, used = (provenance["slide"].get(key) for key in ("native_mpp", "given_mpp", "mpp"))
    um = " × ".join(dict.fromkeys(f"{side:.4g}" for side in used)) + " µm per pixel"
    if given is None:
        by = provenance["slide"].get("mpp_by")
        yield f"{um}, from the slide file{f' ({by})' if by else ''}", False
    else:
        said = f"the slide file says {native[0]:.4g}" if native else "the slide file says nothing"
        yield f"{um}, given by hand; {said}", True
    for note in provenance["slide"].get("of_file", []):
        yield f"Of the slide file: {note}", True
    if said := provenance["slide"].get("appearance"):
        yield f"Of the slide: {said}", True
    spacing = {
        "square": f"Square lattice, one spot per {spots.pitch_um:g} µm",
        "hex": f"Hexagonal lattice, one spot per {spots.pitch_um:g} µm",
        "given": "Spots at given positions",
    }[spots.layout]
    overlapping = spots.layout != "given" and spots.pitch_um < canvas.spot_diameter_um
    overlap = ", so that neighbours share tissue" if overlapping else ""
    yield f"{spacing}; spots are {canvas.spot_diameter_um:g} µm wide{overlap}", overlapping
    if "tta" in provenance:
        yield f"Each spot is the {TURNED}", False
    if "tissue" in provenance:
        tissue = float(provenance["tissue"]["tissue_fraction_of_slide"])
        mm2 = tissue * np.prod(canvas.dimensions) * np.prod(canvas.mpp) / 1e6
        yield f"Tissue on {tissue:.0%} of the slide, {mm2:.3g} mm²", False


def describe_card(card: dict[str, Any] | None) -> dict[str, Any] | None:
    """The model's card as text and tables; None if the result has no card."""
    if card is None:
        return None
    training = card.get("training") or {}
    held_out = card.get("held_out") or []
    unseen = "patients" if any(fold["kind"] == "patient" for fold in held_out) else "sections"
    meaning = (
        f"between a gene's prediction and measurement across the spots of {unseen} that the model had not seen, "
        "controlled for sequencing depth; 1 is perfect, 0 is chance"
    )
    known = {
        "Correlation when held out": meaning if held_out else None,
        "Architecture": card.get("architecture"),
        "Input": f"{card['patch_px']} px patches at {card['mpp']:g} µm per pixel" if card.get("mpp") else None,
        "Objective": objective_of(card),
        "Trained on": _trained_on(training),
        "Licence of the data": training.get("licence"),
        "Intended use": card.get("intended_use"),
    }
    return {
        "facts": [[key, str(value)] for key, value in known.items() if value is not None],
        "scores": list(SCORES.values()),
        "folds": [_fold(fold) for fold in held_out if fold.get("rows")],
    }


def _trained_on(training: dict[str, Any]) -> str | None:
    if "sections" not in training:
        return None
    sections, patients = training["sections"], training["patients"]
    without_images = training.get("counts_only_sections", [])
    more = f", and the counts of {counted(len(without_images), 'section')} without images" if without_images else ""
    if slides := training.get("tissue_slides"):
        more += f", and the tissue of {counted(slides, 'slide')} without counts"
    of = f"{counted(len(sections), 'section')} ({', '.join(sections)}) of {counted(len(patients), 'patient')}"
    return f"{counted(training['spots'], 'spot')} of {of}{more}"


def _fold(fold: dict[str, Any]) -> dict[str, Any]:
    """One held-out test: its title, its table in the order of SCORES, and the table's message in words."""
    leak = "" if fold["kind"] == "patient" else ", of a patient that was also trained on"
    notes = [
        f"Noise ceiling of the depth-controlled correlation: {_shown(fold.get('noise_ceiling'))}. "
        f"On counts without biology the model scores {_shown(fold.get('counts_without_biology'))}."
    ]
    beaten_by = better_baselines(fold)
    if fold.get("leak"):
        notes.append(f"LEAK: {fold['leak']}.")
    if beaten_by:
        notes.append(f"Not beaten here: {', '.join(beaten_by)}. The model has learnt nothing that these had not.")
    return {
        "title": f"Held out: {fold['kind']} {some_of(fold['name'])}{leak}",
        "subtitle": f"{counted(fold['spots'], 'spot')}, {counted(fold['genes'], 'gene')}; "
        f"trained on {some(fold['train'])}",
        "rows": [[row, *(_shown(fold["rows"][row].get(key)) for key in SCORES)] for row in ROWS if row in fold["rows"]],
        "notes": notes,
    }


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as (dotted key, text), sorted by key."""
    for key, value in sorted(values.items()):
        name = f"{prefix}{key}"
        if name in NOT_SHOWN:
            continue
        if isinstance(value, dict):
            yield from flat(value, f"{name}.")
        elif isinstance(value, list):
            yield name, ", ".join(_plain(item) for item in value)
        else:
            yield name, _plain(value)


def reliability(held_out: float) -> str:
    """A word for a held-out correlation."""
    if not isfinite(held_out):
        return "never tested"
    if held_out < PREDICTED_FROM:
        return "not predicted when tested"
    return next(word for limit, word in WORDS if held_out < limit)


def tested(gene: Gene) -> dict[str, Any]:
    """How well the model predicted a gene in its test, for a record; None if the gene was not tested."""
    known = isfinite(gene.held_out_correlation)
    return {
        "held_out_correlation": round(gene.held_out_correlation, 4) if known else None,
        "held_out_low": round(gene.held_out_low, 4) if isfinite(gene.held_out_low) else None,
        "held_out_high": round(gene.held_out_high, 4) if isfinite(gene.held_out_high) else None,
        "held_out_ridge": round(gene.held_out_ridge, 4) if isfinite(gene.held_out_ridge) else None,
        "predicted_when_tested": gene.held_out_correlation >= PREDICTED_FROM if known else None,
    }


def in_words(gene: Gene) -> str:
    """The same in words for a caption."""
    word = reliability(gene.held_out_correlation)
    if not isfinite(gene.held_out_correlation):
        return f"{word} on held-out tissue"
    poor = gene.held_out_correlation < PREDICTED_FROM
    correlation = round(gene.held_out_correlation, 4)  # results store fp32, in which 0.435 would round up
    return f"{word.upper() if poor else word}: held-out correlation {correlation:.2f}"


def caveats(result: Result) -> str:
    """Further words of caution for a picture."""
    share = float(result.provenance["unusual_patches"])
    unusual = f"; {share:.0%} of patches look unlike the training data" if share > UNUSUAL_FROM else ""
    turned = f"; {TURNED}" if "tta" in result.provenance else ""
    return f"{result.provenance['model']['name']}; research use only{unusual}{turned}"


def _plain(value: Any) -> str:
    return "none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _shown(value: float | None) -> str:
    return "–" if value is None or isnan(value) else f"{value:.3f}"
