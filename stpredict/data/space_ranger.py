"""What Space Ranger writes: matrices of counts, tables of spots, scale factors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from stpredict.data.genes import whole_counts
from stpredict.data.hdf5 import opened_hdf5
from stpredict.data.tables import read_table
from stpredict.errors import DatasetError, first_line

COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]


def read_10x(path: Path) -> tuple[list[str], list[str], list[str], csr_array]:
    """Barcodes, genes' symbols and Ensembl ids, and counts (barcodes x genes) of a 10x matrix, version 3.

    Only "Gene Expression" is kept. Raises DatasetError if the file is not such a matrix.
    """
    with opened_hdf5(path) as file:
        matrix = file["matrix"]
        kind, symbols, ids = (_texts(matrix[f"features/{part}"]) for part in ("feature_type", "name", "id"))
        barcodes = _texts(matrix["barcodes"])
        parts = tuple(matrix[part][:] for part in ("data", "indices", "indptr"))
        counts = whole_counts(csr_array(parts, (len(barcodes), len(ids))), path.name)
        genes = np.flatnonzero(np.array(kind) == "Gene Expression")
        if not len(genes):
            raise ValueError("it holds no gene expression")
        return barcodes, [symbols[i] for i in genes], [ids[i] for i in genes], counts[:, genes]


def _texts(dataset: h5py.Dataset) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in dataset[:]]


def read_positions(spatial: Path) -> tuple[pd.DataFrame, str]:
    """The table of spots, in any of its three forms, and its file's name. Raises DatasetError if there is none."""
    for name in ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv"):
        path = spatial / name
        if path.exists():
            break
    else:
        raise DatasetError(f"{spatial}: holds no tissue_positions (.parquet, .csv or _list.csv).")
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path, columns=COLUMNS)
        else:  # with a header line from Space Ranger 2 on
            table = read_table(path, header=None, names=COLUMNS, dtype=str)
            table = table[table["barcode"] != "barcode"]
        table = table.astype(dict.fromkeys(COLUMNS[1:], float)).astype({"barcode": str})
    except ImportError as error:
        raise DatasetError(f"{path}: reading it needs pyarrow, of stpredict's extra [train].") from error
    except DatasetError:
        raise
    except Exception as error:  # pyarrow's own kinds among them
        raise DatasetError(f"{path}: cannot be read as a table of spots ({first_line(error)}).") from error
    if not np.isfinite(table[COLUMNS[1:]].to_numpy()).all():
        raise DatasetError(f"{path}: positions must be finite numbers.")
    return table, path.name


def read_scale(path: Path) -> dict[str, float]:
    """The scale factors that are positive numbers; none without the file."""
    if not path.exists():
        return {}
    try:
        scale = json.loads(path.read_text(encoding="utf-8"))
        numbers = {key: float(value) for key, value in scale.items() if isinstance(value, int | float)}
    except (OSError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise DatasetError(f"{path}: cannot be read as JSON ({error}).") from error
    return {key: value for key, value in numbers.items() if 0 < value < math.inf}
