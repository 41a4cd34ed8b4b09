"""Matrices of counts as 10x Genomics writes them: .h5 of versions 2 and 3, and folders with a Matrix Market file."""

from __future__ import annotations

import csv
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from scipy.io import mminfo, mmread
from scipy.sparse import csr_array

from stpredict.data.genes import whole_counts
from stpredict.data.hdf5 import opened_hdf5
from stpredict.data.tables import read_table, refuse_bomb
from stpredict.errors import DatasetError, first_line

GENE_EXPRESSION = "Gene Expression"
#: The shortest entry of a Matrix Market file is "1 1 1" and the end of its line.
MIN_ENTRY_BYTES = 6
#: Files beside `matrix.mtx`, gzipped or not: the spots, and the features, which version 2 calls genes.
BARCODES, FEATURES = ("barcodes.tsv",), ("features.tsv", "genes.tsv")

Matrix10x = tuple[list[str], list[str], list[str], csr_array]


def read_matrix(path: Path, prefix: str = "") -> Matrix10x:
    """Barcodes, genes' symbols and Ensembl ids, and counts (barcodes x genes) of a 10x matrix, .h5 or .mtx[.gz].

    Files beside `matrix.mtx` begin with the same `prefix`. Raises DatasetError if it is not such a matrix.
    """
    return read_10x(path) if path.suffix == ".h5" else _read_market(path, prefix)


def read_10x(path: Path) -> Matrix10x:
    """As `read_matrix`, for an .h5 file of version 3 or 2; from version 3, only "Gene Expression" is kept."""
    with opened_hdf5(path) as file:
        if isinstance(file.get("matrix"), h5py.Group):
            matrix, genes_of = file["matrix"], "features/"
            ids, symbols, kinds = (_texts(matrix, genes_of + part) for part in ("id", "name", "feature_type"))
        else:
            matrix = _version_2(file)
            ids, symbols = _texts(matrix, "genes"), _texts(matrix, "gene_names")
            kinds = [GENE_EXPRESSION] * len(ids)
        barcodes = _texts(matrix, "barcodes")
        parts = tuple(_dataset(matrix, part)[:] for part in ("data", "indices", "indptr"))
        counts = whole_counts(csr_array(parts, (len(barcodes), len(ids))), path.name)
        return of_genes(barcodes, symbols, ids, kinds, counts)


def _version_2(file: h5py.File) -> h5py.Group:
    """The only group, which version 2 names after the genome. Raises ValueError if there are none, or several."""
    genomes = [name for name, group in file.items() if isinstance(group, h5py.Group) and "gene_names" in group]
    if not genomes:
        there = ", ".join(map(str, file)) or "nothing"
        raise ValueError(f"it holds no matrix of 10x Genomics, only {there}")
    if len(genomes) > 1:
        raise ValueError(f"it holds counts of several genomes, {', '.join(genomes)}, and one is needed")
    return file[genomes[0]]


def _dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    found = group.get(name)
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"{group.name} lacks {name}")
    return found


def _texts(group: h5py.Group, name: str) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in _dataset(group, name)[:]]


def of_genes(barcodes: list[str], symbols: list[str], ids: list[str], kinds: list[str], counts: csr_array) -> Matrix10x:
    """The matrix with genes alone, without other features. Raises ValueError if there are none."""
    genes = np.flatnonzero(np.array(kinds) == GENE_EXPRESSION)
    if not len(genes):
        raise ValueError("it holds no gene expression")
    return barcodes, [symbols[i] for i in genes], [ids[i] for i in genes], counts[:, genes]


def _read_market(path: Path, prefix: str) -> Matrix10x:
    barcodes = _read_names(_beside(path, prefix, BARCODES))[0].tolist()
    features = _beside(path, prefix, FEATURES)
    table = _read_names(features)
    ids = table[0].tolist()
    symbols = table[1].tolist() if 1 in table else ids
    kinds = table[2].tolist() if 2 in table else [GENE_EXPRESSION] * len(ids)
    try:
        n_bytes = refuse_bomb(path) if path.suffix == ".gz" else path.stat().st_size
        n_rows, n_columns, n_entries, form, field, symmetry = mminfo(path)
        if (form, symmetry) != ("coordinate", "general") or field not in ("integer", "real", "unsigned-integer"):
            raise ValueError(f"it is {form}, {field} and {symmetry}, and not a sparse matrix of counts")
        turned = (n_rows, n_columns) == (len(barcodes), len(ids)) and len(ids) != len(barcodes)
        if (n_rows, n_columns) != (len(ids), len(barcodes)) and not turned:
            raise ValueError(
                f"it is {n_rows} x {n_columns}, with {len(ids)} genes in {features.name} and {len(barcodes)} barcodes"
            )
        if n_entries > min(n_rows * n_columns, n_bytes // MIN_ENTRY_BYTES):
            raise ValueError("it claims more entries than the file can hold, or ends early")
        counts: Any = mmread(path)
        return of_genes(
            barcodes, symbols, ids, kinds, whole_counts(csr_array(counts if turned else counts.T), path.name)
        )
    except (OSError, EOFError, ValueError, TypeError, OverflowError, MemoryError, zlib.error) as error:
        raise DatasetError(f"{path.name}: cannot be read as a matrix of counts ({first_line(error)}).") from error


def _beside(matrix: Path, prefix: str, names: tuple[str, ...]) -> Path:
    for name in names:
        for path in (matrix.with_name(f"{prefix}{name}{packed}") for packed in ("", ".gz")):
            if path.is_file():
                return path
    raise DatasetError(f"{matrix}: needs {' or '.join(prefix + name for name in names)} beside it.")


def _read_names(path: Path) -> pd.DataFrame:
    """A table of texts without a header, in which a quotation mark is part of a name."""
    return read_table(path, sep="\t", header=None, dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE)
