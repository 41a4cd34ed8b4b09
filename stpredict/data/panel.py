"""Choose the genes that a model predicts."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from stpredict.arrays import Bool, Float, Int
from stpredict.console import report
from stpredict.data.gene_lists import genes_of_a_date, names_of_today, parse_gene_list
from stpredict.errors import UsageError, first_line
from stpredict.statistics.metrics import pearson_residuals
from stpredict.storage.text_tables import read_text

#: Rules that choose genes. "variance": variable in every section, as in the M2ORT study. "mean": of highest mean count,
#: as in ST-Net and TRIPLEX. "variable": more variable than their mean suggests, as in scanpy. "coverage": the same in
#: the sections that measured the gene, if enough did.
RULES = ("variance", "mean", "variable", "coverage")
#: How many genes ST-Net and TRIPLEX take, and how many the rule "coverage" takes.
DEFAULT_SIZE, COVERAGE_SIZE = 250, 2000
#: The part of the sections that must measure a gene, and the number of patients, or half of them if that is fewer.
COVERAGE_SHARE, COVERAGE_PATIENTS = 0.25, 3
#: The M2ORT study keeps genes that are among this many most variable genes in every section.
TOP_PER_SECTION = 1500
#: A variance below this part of the mean square is rounding.
ROUNDING = 1e-12
#: Values (spots x genes) in memory at a time.
DENSE_VALUES = 4_000_000


@dataclass(frozen=True)
class Coverage:
    """Which genes each training section measured (sections x genes), and the sections' patients.

    By the rule "coverage", at least `least` sections must measure a gene. None means a quarter of the sections, and
    three patients or half of them, whichever is fewer.
    """

    measured: Bool
    patients: Sequence[str]
    least: int | None = None

    @property
    def enough(self) -> Bool:
        """Which genes enough sections measured."""
        n_sections = self.measured.sum(axis=0)
        if self.least is not None:
            return np.asarray(n_sections >= self.least)
        patients = np.array(self.patients)
        n_patients = sum(self.measured[patients == name].any(axis=0).astype(int) for name in np.unique(patients))
        few = min(COVERAGE_PATIENTS, len(np.unique(patients)) / 2)
        return np.asarray((n_sections >= max(1, COVERAGE_SHARE * len(patients))) & (n_patients >= few))


@dataclass(frozen=True)
class Look:
    """What a rule needs of one section's counts: which genes were counted, and a number for each.

    The number is the gene's sum ("mean"), its variance, or that of its Pearson residuals ("variable", "coverage").
    """

    counted: Bool
    value: Float

    def of(self, genes: Int) -> Look:
        """The look at some of the genes."""
        return Look(self.counted[genes], self.value[genes])


def look_at(counts: csr_array, rule: str, among: Int | None = None) -> Look:
    """What a rule of RULES needs of a section's counts, spots x genes.

    By the rule "variable" it is of the genes `among` them, if there are any, as a spot's depth is their sum.
    """
    if among is not None and rule == "variable":
        counts = counts[:, among]
    sums = _sums(counts)
    if rule == "mean":
        return Look(sums > 0, sums)
    return Look(sums > 0, _variance(counts) if rule == "variance" else _residual_variance(counts))


def genes_among(rule: str, coverage: Coverage | None) -> Int | None:
    """The genes that all sections measured, if a rule chooses among these and not all are; else None."""
    return np.flatnonzero(coverage.measured.all(axis=0)) if coverage and rule != "coverage" else None


def choose_panel(
    sections: Iterable[csr_array],
    genes: Sequence[str],
    size: int | None = None,
    required: Sequence[str] = (),
    seed: int = 0,
    rule: str = "variance",
    coverage: Coverage | None = None,
) -> list[str]:
    """Genes chosen by a rule of RULES, in alphabetical order, and the `required` ones.

    `sections` are the counts of each training section, spots x all genes; one after the other is looked at, once.
    `coverage` says which genes each section measured; None means that all measured all. "variance" takes genes among
    the 1500 of highest count variance in every section; with `size`, it draws that many of them, as in the M2ORT study,
    mostly the same ones for other sections. "mean" and "variable" take the first `size` (250) genes of an order. These
    three choose from genes that all sections measured. "coverage" takes the first `size` (2000) of those that enough
    sections measured. Raises UsageError for required genes that were not measured, and if no gene is chosen.
    """
    check_rule(rule)
    among = genes_among(rule, coverage)
    return choose_from(
        (look_at(counts, rule, among) for counts in sections), genes, size, required, seed, rule, coverage
    )


def choose_from(
    looks: Iterable[Look], genes: Sequence[str], size: int | None, required: Sequence[str], seed: int, rule: str,
    coverage: Coverage | None,
) -> list[str]:  # fmt: skip
    """As `choose_panel`, from the looks at each training section that the rule needs."""
    match_genes(required, genes, "measured genes")
    if rule == "coverage":
        chosen = [genes[i] for i in _by_coverage(looks, len(genes), coverage)[: size or COVERAGE_SIZE]]
        if not chosen and not required:
            raise UsageError(
                "no gene was measured in as many training sections as are asked for; --min-sections asks for fewer."
            )
        return sorted({*chosen, *required})
    among = genes_among(rule, coverage)
    if among is not None:
        genes = [genes[int(i)] for i in among]
        looks = looks if rule == "variable" else (look.of(among) for look in looks)
    if rule == "variance":
        chosen = _variable_in_every_section(looks, genes)
        if size is not None:
            place = dict(zip(genes, np.random.default_rng(seed).permutation(len(genes)), strict=True))
            chosen = sorted(chosen, key=place.__getitem__)[:size]
    else:
        order = _by_mean(looks) if rule == "mean" else _by_excess_variance(looks, len(genes))
        chosen = [genes[i] for i in order[: size or DEFAULT_SIZE]]
    if not chosen and not required:
        raise UsageError("no gene varies in every section that is trained on; name genes with --genes-file.")
    return sorted({*chosen, *required})


def check_rule(rule: str | None) -> None:
    """Raises UsageError for an unknown rule; None is the default rule."""
    if rule is not None and rule not in RULES:
        raise UsageError(f"--panel {rule}: choose {', '.join(RULES)}, or name the genes with --genes-file.")


def _variable_in_every_section(looks: Iterable[Look], genes: Sequence[str]) -> list[str]:
    variable = np.ones(len(genes), dtype=bool)
    for look in looks:
        top = np.zeros(len(genes), dtype=bool)
        top[np.argsort(-look.value, kind="stable")[:TOP_PER_SECTION]] = True
        variable &= top & (look.value > 0)
    return sorted(gene for gene, keep in zip(genes, variable, strict=True) if keep)


def _sums(counts: csr_array, power: int = 1) -> Float:
    """Per gene, the sum of its counts, or of their squares."""
    values = counts.data.astype(float) ** power
    return np.asarray(np.bincount(counts.indices, values, minlength=counts.shape[1]), dtype=float)


def _variance(counts: csr_array) -> Float:
    """Per gene, the variance over spots. A gene that does not vary has exactly 0, without rounding errors."""
    n = counts.shape[0]
    sums, squares = _sums(counts), _sums(counts, 2)
    variance = (squares - sums**2 / n) / n
    return np.where(variance > ROUNDING * squares / n, variance, 0.0)


def _by_mean(looks: Iterable[Look]) -> Int:
    """Genes that were counted in every section, from the highest mean count per spot down."""
    sums = np.array([look.value for look in looks])
    order = np.argsort(-sums.sum(axis=0), kind="stable")
    return np.asarray(order[sums.min(axis=0)[order] > 0])


def _by_excess_variance(looks: Iterable[Look], n_genes: int) -> Int:
    """Genes by their mean rank over sections, each ranked by variance of Pearson residuals; uncounted ones left out.

    scanpy.experimental.pp.highly_variable_genes (Lause, Berens and Kobak 2021), with a batch per section, takes the
    median rank of genes that are among the first in most batches. The mean rank needs no such limit.
    """
    ranks, counted = [], np.zeros(n_genes, dtype=bool)
    for look in looks:
        ranks.append(np.argsort(np.argsort(-look.value, kind="stable"), kind="stable"))
        counted |= look.counted
    order = np.argsort(np.mean(ranks, axis=0), kind="stable")
    return np.asarray(order[counted[order]])


def _by_coverage(looks: Iterable[Look], n_genes: int, known: Coverage | None) -> Int:
    """Genes that enough sections measured, by their mean place by variance of Pearson residuals over these sections.

    The first of a few hundred genes gets the same place as the first of all, as small panels are already a choice.
    """
    places, n_sections = np.zeros(n_genes), np.zeros(n_genes)
    every, counted = np.ones(n_genes, dtype=bool), np.zeros(n_genes, dtype=bool)
    of_sections = known.measured if known else repeat(every)
    for look, own in zip(looks, of_sections, strict=bool(known)):
        order = np.argsort(np.where(own, -look.value, np.inf), kind="stable")
        place = np.argsort(order, kind="stable")
        places[own] += place[own]
        n_sections += own
        counted |= look.counted
    order = np.argsort(places / np.maximum(n_sections, 1), kind="stable")
    return np.asarray(order[((known.enough if known else every) & counted)[order]])


def _residual_variance(counts: csr_array) -> Float:
    """The variance of each gene's Pearson residuals."""
    depth, by_gene = np.asarray(counts.sum(axis=1), dtype=float).ravel(), counts.tocsc()
    block = max(1, DENSE_VALUES // max(len(depth), 1))
    return np.concatenate([
        pearson_residuals(by_gene[:, start : start + block].toarray().astype(float), depth).var(axis=0)
        for start in range(0, counts.shape[1], block)
    ])  # fmt: skip


def match_genes(wanted: Sequence[str], panel: Sequence[str], of_what: str = "genes of the model") -> list[int]:
    """Positions of `wanted` in `panel`. Raises UsageError, with hints, for names that it lacks.

    A hint says how a spreadsheet or another letter case changed a name, or names the nearest genes.
    """
    position = {gene: i for i, gene in enumerate(panel)}
    unknown = [gene for gene in wanted if gene not in position]
    if unknown:
        upper = {gene.upper(): gene for gene in panel}
        hints = [f"{gene!r}{_hint(gene, upper)}" for gene in unknown[:5]]
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        in_case = any(gene.upper() in upper for gene in unknown)
        case = "; capital and small letters count, because they tell human genes from those of mouse" if in_case else ""
        raise UsageError(f"not among the {len(panel)} {of_what}: {', '.join(hints)}{more}{case}.")
    return [position[gene] for gene in wanted]


def _hint(gene: str, upper: Mapping[str, str]) -> str:
    """A hint at the gene that an unknown name may mean; `upper` has the genes by their names in capitals."""
    if gene.upper() in upper:
        return f" (here {upper[gene.upper()]})"
    dated = genes_of_a_date(gene)
    meant = [upper[name] for name in (*dated, *names_of_today(gene)) if name in upper]
    if dated:
        return f" (a date, which a spreadsheet made of {' or '.join(meant or dated[:2])})"
    near = [upper[name] for name in difflib.get_close_matches(gene.upper(), list(upper), n=3, cutoff=0.4)]
    listed = list(dict.fromkeys([*meant, *near]))
    return f" (nearest: {', '.join(listed)})" if listed else ""


def read_gene_list(path: Path) -> list[str]:
    """Gene names from a `.npy` array of strings, or from a text or table as `parse_gene_list` reads it.

    It reports dates among them, into which spreadsheets turn genes.
    Raises UsageError if the file cannot be read so, or names a gene twice.
    """
    try:
        names = _stored_names(path) if path.suffix == ".npy" else parse_gene_list(read_text(path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UsageError(f"{path}: cannot be read as a list of genes ({reason}).") from error
    names = [name for name in names if name]
    if not names:
        raise UsageError(f"{path}: names no genes.")
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise UsageError(f"{path}: names {twice[0]} more than once.")
    dates = [name for name in names if genes_of_a_date(name)]
    if dates:
        of = f"{dates[0]} of {' or '.join(genes_of_a_date(dates[0])[:2])}"
        report(f"{path}: a spreadsheet seems to have made dates of genes, {of} ({len(dates)} in all)")
    return names


def _stored_names(path: Path) -> list[str]:
    """The names in a `.npy` file. Raises ValueError or OSError if it holds no array of text."""
    try:
        names = np.load(path, allow_pickle=False)
        return [str(name).encode().decode() for name in names.ravel()]  # fails if numpy holds no text
    except (OSError, ValueError):
        raise
    except Exception as error:  # numpy fails on a damaged file in many ways
        raise ValueError(f"{type(error).__name__}: {first_line(error)}") from error
