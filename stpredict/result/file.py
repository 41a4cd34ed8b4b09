"""Read the result of one slide: HDF5 in AnnData's on-disk layout, which anndata, scanpy and squidpy open as it is."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stpredict.arrays import Bool, Float32, UInt8
from stpredict.errors import ResultError, ResultNotFoundError
from stpredict.slides.lattice import MAX_SIDE, MAX_SPOTS, Spots, lattice_shape
from stpredict.slides.slide import Bounds, Mpp
from stpredict.storage.stored_text import read_text

RESULT_SUFFIX = ".h5ad"
#: HDF5's message for a file of another kind.
NO_HDF5 = "file signature not found"
#: Readers accept their own version of the format and older ones. Change it only if older readers would misread files.
FORMAT_VERSION = 1
CHUNK_SPOTS = 4096
CHUNK_GENES = 16
#: A block of all genes, which is written at once, is no larger. So chunks of whole transcriptomes have fewer spots.
MAX_BLOCK_BYTES, MIN_CHUNK_SPOTS = 64 << 20, 256
MAX_THUMBNAIL = 10_000
#: Distance of a spot's colours to the training patches; above 1 it is unusual. Results of some models have none.
UNUSUAL = "unusual"
#: Other faults of a spot.
FLAGS = ("blurred", "pen", "fold", "pale")
#: The name of the layer `relative`; its attribute says what it is relative to.
RELATIVE = "relative"
#: The meaning of the layer `spread`.
SPREAD_MEANS = "a stability measure over the patch's flips and rotations, not an uncertainty"
#: ln(1 + CPM) is at most 14; other models may have other units.
MAX_EXPRESSION = 1e6


@dataclass(frozen=True)
class Canvas:
    """The level-0 frame that spots lie in."""

    dimensions: tuple[int, int]
    bounds: Bounds
    mpp: Mpp
    spot_diameter_um: float


@dataclass(frozen=True)
class Gene:
    """A result's entry for a gene; NaN for unknown values.

    `held_out_correlation` has a 95 % interval from `held_out_low` to `held_out_high`; `held_out_ridge` is that of ridge
    regression in the model's place. `training_mean` is its mean expression in training. Expression plus and minus
    `half_width_80` (90, 95) is an interval that holds 80 % (90, 95) of the measurements of a new patient.
    `measured_in_training` is 1 if a training section measured it, else 0.
    """

    name: str
    held_out_correlation: float
    training_mean: float
    held_out_low: float = math.nan
    held_out_ridge: float = math.nan
    held_out_high: float = math.nan
    half_width_80: float = math.nan
    half_width_90: float = math.nan
    half_width_95: float = math.nan
    measured_in_training: float = math.nan


def nobody_measured(gene: Gene) -> bool:
    """Is a gene NaN in every spot, because no section in training measured it?"""
    return gene.measured_in_training == 0


GENE_COLUMNS = [field.name for field in fields(Gene)[1:]]
#: Few models know these. If no value is known, a result leaves them out.
MEASURED = "measured_in_training"
SELDOM_KNOWN = ("half_width_80", "half_width_90", "half_width_95", MEASURED)


@dataclass(frozen=True)
class Result:
    """A result: everything but the expression is in memory; `expression` reads that gene by gene."""

    path: Path
    name: str
    spots: Spots
    canvas: Canvas
    tissue_fraction: Float32
    genes: list[Gene]
    provenance: dict[str, Any]
    thumbnail: UInt8
    quality: Mapping[str, Float32 | Bool]  # UNUSUAL and FLAGS; older results lack them

    def flagged(self) -> dict[str, Bool]:
        """Which spots are unusual, blurred and so on, as far as the result records it."""
        return flagged(self.quality)

    def quality_of(self, spot: int) -> dict[str, float]:
        """UNUSUAL and FLAGS, as 0 or 1, of one spot, for a table."""
        return {
            name: round(float(values[spot]), 3) if name == UNUSUAL else int(values[spot])
            for name, values in self.quality.items()
        }

    def expression(self, gene: str) -> Float32:
        """One gene's expression, per spot, in the result's unit; NaN where the slide could not be read."""
        index = [g.name for g in self.genes].index(gene)
        with _opened(self.path) as file:
            values: Float32 = _dataset(file, "X")[:, index]
        return values

    def digest_of(self, genes: Sequence[int]) -> str:
        """A digest that differs if results were made differently, or differ in some of the `genes`, by index.

        It does not depend on the slide's path. Other genes are not read: a whole transcriptome would take minutes.
        """
        digest = hashlib.sha256(self._account)
        unread = {self.genes[index].name for index in genes if index not in self._gene_digests}
        for first, block in self.gene_blocks(unread) if unread else ():
            for index, column in enumerate(block.T, first):
                self._gene_digests[index] = hashlib.sha256(column.tobytes()).digest()
        for index in genes:
            digest.update(self._gene_digests[index])
        return digest.hexdigest()

    @cached_property
    def _account(self) -> bytes:
        """Bytes of how, where and for which genes the result was made, without the slide's path or the expression."""
        slide = {key: value for key, value in self.provenance["slide"].items() if key != "path"}
        account = {**self.provenance, "slide": slide, "all genes": [gene.name for gene in self.genes]}
        return json.dumps(account, sort_keys=True).encode() + self.spots.centres.tobytes()

    @cached_property
    def _gene_digests(self) -> dict[int, bytes]:
        """Digests of genes that were already read, by index."""
        return {}

    def blocks(self, genes: Sequence[int]) -> Iterator[Float32]:
        """The expression of some genes, by index, in blocks of spots x genes."""
        with _opened(self.path) as file:
            x = _dataset(file, "X")
            runs = np.split(chosen := np.unique(genes), np.flatnonzero(np.diff(chosen) > CHUNK_GENES) + 1)
            place = np.searchsorted(chosen, genes)
            for start in range(0, len(self.spots), size := chunk_spots(len(self.genes))):
                # Read neighbouring genes at once, but no distant ones between them.
                parts = [x[start : start + size, run[0] : run[-1] + 1][:, run - run[0]] for run in runs if len(run)]
                yield np.concatenate(parts, axis=1)[:, place]

    def gene_blocks(self, wanted: Container[str] | None = None) -> Iterator[tuple[int, Float32]]:
        """(index of the first gene, the expression of all spots x up to 16 genes), each stored chunk read once.

        If genes are `wanted`, only their chunks are read.
        """
        with _opened(self.path) as file:
            x = _dataset(file, "X")
            for first in range(0, len(self.genes), CHUNK_GENES):
                if wanted is None or any(gene.name in wanted for gene in self.genes[first : first + CHUNK_GENES]):
                    yield first, x[:, first : first + CHUNK_GENES]


def chunk_spots(n_genes: int) -> int:
    """Spots in a chunk and in a block that is written at once: CHUNK_SPOTS, or fewer if many genes take much memory.

    A chunk always has few genes, so that one gene can be read without the others.
    """
    most = CHUNK_SPOTS
    while most > MIN_CHUNK_SPOTS and most * n_genes * 4 > MAX_BLOCK_BYTES:
        most //= 2
    return most


def flagged(quality: Mapping[str, Float32 | Bool]) -> dict[str, Bool]:
    """Which spots have each flag: `unusual` if above 1, and FLAGS as they are stored."""
    return {name: values > 1 if name == UNUSUAL else values.astype(np.bool_) for name, values in quality.items()}


def spot_names(name: str, spots: Spots) -> list[str]:
    """Names unique across slides: SLIDE:r12c34 on a lattice, SLIDE:s17 for given positions."""
    if spots.layout == "given":
        return [f"{name}:s{column}" for column in spots.column]
    return [f"{name}:r{row}c{column}" for row, column in zip(spots.row, spots.column, strict=True)]


def read_provenance(path: Path) -> dict[str, Any]:
    """How a result was made. Raises ResultError if the file is not a result of this program."""
    with _opened(path) as file:
        return _provenance(file, path)


def read_result(path: Path) -> Result:
    """Read a result. Raises ResultError if the file is damaged or not a result of this program."""
    with _opened(path) as file:
        provenance = _provenance(file, path)
        name = str(provenance["slide"]["name"])
        if name in ("", ".", "..") or set(name) & set("/\\\0"):  # the name becomes part of file names
            raise ValueError(f"a slide cannot be called {name!r}")
        library = f"uns/spatial/{name}"
        x = _dataset(file, "X")
        n_spots, n_genes = x.shape
        if x.dtype != np.float32:
            raise ValueError("expression is not float32")
        lattice = provenance["lattice"]
        spots = Spots(
            centres=_read(file, "obsm/spatial", (n_spots, 2)).astype(np.float64),
            row=_read(file, "obs/row", (n_spots,)).astype(np.int64),
            column=_read(file, "obs/col", (n_spots,)).astype(np.int64),
            layout=lattice["layout"],
            pitch_um=float(lattice["pitch_um"]),
        )
        _check_account(provenance)
        canvas = _check_canvas(provenance, spots)
        columns = [
            _read(file, f"var/{column}", (n_genes,)) if f"var/{column}" in file else np.full(n_genes, np.nan)
            for column in GENE_COLUMNS  # older results have the first two
        ]
        names = read_text(_checked(file, "var/_index", (n_genes,)))
        float(provenance["unusual_patches"])
        ranges = _ranges_of(names, provenance)
        if ranges is not None:
            low, high = np.asarray(ranges, dtype=float)
            if low.shape != (n_genes,) or not ((low < high) & (np.abs(ranges) < MAX_EXPRESSION).all(axis=0)).all():
                raise ValueError("colour ranges and genes do not fit together")
        quality = {
            name: _read(file, f"obs/{name}", (n_spots,)).astype(np.float32 if name == UNUSUAL else np.bool_)
            for name in (UNUSUAL, *FLAGS)
            if name in set(file["obs"])
        }
        images = _dataset(file, f"{library}/images/hires")
        if images.dtype != np.uint8 or images.ndim != 3 or images.shape[2] != 3 or max(images.shape) > MAX_THUMBNAIL:
            raise ValueError("the thumbnail is no picture")
        return Result(
            path=path,
            name=name,
            spots=spots,
            canvas=canvas,
            tissue_fraction=_read(file, "obs/tissue_fraction", (n_spots,)).astype(np.float32),
            genes=[Gene(gene, *map(float, values)) for gene, *values in zip(names, *columns, strict=True)],
            provenance={**provenance, "display_range": ranges},
            thumbnail=images[:],
            quality=quality,
        )


def _ranges_of(genes: Sequence[str], provenance: dict[str, Any]) -> list[list[float]] | None:
    """The card's colour ranges in the order of `genes`, which somebody may have reordered, or reduced, since.

    Raises ValueError or KeyError for genes that the result was not made with.
    """
    ranges = provenance["display_range"]
    if ranges is None or "genes" not in provenance["settings"]:  # as in older results
        return ranges  # type: ignore[no-any-return]
    made_with = provenance["settings"]["genes"]
    if any(len(side) != len(made_with) for side in ranges):
        raise ValueError("colour ranges and genes do not fit together")
    place = {gene: i for i, gene in enumerate(made_with)}
    return [[side[place[gene]] for gene in genes] for side in ranges]


def _check_account(provenance: dict[str, Any]) -> None:
    """Check that a result says what it is made from. Raises KeyError, TypeError or ValueError."""
    texts = [provenance["expression_unit"], *(provenance["model"][key] for key in ("name", "sha256"))]
    texts += [provenance["slide"][key] for key in ("path", "fingerprint")]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("its account of model or slide is no text")


def _check_canvas(provenance: dict[str, Any], spots: Spots) -> Canvas:
    """The frame that pictures are drawn in, once it is certain that the spots lie in it."""
    slide, lattice = provenance["slide"], provenance["lattice"]
    width, height = (int(side) for side in slide["dimensions"])
    bounds, mpp = Bounds(*(int(side) for side in slide["bounds"])), Mpp(*(float(um) for um in slide["mpp"]))
    canvas = Canvas((width, height), bounds, mpp, float(lattice["spot_diameter_um"]))
    lengths = (*mpp, spots.pitch_um, canvas.spot_diameter_um)
    if not (0 < width < MAX_SIDE and 0 < height < MAX_SIDE and all(1e-4 < length < 1e6 for length in lengths)):
        raise ValueError("implausible slide or lattice")
    if not (max(map(abs, bounds)) < MAX_SIDE and bounds.width > 0 and bounds.height > 0):
        raise ValueError("implausible bounds")
    if not (np.abs(spots.centres) < MAX_SIDE).all():
        raise ValueError("implausible spots")
    if spots.layout not in ("square", "hex", "given"):
        raise ValueError(f"unknown layout {spots.layout!r}")
    if spots.layout != "given":
        rows, columns = lattice_shape(bounds, mpp, spots.pitch_um, spots.layout)
        inside = (spots.row >= 0) & (spots.row < rows) & (spots.column >= 0) & (spots.column < columns)
        if not inside.all() or rows * columns > MAX_SPOTS:
            raise ValueError("spots outside the lattice")
    return canvas


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    if not path.is_file():
        raise ResultNotFoundError(f"{path}: no such file or folder.")
    try:
        with h5py.File(path) as file:
            yield file
    except (
        OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, OverflowError, MemoryError,
    ) as error:  # fmt: skip
        why = "no HDF5 file; if it is a slide, predict it first" if NO_HDF5 in str(error) else error
        raise ResultError(f"{path.name}: not a result of this program, or a damaged one ({why}).") from error


def _provenance(file: h5py.File, path: Path) -> dict[str, Any]:
    (text,) = read_text(_dataset(file, "uns/stpredict"))
    provenance = json.loads(text)
    if provenance["format_version"] > FORMAT_VERSION:
        raise ResultError(f"{path.name}: made by a newer version of stpredict; please update.")
    return dict(provenance)


def _dataset(file: h5py.File, name: str) -> Any:
    """A data set stored in the file itself. Links to other files are never followed."""
    group: Any = file
    for part in name.split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"{name} is missing or a link")
        group = group[part]
    if not isinstance(group, h5py.Dataset) or group.external or group.is_virtual:
        raise ValueError(f"{name} is not stored in this file")
    return group


def _checked(file: h5py.File, name: str, shape: tuple[int, ...]) -> Any:
    """A data set, if it has the shape it must have, so that no read is larger than X's sides."""
    dataset = _dataset(file, name)
    if dataset.shape != shape or max(shape) > MAX_SPOTS:
        raise ValueError(f"{name} has the wrong shape")
    return dataset


def _read(file: h5py.File, name: str, shape: tuple[int, ...]) -> Any:
    dataset = _checked(file, name, shape)
    if dataset.dtype.kind not in "iufb":  # text is stored in heaps, which only `read_text` checks
        raise ValueError(f"{name} holds no numbers")
    return dataset[:]
