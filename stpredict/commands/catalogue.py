"""List published models, find installed models that predict a gene, and note what a model scored elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from stpredict.commands.as_json import print_json
from stpredict.commands.models import describe_genes
from stpredict.console import printable, report
from stpredict.data.gene_lists import ENSEMBL, genes_of_a_date, names_of_today
from stpredict.errors import StpredictError, UsageError
from stpredict.model.catalogue import KNOWN
from stpredict.model.file import Model, find_model, list_models, load_model
from stpredict.model.measured import IN_SECTIONS, IN_TRAINING
from stpredict.model.notes import add_note, read_evaluation, show_notes
from stpredict.model.reliability import held_out_correlation, read_reliability


def list_known_command(as_json: bool) -> None:
    """Print the published models and encoders that can be brought in."""
    if as_json:
        print_json([{**asdict(entry), "size": entry.size} for entry in KNOWN])
        return
    for entry in KNOWN:
        for line in entry.lines():
            print(printable(line))


def genes_command(names: Sequence[str], as_json: bool = False) -> int:
    """Print which installed models predict genes, under which names and how reliably; 1 if none predicts one."""
    if not all(name.strip() for name in names):
        raise UsageError("a gene's name is empty.")
    models = list(installed())
    unknown, told = [], []
    for name in names:
        found = [(model, i) for model in models for i in find_gene(model, name)]
        if not found:
            unknown.append(name)
        if as_json:
            told.append({"asked": name, "found": [_described(model, i) for model, i in found]})
            continue
        lines = [f"{name}: {model.name} as {model.panel[i]}, {show_gene(model, i)}" for model, i in found]
        for line in lines or [f"{name}: in no installed model{_dated(name)}"]:
            print(printable(line))
    if as_json:
        print_json(told)
    if unknown:
        kind = "Ensembl id" if ENSEMBL.fullmatch(unknown[0]) else "symbol"
        listed = "; ".join(f"{entry.name}, {entry.genes}" for entry in KNOWN if kind in entry.genes)
        report(f"genes of models that are not installed are not known here; their authors' lists tell: {listed}")
    return int(bool(unknown))


def installed() -> Iterator[Model]:
    """The installed models. Those that cannot be read are reported."""
    for path in list_models().values():
        try:
            yield load_model(path)
        except StpredictError as error:
            report(f"stpredict: {error}")


def _described(model: Model, i: int) -> dict[str, Any]:
    return {"model": model.name, "file": model.path, **describe_genes(model)[i]}


def find_gene(model: Model, name: str) -> Iterator[int]:
    """Positions of the model's genes that `name` may mean: by name in any case, by new name, or by Ensembl id."""
    wanted = {name.upper(), *(new.upper() for new in names_of_today(name)), *map(str.upper, genes_of_a_date(name))}
    if found := ENSEMBL.fullmatch(name):
        wanted.add(found[1].upper())
    for i, gene in enumerate(model.panel):
        parts = {part.upper() for part in re.split(r"[\s()]+", gene)}
        if match := ENSEMBL.fullmatch(gene):
            parts.add(match[1].upper())
        if wanted & {gene.upper(), *parts}:
            yield i


def show_gene(model: Model, i: int) -> str:
    """How reliably a model predicts a gene of its panel, in words."""
    measured = model.card["genes"].get(IN_TRAINING)
    if measured and not measured[i]:
        return "measured in no section that it was trained on"
    if n_sections := model.card["genes"].get(IN_SECTIONS):
        return (
            f"measured in {n_sections[i]} of {len(model.card['training']['sections'])} sections, {show_score(model, i)}"
        )
    return show_score(model, i)


def show_score(model: Model, i: int) -> str:
    """How well a model predicted a gene of its panel when it was tested, in words."""
    correlation, reliability = held_out_correlation(model.card), read_reliability(model.card)
    if not np.isfinite(correlation[i]):
        return "never tested on held-out tissue" if not np.isfinite(correlation).any() else "not tested"
    if reliability is None:
        return f"held-out correlation {correlation[i]:.2f}"
    return (
        f"held-out correlation {correlation[i]:.2f} ({reliability.low[i]:.2f} to {reliability.high[i]:.2f}), "
        f"ridge {reliability.ridge[i]:.2f}, {'reliable' if reliability.reliable[i] else 'not reliable'}"
    )


def _dated(name: str) -> str:
    """If the name is a date, which genes a spreadsheet may have turned into it; else ""."""
    genes = genes_of_a_date(name)
    return f" (a date, which a spreadsheet made of {' or '.join(genes[:2])})" if genes else ""


def note_command(model_name: str, evaluation: Path, whose: str) -> None:
    """Add to a model's file what it scored on somebody's sections, and print all notes in the file."""
    if not whose.strip() or not whose.isprintable():
        raise UsageError("--whose: say whose sections they were.")
    model = load_model(find_model(model_name))
    try:
        add_note(model, read_evaluation(evaluation, model, whose.strip()))
    except OSError as error:
        raise UsageError(f"{model.path}: cannot be written ({error.strerror}).") from error
    for line in show_notes(load_model(model.path).card):
        print(printable(line))
