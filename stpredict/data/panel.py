"""Which genes a model predicts."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from stpredict.arrays import Float, Int, Labels
from stpredict.console import report
from stpredict.data.gene_lists import genes_of_a_date, names_of_today, parse_gene_list
from stpredict.errors import UsageError, first_line
from stpredict.statistics.metrics import pearson_residuals
from stpredict.storage.text_tables import read_text

#: How genes are chosen: variable in every section, as the M2ORT study does; of the highest mean count, as ST-Net and
#: TRIPLEX do; or highly variable beyond what their mean lets expect, as scanpy does.
RULES = ("variance", "mean", "variable")
#: Genes that ST-Net and TRIPLEX take.
DEFAULT_SIZE = 250
#: The M2ORT study keeps genes that are among this many most variable ones in every section.
TOP_PER_SECTION = 1500


def choose_panel(
    counts: Float,
    section: Labels,
    genes: Sequence[str],
    size: int | None = None,
    required: Sequence[str] = (),
    seed: int = 0,
    rule: str = "variance",
) -> list[str]:
    """Genes chosen by a rule of RULES, in alphabetical order, and the `required` ones.

    `counts` are spots x genes of the training sections, all genes. By "variance", genes among the 1500 of highest count
    variance in every section; with `size`, that many of them are drawn, as in the M2ORT study, and for other sections
    mostly the same. By "mean" and "variable", the first `size` (250) genes of an order. Raises UsageError for required
    genes that were not measured, and where no gene is chosen.
    """
    check_rule(rule)
    match_genes(required, genes, "measured genes")
    if rule == "variance":
        chosen = _variable_in_every_section(counts, section, genes)
        if size is not None:
            place = dict(zip(genes, np.random.default_rng(seed).permutation(len(genes)), strict=True))
            chosen = sorted(chosen, key=place.__getitem__)[:size]
    else:
        order = _by_mean(counts, section) if rule == "mean" else _by_excess_variance(counts, section)
        chosen = [genes[i] for i in order[: size or DEFAULT_SIZE]]
    if not chosen and not required:
        raise UsageError("no gene varies in every section that is trained on; name genes with --genes-file.")
    return sorted({*chosen, *required})


def check_rule(rule: str) -> None:
    """Raises UsageError for a rule that is none."""
    if rule not in RULES:
        raise UsageError(f"--panel {rule}: choose {', '.join(RULES)}, or name the genes with --genes-file.")


def _variable_in_every_section(counts: Float, section: Labels, genes: Sequence[str]) -> list[str]:
    variable = np.ones(len(genes), dtype=bool)
    for name in np.unique(section):
        variance = counts[section == name].var(axis=0)
        top = np.zeros(len(genes), dtype=bool)
        top[np.argsort(-variance, kind="stable")[:TOP_PER_SECTION]] = True
        variable &= top & (variance > 0)
    return sorted(gene for gene, keep in zip(genes, variable, strict=True) if keep)


def _by_mean(counts: Float, section: Labels) -> Int:
    """Genes that were counted in every section, from the highest mean count per spot down."""
    sums = np.array([counts[section == name].sum(axis=0) for name in np.unique(section)])
    order = np.argsort(-counts.mean(axis=0), kind="stable")
    return np.asarray(order[sums.min(axis=0)[order] > 0])


def _by_excess_variance(counts: Float, section: Labels) -> Int:
    """Genes by the variance of their Pearson residuals, mean of the ranks within the sections; uncounted ones left out.

    As scanpy.experimental.pp.highly_variable_genes does (Lause, Berens and Kobak 2021): with a batch per section it
    takes the median rank of the genes that are among the first in most batches; the mean rank needs no such limit.
    """
    ranks = []
    for name in np.unique(section):
        own = counts[section == name]
        variance = pearson_residuals(own, own.sum(axis=1)).var(axis=0)
        ranks.append(np.argsort(np.argsort(-variance, kind="stable"), kind="stable"))
    order = np.argsort(np.mean(ranks, axis=0), kind="stable")
    return np.asarray(order[counts.sum(axis=0)[order] > 0])


def match_genes(wanted: Sequence[str], panel: Sequence[str], of_what: str = "genes of the model") -> list[int]:
    """Positions of `wanted` in `panel`. Raises UsageError with hints for those that are not in it.

    A hint says what a spreadsheet or another letter case did to a name, or names the nearest genes.
    """
    position = {gene: i for i, gene in enumerate(panel)}
    unknown = [gene for gene in wanted if gene not in position]
    if unknown:
        upper = {gene.upper(): gene for gene in panel}
        hints = [f"{gene!r}{_hint(gene, upper)}" for gene in unknown[:5]]
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        in_case = sum(gene.upper() in upper for gene in unknown)
        case = f"; {in_case} differ in the case of letters alone, as genes of mouse and human do" if in_case else ""
        raise UsageError(f"not among the {len(panel)} {of_what}: {', '.join(hints)}{more}{case}.")
    return [position[gene] for gene in wanted]


def _hint(gene: str, upper: Mapping[str, str]) -> str:
    """What may have been meant by a name that is not among genes, which go by their names in capitals."""
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

    Dates among them, which spreadsheets make of genes, are told of.
    Raises UsageError if the file cannot be read as that, or names a gene twice.
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
    """Raises ValueError or OSError for what is no array of text."""
    try:
        names = np.load(path, allow_pickle=False)
        return [str(name).encode().decode() for name in names.ravel()]  # which fails where numpy holds no text
    except (OSError, ValueError):
        raise
    except Exception as error:  # numpy stumbles over a damaged file in many ways
        raise ValueError(f"{type(error).__name__}: {first_line(error)}") from error
