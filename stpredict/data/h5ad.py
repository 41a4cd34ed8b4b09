"""AnnData files (.h5ad): spots, counts and genes."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from stpredict.arrays import Float
from stpredict.data.genes import are_ensembl, name_genes, not_raw, symbols_by_id, whole_counts
from stpredict.data.hdf5 import HDF5_ERRORS, opened_hdf5
from stpredict.data.tables import on_tissue
from stpredict.errors import DatasetError, counted, first_line, some

#: Columns of genes' Ensembl ids and symbols, in small letters, with _ for blanks, points and dashes.
ID_COLUMNS = (
    "gene_ids", "gene_id", "ensembl_id", "ensembl", "feature_id", "ensembl_ids", "ensembl_gene_id", "ensemblid",
    "geneid", "gene_ensembl", "ensg", "id", "gene_ids_0", "accession",
)  # fmt: skip
SYMBOL_COLUMNS = (
    "gene_symbols", "gene_symbol", "feature_name", "gene_names", "gene_name", "symbol", "symbols", "hgnc_symbol",
    "hugo_symbol", "gene_short_name", "external_gene_name", "genesymbol", "genename", "features", "feature", "gene",
    "genes", "name", "names",
)  # fmt: skip
#: Names of layers that mostly hold raw counts, in small letters, the likeliest first.
COUNT_LAYERS = ("raw_counts", "raw", "rawcounts", "count", "counts_raw", "umi", "umis", "umi_counts")


@dataclass(frozen=True)
class Spots:
    """The content of an AnnData file. `units` are array_col and array_row (n x 2), if it has them."""

    names: list[str]
    centres: Float
    units: Float | None
    genes: list[str]
    counts: csr_array
    symbols: dict[str, str]  # by Ensembl id
    notes: tuple[str, ...]


def read_h5ad(path: Path) -> Spots:
    """Spots, counts and genes of an AnnData file. Raises DatasetError if it lacks them, or is damaged."""
    try:
        import anndata  # type: ignore[import-untyped]
    except ImportError as error:
        raise DatasetError(f"{path.name}: reading it needs anndata, of stpredict's extra [train].") from error
    with opened_hdf5(path):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about names that are not unique, which are handled below
            data = anndata.read_h5ad(path)
    except Exception as error:  # anndata's own kinds among them
        raise DatasetError(f"{path.name}: cannot be read as AnnData ({first_line(error)}).") from error
    try:
        if "spatial" not in data.obsm:
            there = f"obsm holds {some(map(str, data.obsm))}" if len(data.obsm) else "obsm is empty"
            raise DatasetError(f"{path.name}: needs the spots' level-0 pixels in obsm['spatial']; {there}.")
        inside = np.ones(data.n_obs, np.bool_)
        if "in_tissue" in data.obs:
            inside = on_tissue(data.obs["in_tissue"], path.name)
        matrix, var, note = _find_counts(data, path.name)
        matrix = whole_counts(matrix, path.name)
        if matrix.shape != (data.n_obs, len(var)):
            raise DatasetError(f"{path.name}: cannot be read as AnnData (its counts are not spots x genes).")
        centres = np.asarray(data.obsm["spatial"], dtype=float)[inside]
        if centres.ndim != 2 or centres.shape[1] < 2 or not np.isfinite(centres[:, :2]).all():
            raise DatasetError(f"{path.name}: obsm['spatial'] must hold a finite x and y for each spot.")
        symbols, ids = _gene_names(var)
        genes, counts, notes = name_genes(symbols, ids, matrix[np.flatnonzero(inside)])
        units = None
        if {"array_col", "array_row"} <= set(data.obs.columns):
            units = data.obs[["array_col", "array_row"]].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
            units = units[inside]
    except HDF5_ERRORS as error:
        raise DatasetError(f"{path.name}: cannot be read as AnnData ({first_line(error)}).") from error
    if not inside.all():
        notes += (f"{counted((~inside).sum(), 'spot')} not in tissue (in_tissue is 0), left out",)
    return Spots(
        [str(name) for name in data.obs_names[inside]],
        centres[:, :2].copy(),
        units,
        genes,
        counts,
        symbols_by_id(symbols, ids),
        (*note, *notes),
    )


def _find_counts(data: Any, file: str) -> tuple[Any, pd.DataFrame, tuple[str, ...]]:
    """The first matrix of raw counts (spots x genes), the table of its genes, and a note on where it was found.

    It looks at `layers["counts"]`, X, the layers of COUNT_LAYERS, `raw`, and other layers with more than 0 and 1.
    Raises DatasetError, which says what it found, if none of them holds raw counts.
    """
    named = {str(name).lower(): name for name in data.layers}
    known = [named[name] for name in ("counts", *COUNT_LAYERS) if name in named]
    others = [name for name in data.layers if name not in known]
    places = [(f"layers[{name!r}]", data.layers[name], data.var) for name in known]
    if data.X is not None:
        places.insert(int("counts" in named), ("X", data.X, data.var))
    if data.raw is not None:
        places.append(("raw.X", data.raw.X, data.raw.var))
    places += [(f"layers[{name!r}]", data.layers[name], data.var) for name in others if data.layers[name].max() > 1]
    if not places:
        raise DatasetError(f"{file}: needs raw counts in X, a layer or raw, and holds none of them.")
    reasons = {name: not_raw(matrix) for name, matrix, _ in places}
    for name, matrix, var in places:
        if not reasons[name]:
            usual = name.lower() in ("x", "layers['counts']")
            return matrix, var, () if usual else (f"counts are those of {name}, as X holds none",)
    if len(places) == 1:
        return places[0][1], places[0][2], ()  # `whole_counts` tells the reason
    found = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise DatasetError(f"{file}: holds values that are not whole numbers, and raw counts are needed ({found}).")


def _gene_names(var: pd.DataFrame) -> tuple[list[str], list[str] | None]:
    """The genes' names and, if the table has them, their Ensembl ids."""
    lower = {re.sub(r"[ .-]", "_", str(column)).lower(): column for column in reversed(var.columns)}

    def column(names: tuple[str, ...], ids: bool) -> list[str] | None:
        """The first column with one of these names that holds what the name says; for ids, else the first of them."""
        found = []
        for name in names:
            if name in lower:
                found.append(["" if x is None or x != x else str(x) for x in var[lower[name]].tolist()])
        return next((one for one in found if are_ensembl(one) == ids), found[0] if found and ids else None)

    index = [str(name) for name in var.index]
    if are_ensembl(index):
        return column(SYMBOL_COLUMNS, ids=False) or index, index
    if all(name.isdecimal() for name in index):  # positions rather than names
        ids = column(ID_COLUMNS, ids=True)
        return column(SYMBOL_COLUMNS, ids=False) or ids or index, ids
    return index, column(ID_COLUMNS, ids=True)
