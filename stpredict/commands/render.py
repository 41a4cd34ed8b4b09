"""Draw results."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stpredict.batch.folders import SLIDE_SUFFIXES
from stpredict.commands.inputs import for_each, sum_up, unread
from stpredict.console import report
from stpredict.errors import ResultError, UsageError
from stpredict.storage.files import is_folder, output_folders

if TYPE_CHECKING:
    from stpredict.rendering.colour import Cohort
    from stpredict.rendering.styles import RenderRequest
    from stpredict.result.file import Result


def render_command(
    results: Sequence[Path], request: RenderRequest, scale_from: Sequence[Path], out: Path, exclude: Sequence[str]
) -> int:
    """Draw results, all on the scale of those in `scale_from`; print the pictures' paths. Returns the exit code."""
    from stpredict.result.file import read_provenance

    unreadable: dict[Path, str] = {}
    places = output_places(results, out, exclude, unreadable)
    if request.slide and len(places) > 1:
        raise UsageError("--slide names one slide; render its result alone.")
    if request.slide and not request.slide.is_file():
        raise UsageError(f"--slide {request.slide}: no such file.")
    if scale_from:
        request = replace(request, scale=replace(request.scale, cohort=_read_cohort(scale_from, places)))
    drawn: dict[Path, Path] = {}

    def draw(path: Path) -> Iterator[Path]:
        if path.suffix.lower() in SLIDE_SUFFIXES and path.is_file():
            raise ResultError(f"{path}: a slide, not a result; predict it first.")
        picture = places[path] / read_provenance(path)["slide"]["name"]
        if drawn.setdefault(picture, path) != path:
            raise ResultError(f"{path}: of the same slide as {drawn[picture]}; draw it into a folder (-o) of its own.")
        yield from render_one(request, places[path], path)

    with output_folders(*dict.fromkeys(places.values())):
        failures = unread(unreadable) + for_each(list(places), draw)
    return sum_up(failures, len(places) + len(unreadable), "results")


def output_places(
    results: Sequence[Path], out: Path, exclude: Sequence[str], unreadable: dict[Path, str]
) -> dict[Path, Path]:
    """The folder for each result's pictures: `out`, and for a result in a subfolder the same subfolder of `out`.

    Skips results in folders that a pattern excludes, and adds folders that cannot be read to `unreadable`.
    Raises UsageError for a folder without results.
    """
    from stpredict.result.folder import results_in

    places: dict[Path, Path] = {}
    for path in results:
        found = results_in(path, exclude, unreadable) if is_folder(path) else [path]
        if not found:
            raise UsageError(f"{path}: holds no results (*.h5ad).")
        for file in found:
            places.setdefault(file, out / file.parent.relative_to(path) if is_folder(path) else out)
    return places


def render_one(request: RenderRequest, out: Path, path: Path) -> Iterator[Path]:
    from stpredict.rendering.render import render
    from stpredict.result.file import read_result

    yield from render(read_result(path), request, out)


def _read_cohort(paths: Sequence[Path], drawn: Collection[Path]) -> Cohort:
    """The results among `paths`, and all readable results in the folders among them and below; each slide once.

    Of several results of one slide, one that is `drawn` counts. Raises UsageError if there is no result, or a result
    that was named cannot be read.
    """
    from stpredict.rendering.colour import Cohort
    from stpredict.result.file import read_result
    from stpredict.result.folder import results_in

    first = {path.resolve() for path in drawn}
    results: dict[tuple[str, str], Result] = {}
    for path in paths:
        found = results_in(path) if is_folder(path) else [path]
        for file in sorted(found, key=lambda file: file.resolve() not in first):
            try:
                result = replace(read_result(file), thumbnail=np.empty((0, 0, 3), np.uint8))  # a cohort is large
                other = results.setdefault((result.name, result.provenance["slide"]["fingerprint"]), result)
                if other.path.resolve() != file.resolve():
                    report(f"stpredict: --scale-from leaves out {file}: of the same slide as {other.path}.")
            except ResultError as error:
                if not is_folder(path):
                    raise UsageError(f"--scale-from: {error}") from error
                report(f"stpredict: --scale-from leaves out {error}")
    if not results:
        raise UsageError(f"--scale-from {paths[0]}: holds no results.")
    return Cohort([*results.values()])
