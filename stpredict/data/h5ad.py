"""AnnData files (.h5ad): spots, counts and genes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from stpredict.arrays import Float
from stpredict.data.genes import are_ensembl, name_genes, symbols_by_id, whole_counts
from stpredict.data.hdf5 import HDF5_ERRORS, opened_hdf5
from stpredict.errors import DatasetError, first_line

ID_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "ensembl", "feature_id")
SYMBOL_COLUMNS = ("gene_symbols", "gene_symbol", "feature_name", "gene_names", "gene_name", "symbol")


@dataclass(frozen=True)
class Spots:
    """What an AnnData file holds: `units` are array_col and array_row (n x 2) where it has them."""

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
            warnings.simplefilter("ignore")  # on names that are not unique, which are dealt with below
            data = anndata.read_h5ad(path)
    except Exception as error:  # anndata's own kinds among them
        raise DatasetError(f"{path.name}: cannot be read as AnnData ({first_line(error)}).") from error
    try:
        outside = np.zeros(data.n_obs, bool)
        if "in_tissue" in data.obs:
            outside = pd.to_numeric(data.obs["in_tissue"], errors="coerce").to_numpy() == 0
            data = data[~outside]
        matrix = data.layers.get("counts", data.X)
        if matrix is None or "spatial" not in data.obsm:
            raise DatasetError(f"{path.name}: needs counts in X or layers['counts'], and pixels in obsm['spatial'].")
        centres = np.asarray(data.obsm["spatial"], dtype=float)
        if centres.ndim != 2 or centres.shape[1] < 2 or not np.isfinite(centres[:, :2]).all():
            raise DatasetError(f"{path.name}: obsm['spatial'] must hold a finite x and y for each spot.")
        symbols, ids = _gene_names(data.var)
        genes, counts, notes = name_genes(symbols, ids, whole_counts(matrix, path.name))
        units = None
        if {"array_col", "array_row"} <= set(data.obs.columns):
            units = data.obs[["array_col", "array_row"]].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    except HDF5_ERRORS as error:
        raise DatasetError(f"{path.name}: cannot be read as AnnData ({first_line(error)}).") from error
    if outside.any():
        notes += (f"{outside.sum()} spots are not in tissue (in_tissue is 0) and are left out",)
    return Spots(
        [str(name) for name in data.obs_names],
        centres[:, :2].copy(),
        units,
        genes,
        counts,
        symbols_by_id(symbols, ids),
        notes,
    )


def _gene_names(var: Any) -> tuple[list[str], list[str] | None]:
    """Names of the genes and, where the table has them, their Ensembl ids."""

    def column(names: tuple[str, ...]) -> list[str] | None:
        lower = {str(column).lower(): column for column in var.columns}
        found = next((lower[name] for name in names if name in lower), None)
        return None if found is None else ["" if x is None or x != x else str(x) for x in var[found].tolist()]

    index = [str(name) for name in var.index]
    if are_ensembl(index):
        return column(SYMBOL_COLUMNS) or index, index
    return index, column(ID_COLUMNS)
