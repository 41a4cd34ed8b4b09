"""Check that counts are raw counts, and give each gene a name that means no other."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_array, issparse

from stpredict.data.gene_lists import ENSEMBL
from stpredict.errors import DatasetError, counted, some

#: The name that `name_genes` gives if a symbol has several ids.
BRACKETED = re.compile(r"(.+) \((ENS[A-Z]*G\d{11}(?:_PAR_Y)?)\)")
#: Names that 10x Genomics and others give to control probes, and to codes that no gene has.
CONTROL = re.compile(
    r"negcontrol\w*|neg(ative)?_?prb\w*|blank[-_]?\d+|antisense_\w+|unassigned(codeword)?_\w+|deprecatedcodeword_\w+"
    r"|intergenic_?region_\w+|genomiccontrol\w*",
    re.IGNORECASE,
)
#: Up to this, float32 holds whole numbers exactly.
MAX_COUNT = 2**24


def whole_counts(matrix: Any, file: str) -> csr_array:
    """Spots x genes as sparse float32. Raises DatasetError, naming the file, for anything but raw counts."""
    try:
        if issparse(matrix) and matrix.format in ("csr", "csc"):
            matrix.check_format(full_check=True)  # before it is converted, which trusts its indices
        counts = csr_array(matrix)
    except (ValueError, TypeError) as error:
        raise DatasetError(f"{file}: the matrix of counts is damaged ({error}).") from error
    if 0 in counts.shape:
        raise DatasetError(f"{file}: holds no spots or no genes.")
    values = counts.data
    if values.dtype.kind not in "iufb" or not np.isfinite(values).all() or (values < 0).any():
        raise DatasetError(f"{file}: counts must be finite and not negative.")
    if (values != np.floor(values)).any():
        raise DatasetError(
            f"{file}: holds values that are not whole numbers, so they were normalised; raw counts are needed."
        )
    if (values > MAX_COUNT).any():
        raise DatasetError(f"{file}: counts must be below {MAX_COUNT}.")
    counts = csr_array(counts, dtype=np.float32)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts


def not_raw(matrix: Any) -> str:
    """Why a matrix's values cannot be raw counts; "" if they can. Its format is not checked."""
    values = np.asarray(matrix.data if issparse(matrix) else matrix)
    if values.dtype.kind not in "iufb":
        return "no numbers"
    if not np.isfinite(values).all():
        return "not finite"
    if (values < 0).any():
        return "negative"
    return "" if (values == np.floor(values)).all() else "not whole numbers"


def unversioned(gene: str) -> str:
    """An Ensembl gene id without its version; other names as they are."""
    match = ENSEMBL.fullmatch(gene)
    return match[1] + (match[2] or "") if match else gene


def are_ensembl(names: Sequence[str]) -> bool:
    """Whether most of the names are Ensembl gene ids."""
    return sum(ENSEMBL.fullmatch(name) is not None for name in names) > len(names) / 2


def why_not_shared(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """Why two lists may have no gene in common: case, species, or naming; "" if no reason shows."""
    by_case = {gene.upper(): gene for gene in theirs}
    same = next((gene for gene in ours if gene.upper() in by_case), None)
    if same:
        return f"they differ in the case of letters, as {same} and {by_case[same.upper()]} do; is one of mouse?"
    kinds = [{match[1][:-11] for gene in genes if (match := ENSEMBL.fullmatch(gene))} for genes in (ours, theirs)]
    if all(kinds) and not kinds[0] & kinds[1]:
        return f"they are ids of different species, {some(sorted(kinds[0]))} and {some(sorted(kinds[1]))}"
    return ""


def symbols_by_id(names: Sequence[str], ids: Sequence[str] | None) -> dict[str, str]:
    """A table's symbols by Ensembl id (without version), for pairs of which neither has another partner."""
    pairs = {(unversioned(gene), name) for gene, name in zip(ids or (), names, strict=False) if gene and name}
    pairs = {(gene, name) for gene, name in pairs if gene != unversioned(name)}
    times_id, times_name = Counter(gene for gene, _ in pairs), Counter(name for _, name in pairs)
    return {gene: name for gene, name in sorted(pairs) if times_id[gene] == times_name[name] == 1}


def one_table(tables: Iterable[dict[str, str]]) -> dict[str, str]:
    """Several tables' symbols by Ensembl id, for pairs of which neither has another partner."""
    pairs = sorted({pair for table in tables for pair in table.items()})
    return symbols_by_id([name for _, name in pairs], [gene for gene, _ in pairs])


def ids_of(genes: Sequence[str], symbols: dict[str, str]) -> list[str]:
    """The Ensembl ids of genes, from their names or from `symbols` (by id); "" if neither tells."""
    known = {name: gene for gene, name in symbols.items()}

    def id_of(name: str) -> str:
        if bracketed := BRACKETED.fullmatch(name):
            return bracketed[2]
        return unversioned(name) if ENSEMBL.fullmatch(name) else known.get(name, "")

    return [id_of(name) for name in genes]


def pair_by_id(wanted: Sequence[str], genes: Sequence[str], ids: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The `wanted` names that mean one of `genes` (with Ensembl ids `ids`) by another name; and ambiguous names.

    A name is ambiguous if it is a symbol with several ids among the genes, or an id of several genes, on either side.
    """
    there, named = set(genes), set(wanted)
    of_id: dict[str, list[str]] = {}
    for gene, own in zip(genes, ids, strict=True):
        of_id.setdefault(own, []).append(gene)
    shared = {match[1] for gene in genes if (match := BRACKETED.fullmatch(gene))}
    missing = [name for name in wanted if name not in there]
    found = {name: of_id[own] for name, own in zip(missing, ids_of(missing, {}), strict=True) if own and own in of_id}
    times = Counter(gene for group in found.values() for gene in group)
    pairs = {
        name: group[0]
        for name, group in found.items()
        if len(group) == 1 and times[group[0]] == 1 and group[0] not in named
    }
    return pairs, sorted((set(found) - set(pairs)) | (shared & set(missing)))


def in_symbols(genes: Sequence[str], symbols: dict[str, str]) -> list[str]:
    """Replace genes' Ensembl ids by their symbols, if a symbol is known and no other gene has it."""
    taken = set(genes)
    return [name if (name := symbols.get(gene, gene)) == gene or name not in taken else gene for gene in genes]


def name_genes(
    names: Sequence[str], ids: Sequence[str] | None, counts: csr_array
) -> tuple[list[str], csr_array, tuple[str, ...]]:
    """The genes' names, each once, these genes' counts, and notes on genes that could not keep their names.

    `names` are symbols, or ids if there are no symbols; `ids` are the same genes' Ensembl ids, if the data have them.
    A symbol with several ids becomes "SYMBOL (ID)" for each; no counts are added up. Genes that then still share a name
    are left out, as any choice among them would be a guess. So are control probes.
    """
    plain = [unversioned(name) for name in names]
    known = [unversioned(gene) for gene in ids] if ids is not None else [""] * len(plain)
    plain = [name or gene for name, gene in zip(plain, known, strict=True)]
    times = Counter(plain)
    full = [
        f"{name} ({gene})" if times[name] > 1 and gene not in ("", name) else name
        for name, gene in zip(plain, known, strict=True)
    ]
    again = Counter(full)
    controls = {i for i, name in enumerate(full) if CONTROL.fullmatch(name)}
    keep = [i for i, name in enumerate(full) if name and again[name] == 1 and i not in controls]
    notes = []
    if controls:
        notes.append(f"{counted(len(controls), 'control probe')} left out: {some(sorted({full[i] for i in controls}))}")
    shared = sorted({plain[i] for i in keep if full[i] != plain[i]})
    if shared:
        notes.append(f"symbols that stand for several Ensembl ids keep them in brackets: {some(shared)}")
    if len(keep) + len(controls) < len(full):
        lost = sorted({name for i, name in enumerate(full) if i not in controls and (again[name] > 1 or not name)})
        n_lost = counted(len(full) - len(keep) - len(controls), "gene")
        notes.append(f"{n_lost} left out because others have the same name: {some(lost)}")
    return [full[i] for i in keep], counts if len(keep) == len(full) else counts[:, keep], tuple(notes)
