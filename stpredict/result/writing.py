"""Write the result of one slide: HDF5 in AnnData's on-disk layout, which anndata, scanpy and squidpy open as it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stpredict.arrays import Bool, Float32, Int, UInt8
from stpredict.result.file import (
    CHUNK_GENES,
    FORMAT_VERSION,
    GENE_COLUMNS,
    MEASURED,
    RELATIVE,
    SELDOM_KNOWN,
    SPREAD_MEANS,
    Gene,
    chunk_spots,
    spot_names,
)
from stpredict.slides.lattice import Spots
from stpredict.storage.new_hdf5 import new_hdf5


@dataclass(frozen=True)
class Content:
    """The content of a result. `columns` have a value per spot: `tissue_fraction`, UNUSUAL and FLAGS, if known.

    `rows` are blocks of spots x genes in the order of the spots. So is `spread`, which says how much each value depends
    on the turn of its patch, and so is `relative`, which comes with its meaning. A pixel of the thumbnail is
    `downsample` level-0 pixels wide.
    """

    name: str
    spots: Spots
    columns: Mapping[str, Float32 | Bool]
    genes: Sequence[Gene]
    rows: Iterable[Float32]
    provenance: dict[str, Any]
    timings: dict[str, float]
    thumbnail: UInt8
    downsample: float
    spot_diameter_px: float
    spread: Iterable[Float32] | None = None
    relative: tuple[Iterable[Float32], str] | None = None


def write_result(path: Path, content: Content) -> None:
    """Write a result, whole or not at all."""
    name, spots, genes = content.name, content.spots, content.genes
    with new_hdf5(path) as file:
        _tag(file, "anndata", "0.1.0")
        shape = (len(spots), len(genes))
        _write_blocks(file, "X", shape, content.rows)
        _write_table(file, "obs", spot_names(name, spots), {
            "row": spots.row, "col": spots.column, **content.columns,
        })  # fmt: skip
        said = {column: np.array([getattr(gene, column) for gene in genes], np.float32) for column in GENE_COLUMNS}
        known: dict[str, Float32 | Bool] = {
            name: values.astype(np.bool_) if name == MEASURED else values
            for name, values in said.items()
            if name not in SELDOM_KNOWN or np.isfinite(values).any()
        }
        _write_table(file, "var", [gene.name for gene in genes], known)
        for group in ("obsm", "varm", "obsp", "varp", "layers", "uns", "uns/log1p", "uns/spatial"):
            _tag(file.create_group(group), "dict", "0.1.0")
        if content.spread is not None:
            _write_blocks(file, "layers/spread", shape, content.spread)
            file["layers/spread"].attrs["meaning"] = SPREAD_MEANS
        if content.relative is not None:
            rows, meaning = content.relative
            _write_blocks(file, f"layers/{RELATIVE}", shape, rows)
            file[f"layers/{RELATIVE}"].attrs["meaning"] = meaning
        _write_array(file, "obsm/spatial", spots.centres.astype(np.float64))
        library = f"uns/spatial/{name}"
        for group in ("", "/images", "/scalefactors", "/metadata"):
            _tag(file.create_group(library + group), "dict", "0.1.0")
        _write_array(file, f"{library}/images/hires", content.thumbnail)
        scale_factors = {
            "tissue_hires_scalef": 1 / content.downsample,
            "spot_diameter_fullres": content.spot_diameter_px,
            "fiducial_diameter_fullres": content.spot_diameter_px,
        }
        for key, value in scale_factors.items():
            _tag(file.create_dataset(f"{library}/scalefactors/{key}", data=value), "numeric-scalar", "0.2.0")
        _write_text(
            file, "uns/stpredict", json.dumps({"format_version": FORMAT_VERSION, **content.provenance}, sort_keys=True)
        )
        _write_text(file, "uns/stpredict_timings", json.dumps(content.timings))


def _tag(item: h5py.Group | h5py.Dataset, encoding: str, version: str) -> None:
    item.attrs["encoding-type"], item.attrs["encoding-version"] = encoding, version


def _write_array(file: h5py.File, name: str, values: np.ndarray) -> None:
    chunked = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if values.size else {}
    _tag(file.create_dataset(name, data=values, **chunked), "array", "0.2.0")


def _write_blocks(file: h5py.File, name: str, shape: tuple[int, int], blocks: Iterable[Float32]) -> None:
    """Write blocks of spots x genes one after the other."""
    chunks = (min(chunk_spots(shape[1]), shape[0]), min(CHUNK_GENES, shape[1]))
    x = file.create_dataset(
        name, shape, np.float32, chunks=chunks, compression="gzip", compression_opts=1, shuffle=True
    )
    _tag(x, "array", "0.2.0")
    start = 0
    for block in blocks:
        x[start : start + len(block)] = block
        start += len(block)
    assert start == shape[0], f"{start} rows for {shape[0]} spots"


def _write_text(file: h5py.File, name: str, text: str) -> None:
    _tag(file.create_dataset(name, data=text, dtype=h5py.string_dtype()), "string", "0.2.0")


def _write_table(file: h5py.File, name: str, index: Sequence[str], columns: Mapping[str, Float32 | Int | Bool]) -> None:
    group = file.create_group(name)
    _tag(group, "dataframe", "0.2.0")
    group.attrs["_index"] = "_index"
    group.attrs["column-order"] = np.array(list(columns), dtype=h5py.string_dtype())
    names = group.create_dataset("_index", data=np.array(index, dtype=object), dtype=h5py.string_dtype())
    _tag(names, "string-array", "0.2.0")
    for column, values in columns.items():
        _write_array(file, f"{name}/{column}", values)
