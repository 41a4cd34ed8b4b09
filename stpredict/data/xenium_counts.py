"""Counts of a Xenium run in squares: of its cells or, without a matrix of these, of its transcripts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from stpredict.arrays import Float, Int
from stpredict.data.matrices import Matrix10x, read_10x, read_matrix
from stpredict.data.tables import joined, read_table
from stpredict.data.xenium_zarr import read_zarr_cells, read_zarr_matrix, read_zarr_transcripts
from stpredict.errors import DatasetError, first_line

#: Files of a run, the first that is there counts.
MATRICES = (
    "cell_feature_matrix.h5", "cell_feature_matrix.zarr.zip", "cell_feature_matrix/matrix.mtx.gz",
    "cell_feature_matrix/matrix.mtx",
)  # fmt: skip
CELLS = ("cells.parquet", "cells.csv.gz", "cells.csv", "cells.zarr.zip")
TRANSCRIPTS = ("transcripts.parquet", "transcripts.zarr.zip")
CELL_COLUMNS = ["cell_id", "x_centroid", "y_centroid"]
TRANSCRIPT_COLUMNS = ["feature_name", "x_location", "y_location", "qv"]
#: 10x Genomics counts transcripts of this quality, a Phred score, and better ones.
QUALITY = 20
#: Rows of the table of transcripts that are in memory together.
ROWS_AT_A_TIME = 1 << 20


@dataclass(frozen=True)
class Pooled:
    """Counts in squares: their columns and rows (n x 2), the genes' symbols and ids, counts n x genes, and notes."""

    squares: Int
    symbols: list[str]
    ids: list[str] | None
    counts: csr_array
    notes: tuple[str, ...]


def read_pooled(place: Path, side_um: float) -> Pooled:
    """A run's counts in squares of `side_um`. Raises DatasetError if it holds none, or they cannot be read."""
    matrix, cells = _first(place, MATRICES), _first(place, CELLS)
    if matrix and cells:
        return _of_cells(matrix, cells, side_um)
    if transcripts := _first(place, TRANSCRIPTS):
        return _of_transcripts(transcripts, side_um)
    raise DatasetError(
        f"{place}: holds neither cell_feature_matrix (.h5, .zarr.zip or a folder) with cells (.parquet, .csv.gz or "
        f".zarr.zip), nor transcripts (.parquet or .zarr.zip)."
    )


def _first(place: Path, names: Sequence[str]) -> Path | None:
    return next((path for name in names if (path := place / name).exists()), None)


def _of_cells(matrix: Path, cells: Path, side_um: float) -> Pooled:
    barcodes, symbols, ids, counts = _read_matrix(matrix)
    names, at_um = read_zarr_cells(cells) if cells.suffix == ".zip" else _read_cells(cells)
    _demand_finite(at_um, cells)
    left, right = joined(barcodes, names, matrix.name, cells.name)
    squares, member = _squares(at_um[right], side_um)
    pool = csr_array((np.ones(len(left), np.float32), (member, np.arange(len(left)))), (len(squares), len(left)))
    note = f"cells are pooled to squares of {side_um:g} um; counts outside cells are not part of them"
    return Pooled(squares, symbols, ids, csr_array(pool @ counts[left]), (note,))


def _read_matrix(path: Path) -> Matrix10x:
    if path.suffix == ".zip":
        return read_zarr_matrix(path)
    return read_10x(path) if path.suffix == ".h5" else read_matrix(path)


def _read_cells(path: Path) -> tuple[list[str], Float]:
    """The names of cells and their centres, n x 2, in um. Raises DatasetError if the table cannot be read."""
    try:
        parquet = path.suffix == ".parquet"
        table = pd.read_parquet(path, columns=CELL_COLUMNS) if parquet else read_table(path)[CELL_COLUMNS]
        names = [x.decode() if isinstance(x, bytes) else str(x) for x in table["cell_id"].tolist()]
        return names, table[CELL_COLUMNS[1:]].to_numpy(dtype=float)
    except ImportError as error:
        raise DatasetError(f"{path}: reading it needs pyarrow, of stpredict's extra [train].") from error
    except DatasetError:
        raise
    except Exception as error:  # pyarrow's own kinds among them
        raise DatasetError(f"{path}: cannot be read as a table of cells ({first_line(error)}).") from error


def _of_transcripts(path: Path, side_um: float) -> Pooled:
    """The transcripts of sufficient quality in squares, those outside cells too. Codes without a gene are left out."""
    genes: dict[str, int] = {}
    parts: list[tuple[Any, Any, Any]] = []  # squares, genes and counts of some transcripts
    for names, codes, at_um, quality in read_zarr_transcripts(path) if path.suffix == ".zip" else _read_table(path):
        own = np.array([genes.setdefault(name, len(genes)) for name in names], dtype=np.int64)[codes]
        good = quality >= QUALITY
        _demand_finite(at_um[good], path)
        squares, member = _squares(at_um[good], side_um)
        counts = csr_array((np.ones(len(member), np.float32), (member, own[good])), (len(squares), len(genes)))
        counts.sum_duplicates()
        of_square, of_gene = counts.nonzero()
        parts.append((squares[of_square], of_gene, counts.data))
    if not any(len(part[2]) for part in parts):
        raise DatasetError(f"{path}: holds no transcripts of quality {QUALITY} or more.")
    at, of_gene, numbers = (np.concatenate(column) for column in zip(*parts, strict=True))
    squares, member = np.unique(at, axis=0, return_inverse=True)
    counts = csr_array((numbers, (member.ravel(), of_gene)), (len(squares), len(genes)))
    counts.sum_duplicates()
    note = (
        f"transcripts of quality {QUALITY} or more are pooled to squares of {side_um:g} um, inside cells and outside, "
        "as a matrix of cells is not there"
    )
    return Pooled(squares, list(genes), None, counts, (note,))


def _read_table(path: Path) -> Iterator[tuple[list[str], Int, Float, Float]]:
    """As `read_zarr_transcripts`, from a parquet table, some rows at a time."""
    try:
        import pyarrow.parquet as pq

        file = pq.ParquetFile(path)
        known = [*TRANSCRIPT_COLUMNS, *({"is_gene"} & set(file.schema_arrow.names))]
        for batch in file.iter_batches(ROWS_AT_A_TIME, columns=known):
            table = batch.to_pandas(strings_to_categorical=True)
            table = table[table["is_gene"].astype(bool)] if "is_gene" in table else table
            codes, names = pd.factorize(table["feature_name"])
            spelt = [x.decode() if isinstance(x, bytes) else str(x) for x in names]
            named = codes >= 0
            at_um = table[["x_location", "y_location"]].to_numpy(dtype=float)[named]
            yield spelt, codes[named], at_um, table["qv"].to_numpy(dtype=float)[named]
    except ImportError as error:
        raise DatasetError(f"{path}: reading it needs pyarrow, of stpredict's extra [train].") from error
    except DatasetError:
        raise
    except Exception as error:  # pyarrow's own kinds among them
        raise DatasetError(f"{path}: cannot be read as a table of transcripts ({first_line(error)}).") from error


def _squares(at_um: Float, side_um: float) -> tuple[Int, Int]:
    """The squares that hold points (n x 2), and the number of each point's square."""
    squares, member = np.unique(np.floor(at_um / side_um).astype(np.int64), axis=0, return_inverse=True)
    return squares, member.ravel()


def _demand_finite(at_um: Float, path: Path) -> None:
    if not np.isfinite(at_um).all():
        raise DatasetError(f"{path}: positions must be finite numbers.")
