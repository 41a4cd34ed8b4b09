"""The genes that a network predicts, and the networks that allow genes which only some sections measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stpredict.arrays import Bool, Int
from stpredict.data.coverage import CHOOSE_SECTIONS
from stpredict.data.panel import Coverage, Look, check_rule, choose_from, genes_among, look_at
from stpredict.data.tiles import Measured, Tiles, shared_genes
from stpredict.errors import UsageError, counted
from stpredict.networks import has_bank
from stpredict.statistics.normalisation import NORMALISATIONS
from stpredict.training.defaults import PANEL_RULE
from stpredict.training.settings import Settings


@dataclass(frozen=True)
class Panel:
    """How to choose the genes: a list, or a rule of data/panel.py with a size and required genes.

    The default rule is coverage if sections measured different genes, else variance. `min_sections` is for coverage.
    """

    genes: Sequence[str] = ()
    size: int | None = None
    required: Sequence[str] = ()
    rule: str | None = None
    min_sections: int | None = None

    def rule_for(self, found: Tiles | Measured) -> str:
        """The rule for a data set. It is the same for all held-out parts."""
        return self.rule or ("coverage" if found.differs else PANEL_RULE)

    def recorded(self, chosen: bool = False) -> dict[str, Any]:
        """For the record of a run, in older versions' form if they knew it.

        With `chosen` it also says whether the user named the rule.
        """
        asked = {"chosen": self.rule is not None} if chosen else {}
        record = asdict(self) | {"rule": self.rule or PANEL_RULE} | asked
        return {name: value for name, value in record.items() if name != "min_sections" or value is not None}


def choose_genes(tiles: Tiles, panel: Panel, sections: Sequence[str], seed: int) -> list[str]:
    """The genes of a panel. If it has a rule, the counts of `sections` alone choose them.

    Named genes that none of these sections measured are left out. Raises UsageError if nothing is left, and as
    `choose_panel` does.
    """
    names = sorted(sections)
    chosen = list(dict.fromkeys([*panel.genes, *panel.required]))
    if not panel.genes:
        coverage, rule = coverage_of(tiles, names, panel), panel.rule_for(tiles)
        check_rule(rule)
        looks = looks_at(tiles, names, rule, genes_among(rule, coverage))
        chosen = choose_from(looks, tiles.genes, panel.size, panel.required, seed, rule, coverage)
    known: Bool = np.any(tiles.measured_by(names, chosen), axis=0)
    if not known.any():
        raise UsageError(f"none of the genes of the panel was measured in {', '.join(names)}; name others.")
    return [gene for gene, there in zip(chosen, known, strict=True) if there]


def looks_at(tiles: Tiles, sections: Sequence[str], rule: str, among: Int | None) -> Iterator[Look]:
    """What a rule needs of each section's counts, which are read once for all parts of a run."""
    asked = rule, among.tobytes() if among is not None and rule == "variable" else None
    for name in sections:
        if (name, *asked) not in tiles.looks:
            counts = next(tiles.counts_of([name]))
            tiles.looks[name, *asked] = look_at(counts, rule, among)
        yield tiles.looks[name, *asked]


def coverage_of(found: Tiles | Measured, names: Sequence[str], panel: Panel) -> Coverage | None:
    """Which genes the named sections measured, of those to choose from; None if all measured all."""
    if found.measured is None:
        return None
    patients = dict(zip(found.section.tolist(), found.kin.tolist(), strict=True))
    return Coverage(found.measured.of(names), [patients[name] for name in names], panel.min_sections)


def n_partly_measured(panel: Panel, found: Tiles | Measured) -> int:
    """How many genes of a panel, or of those to choose from, some sections with images did not measure."""
    shared = set(shared_genes(found))
    candidates = found.counted_genes if not panel.genes and panel.rule_for(found) == "coverage" else ()
    return len({*panel.genes, *panel.required, *candidates} - shared)


def refuse_gaps(settings: Settings, n_partly: int) -> None:
    """Raises UsageError if a network or unit needs all genes in all spots, and `n_partly` are missing in some."""
    if not n_partly:
        return
    architecture, why = settings.architecture, ""
    if has_bank(architecture):
        why = f"--arch {architecture}: looks whole profiles of measured spots up"
    elif architecture.startswith("hist2st"):
        why = f"--arch {architecture}: learns the distribution of all counts of a spot"
    elif NORMALISATIONS[settings.normalisation].of_panel:
        why = f"--normalisation {settings.normalisation}: is the share of the whole panel's counts"
    if why:
        raise UsageError(
            f"{why}, and the panel may hold {counted(n_partly, 'gene')} that only some sections measured; take genes "
            f"that all measured (--panel variance), or {CHOOSE_SECTIONS}."
        )


def n_genes_measured(tiles: Tiles, panel: Sequence[str]) -> Int:
    """How many of a panel's genes each spot's section measured."""
    names, of_spot = np.unique(tiles.section, return_inverse=True)
    measured: Int = tiles.measured_by(names.tolist(), panel).sum(axis=1)
    return measured[of_spot]
