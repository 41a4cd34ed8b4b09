"""Export results to other programs' formats."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stpredict.commands.inputs import for_each, sum_up, unread
from stpredict.commands.render import output_places
from stpredict.console import report
from stpredict.data.panel import match_genes
from stpredict.errors import ResultError
from stpredict.result.file import Result, read_result
from stpredict.result.seurat import MATRIX, write_seurat
from stpredict.result.spatial_data import MARKS, demand_spatialdata, write_spatialdata
from stpredict.storage.files import output_folders

Format = Literal["spatialdata", "seurat"]
FORMATS: tuple[Format, ...] = ("spatialdata", "seurat")
SUFFIXES: dict[Format, str] = {"spatialdata": ".zarr", "seurat": ".seurat"}


@dataclass(frozen=True)
class ExportRequest:
    """The format to export to, and the genes of the results; no genes means all."""

    to: Format
    genes: Sequence[str] = ()
    overwrite: bool = False


def export_command(results: Sequence[Path], request: ExportRequest, out: Path, exclude: Sequence[str]) -> int:
    """Write a folder for each result and print its path. Returns the exit code.

    Raises UsageError, before anything is written, if the format's library is not installed.
    """
    if request.to == "spatialdata":
        demand_spatialdata()
    unreadable: dict[Path, str] = {}
    places = output_places(results, out, exclude, unreadable)
    made: dict[Path, Path] = {}

    def export(path: Path) -> Iterator[Path]:
        result = read_result(path)
        target = places[path] / f"{result.name}{SUFFIXES[request.to]}"
        if made.setdefault(target, path) != path:
            raise ResultError(f"{path}: of the same slide as {made[target]}; export it into a folder (-o) of its own.")
        yield _export(result, target, request)

    with output_folders(*dict.fromkeys(places.values())):
        failures = unread(unreadable) + for_each(list(places), export)
    return sum_up(failures, len(places) + len(unreadable), "results")


def _export(result: Result, target: Path, request: ExportRequest) -> Path:
    """Export one result, whole or not at all. Raises ResultError if something is in its place."""
    names = [gene.name for gene in result.genes]
    genes = match_genes(request.genes, names, "genes of this result") if request.genes else list(range(len(names)))
    if target.exists() and not request.overwrite:
        raise ResultError(f"{target}: exists; --overwrite replaces it.")
    marks = MARKS if request.to == "spatialdata" else (MATRIX,)
    if target.exists() and not any((target / mark).is_file() for mark in marks):
        raise ResultError(f"{target}: is no export to {request.to}; move it away.")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{result.name[:40]}.") as folder:
        made = Path(folder) / target.name
        if request.to == "spatialdata":
            write_spatialdata(made, result, genes)
        else:
            write_seurat(made, result, genes, report)
        if target.exists():
            shutil.rmtree(target)
        made.rename(target)
    return target
