"""Write a result for Seurat, without R: a matrix in 10x Genomics' MatrixMarket layout, positions and the thumbnail.

The layout follows Space Ranger's manual. Seurat reads it by Read10X and Read10X_Image.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io
import scipy.sparse
from PIL import Image

from stpredict.arrays import Bool
from stpredict.console import Report, printable
from stpredict.errors import counted
from stpredict.result.file import Result, nobody_measured, spot_names
from stpredict.storage.csv_cells import plain_cell

MATRIX = "matrix.mtx.gz"
#: Digits of a value of expression; float32 has no more.
DIGITS = 7


def write_seurat(folder: Path, result: Result, genes: Sequence[int], report: Report) -> None:
    """Write some genes of a result, by index, into a new folder.

    MatrixMarket has no missing values. So genes that no training section measured, and spots that were not predicted,
    are left out, and `report` says so.
    """
    kept = [i for i in genes if not nobody_measured(result.genes[i])]
    # Spots x genes, as they are stored; zeros take no space.
    blocks = list(result.blocks(kept)) if kept else [np.zeros((len(result.spots), 0), np.float32)]
    predicted: Bool = np.concatenate([np.isfinite(block).all(axis=1) for block in blocks])
    matrix = scipy.sparse.vstack([scipy.sparse.csr_matrix(np.nan_to_num(block)) for block in blocks])[predicted]
    if left := len(genes) - len(kept):
        report(f"{result.name}: {counted(left, 'gene')} left out, which no training section measured")
    if left := int((~predicted).sum()):
        report(f"{result.name}: {counted(left, 'spot')} left out, not predicted")

    folder.mkdir()
    with gzip.open(folder / MATRIX, "wb", compresslevel=4) as file:
        scipy.io.mmwrite(file, matrix.T.tocoo(), field="real", precision=DIGITS, symmetry="general")
    spots = np.flatnonzero(predicted).tolist()
    every = spot_names(result.name, result.spots)
    names = [str(plain_cell(every[i])) for i in spots]  # equal in all files, even if a spreadsheet saves one
    _write_lines(folder / "barcodes.tsv.gz", names)
    symbols = [" ".join(printable(result.genes[i].name).split()) for i in kept]
    _write_lines(folder / "features.tsv.gz", [f"{symbol}\t{symbol}\tGene Expression" for symbol in symbols])
    _write_facts(folder / "spots.csv", result, names, spots)
    (folder / "stpredict.json").write_text(json.dumps(result.provenance, indent=1), encoding="utf-8")
    _write_positions(folder / "spatial", result, names, spots)


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    with gzip.open(path, "wt", encoding="utf-8", errors="replace", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)


def _write_facts(path: Path, result: Result, names: Sequence[str], spots: Sequence[int]) -> None:
    """Write tissue and flags of each spot, as Seurat's AddMetaData takes them."""
    with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.writer(file)
        writer.writerow(("spot", "tissue_fraction", *result.quality))
        for name, i in zip(names, spots, strict=True):
            fraction = round(float(result.tissue_fraction[i]), 3)
            writer.writerow((name, fraction, *result.quality_of(i).values()))


def _write_positions(folder: Path, result: Result, names: Sequence[str], spots: Sequence[int]) -> None:
    """Write centres in level-0 pixels, the thumbnail, and the factors that scale one to the other."""
    folder.mkdir()
    with (folder / "tissue_positions_list.csv").open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.writer(file)
        for name, i in zip(names, spots, strict=True):
            x, y = result.spots.centres[i].round().astype(int).tolist()
            writer.writerow((name, 1, int(result.spots.row[i]), int(result.spots.column[i]), y, x))
    Image.fromarray(result.thumbnail).save(folder / "tissue_lowres_image.png")
    canvas = result.canvas
    scale = result.thumbnail.shape[1] / canvas.dimensions[0]
    diameter = canvas.spot_diameter_um / float(np.mean(canvas.mpp))
    factors = {
        "tissue_lowres_scalef": scale,
        "tissue_hires_scalef": scale,
        "spot_diameter_fullres": diameter,
        "fiducial_diameter_fullres": diameter,
    }
    (folder / "scalefactors_json.json").write_text(json.dumps(factors))
