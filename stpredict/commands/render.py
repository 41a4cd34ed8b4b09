"""Draw results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stpredict.commands.inputs import for_each, sum_up
from stpredict.console import report
from stpredict.errors import ResultError, UsageError
from stpredict.files import output_folders

if TYPE_CHECKING:
    from stpredict.rendering.colour import Cohort
    from stpredict.rendering.styles import RenderRequest
    from stpredict.result import Result


def render_command(results: Sequence[Path], request: RenderRequest, scale_from: Sequence[Path], out: Path) -> int:
    """Draw results, all on the scale of those in `scale_from`; print the pictures' paths. Returns the exit code."""
    from stpredict.result import read_provenance

    if request.slide and len(results) > 1:
        raise UsageError("--slide names one slide; render its result alone.")
    for path in results:
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; name the results in it ({path / '*.h5ad'}).")
    if request.slide and not request.slide.is_file():
        raise UsageError(f"--slide {request.slide}: no such file.")
    if scale_from:
        request = replace(request, scale=replace(request.scale, cohort=_read_cohort(scale_from)))
    drawn: dict[str, Path] = {}

    def draw(path: Path) -> Iterator[Path]:
        name = read_provenance(path)["slide"]["name"]
        if drawn.setdefault(name, path) != path:
            raise ResultError(f"{path}: of the same slide as {drawn[name]}; draw it into a folder (-o) of its own.")
        yield from render_one(request, out, path)

    with output_folders(out):
        failures = for_each(results, draw)
    return sum_up(failures, len(results), "results")


def render_one(request: RenderRequest, out: Path, path: Path) -> Iterator[Path]:
    from stpredict.rendering.render import render
    from stpredict.result import read_result

    yield from render(read_result(path), request, out)


def _read_cohort(paths: Sequence[Path]) -> Cohort:
    """The results among `paths`, and those in the folders among them and all below that can be read, each slide once.

    Raises UsageError if there are none, or one that was named cannot be read.
    """
    from stpredict.rendering.colour import Cohort
    from stpredict.result import read_result

    results: dict[tuple[str, str], Result] = {}
    for path in paths:
        for file in sorted(path.rglob("[!.]*.h5ad")) if path.is_dir() else [path]:
            try:
                result = replace(read_result(file), thumbnail=np.empty((0, 0, 3), np.uint8))  # a cohort is large
                other = results.setdefault((result.name, result.provenance["slide"]["fingerprint"]), result)
                if other.path.resolve() != file.resolve():
                    report(f"stpredict: --scale-from leaves out {file}: of the same slide as {other.path}.")
            except ResultError as error:
                if not path.is_dir():
                    raise UsageError(f"--scale-from: {error}") from error
                report(f"stpredict: --scale-from leaves out {error}")
    if not results:
        raise UsageError(f"--scale-from {paths[0]}: holds no results.")
    return Cohort([*results.values()])
