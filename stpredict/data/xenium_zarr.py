"""Xenium's archives of zarr arrays, of format 2, as 10x Genomics describes them: cells, their counts, and transcripts.

Of cells, `cell_id` is n x 2 (a number and a suffix) and `cell_summary` has the attribute `column_names`. Of counts, the
group `cell_features` has `cell_id`, `data`, `indices` and `indptr` by feature, in newer versions `csc/` by cell, too,
and the attributes `feature_keys` (symbols), `feature_ids` and `feature_types`.

Of transcripts, each group in `grids/0` is a square of the section, with `location` (n x 3, um), `quality_score`,
`gene_identity` (n x 1, a place in the attribute `gene_names`) and `valid`. The other levels of `grids` hold some of the
same transcripts. Newer versions have `gene_category`, whose first column says which names are genes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
from scipy.sparse import csc_array, csr_array

from stpredict.arrays import Float, Int
from stpredict.data.genes import whole_counts
from stpredict.data.hdf5 import CLAIM_BYTES, CLAIM_RATIO
from stpredict.data.matrices import GENE_EXPRESSION, Matrix10x, of_genes
from stpredict.errors import DatasetError, first_line

#: How zarr may pack numbers here. It knows a codec that runs what a file holds, too.
CODECS = {"blosc", "bz2", "delta", "gzip", "lz4", "lzma", "shuffle", "zlib", "zstd"}
#: What 10x Genomics calls genes in `feature_types`; all else are controls, codes without a gene, and proteins.
GENE = "gene"
CENTRES = ("cell_centroid_x", "cell_centroid_y")
#: 10x Genomics spells the hexadecimal digits of a cell's number from a to p.
SPELT = str.maketrans("0123456789abcdef", "abcdefghijklmnop")


def read_zarr_cells(path: Path) -> tuple[list[str], Float]:
    """The names of cells and their centres, n x 2, in um. Raises DatasetError if the archive cannot be read."""
    with _opened(path) as root:
        names = _cell_names(_array(root, "cell_id", path))
        summary = _array(root, "cell_summary", path)
        if len(summary) != len(names):
            raise ValueError(f"{len(summary)} cells in cell_summary, {len(names)} in cell_id")
        columns = list(root["cell_summary"].attrs["column_names"])
        return names, np.asarray(summary[:, [columns.index(name) for name in CENTRES]], dtype=float)


def read_zarr_matrix(path: Path) -> Matrix10x:
    """Cells, genes' symbols and ids, and counts (cells x genes). Raises DatasetError if the archive cannot be read."""
    with _opened(path) as root:
        features = root["cell_features"]
        symbols, ids, kinds = ([str(x) for x in features.attrs[f"feature_{key}"]] for key in ("keys", "ids", "types"))
        cells = _cell_names(_array(root, "cell_features/cell_id", path))
        shape = len(cells), len(symbols)
        if "indptr" in features:
            stored: Any = csc_array(_parts(root, "cell_features", path), shape)
        else:
            stored = csr_array(_parts(root, "cell_features/csc", path), shape)
        kinds = [GENE_EXPRESSION if kind == GENE else kind for kind in kinds]
        return of_genes(cells, symbols, ids, kinds, whole_counts(stored, path.name))


def read_zarr_transcripts(path: Path) -> Iterator[tuple[list[str], Int, Float, Float]]:
    """Genes' names, and for the transcripts of one square at a time the gene's number, place (n x 2, um) and quality.

    Transcripts that 10x Genomics calls invalid, or that have no gene, are left out. Raises DatasetError if the archive
    cannot be read.
    """
    with _opened(path) as root:
        names = [str(name) for name in root.attrs["gene_names"]]
        is_gene = np.ones(len(names), dtype=bool)
        if "gene_category" in root:
            is_gene = _array(root, "gene_category", path)[:, 0].astype(bool)
            if len(is_gene) != len(names):
                raise ValueError(f"{len(is_gene)} categories of {len(names)} names")
        genes = [name for name, gene in zip(names, is_gene, strict=True) if gene]
        number = np.where(is_gene, np.cumsum(is_gene) - 1, -1)
        for square in sorted(root["grids/0"].group_keys()):
            yield genes, *_transcripts_of(root, f"grids/0/{square}", number, path)


def _transcripts_of(root: Any, square: str, number: Int, path: Path) -> tuple[Int, Float, Float]:
    """Gene, place and quality of a square's valid transcripts; `number` is the gene of each name, or below 0."""
    name, quality = (_array(root, f"{square}/{part}", path).ravel() for part in ("gene_identity", "quality_score"))
    at_um = _array(root, f"{square}/location", path)[:, :2].astype(float)
    valid = _array(root, f"{square}/valid", path).ravel() if f"{square}/valid" in root else np.ones(len(name))
    if not len(name) == len(quality) == len(at_um) == len(valid):
        raise ValueError(f"the arrays of {square} differ in length")
    name = name.astype(np.int64)
    named = (name >= 0) & (name < len(number))  # a code without a gene has the largest number that its type can hold
    gene = np.where(named, number[np.where(named, name, 0)], -1)
    kept = (gene >= 0) & (valid > 0)
    return gene[kept], at_um[kept], quality[kept].astype(float)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        import zarr
    except ImportError as error:
        raise DatasetError(f"{path}: reading it needs zarr, of stpredict's extra [train].") from error
    try:
        if not is_zipfile(path):
            raise ValueError("it is no zip archive")
        with zarr.storage.ZipStore(path, mode="r") as store:
            yield zarr.open_group(store, mode="r", zarr_format=2, use_consolidated=False)
    except DatasetError:
        raise
    except Exception as error:  # those of zarr, its codecs and zip among them
        raise DatasetError(f"{path}: cannot be read, or is damaged ({first_line(error)}).") from error


def _array(root: Any, name: str, path: Path) -> Any:
    """An array of numbers, read. Raises ValueError if it is another, or claims more than the archive can hold."""
    found = root[name]
    codecs = {getattr(codec, "codec_id", None) for codec in (*found.filters, *found.compressors)}
    if np.dtype(found.dtype).kind not in "iufb" or not codecs <= CODECS:
        raise ValueError(f"{name} is no array of numbers")
    if found.nbytes > max(CLAIM_BYTES, CLAIM_RATIO * path.stat().st_size):
        raise ValueError(f"{name} claims more data than the file can hold")
    return np.asarray(found[...])


def _parts(root: Any, group: str, path: Path) -> tuple[Any, Any, Any]:
    data, indices, starts = (_array(root, f"{group}/{part}", path) for part in ("data", "indices", "indptr"))
    return data, indices.astype(np.int64), starts.astype(np.int64)


def _cell_names(ids: Any) -> list[str]:
    """The names that the other files of a run give to cells; the first releases numbered them."""
    if ids.ndim == 1:
        return [str(number) for number in ids.tolist()]
    return [f"{number:08x}".translate(SPELT) + f"-{suffix}" for number, suffix in ids.tolist()]
