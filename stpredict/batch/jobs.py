"""Which slides a call means, by name, pattern, folder or list, where each result goes, and what became of each."""

from __future__ import annotations

import csv
import glob
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from stpredict.batch.anonymous import anonymous_names, demand_apart, readable_by_others
from stpredict.console import Report
from stpredict.errors import StpredictError, UsageError
from stpredict.prediction.job import Job, slide_name
from stpredict.result.file import RESULT_SUFFIX

#: What folders are searched for. Plain images and DICOM have to be named: in folders they are mostly something else.
SLIDE_SUFFIXES = {
    ".bif", ".btf", ".mrxs", ".ndpi", ".qptiff", ".scn", ".svs", ".svslide", ".tf2", ".tf8", ".tif", ".tiff", ".vms",
    ".vmu",
}  # fmt: skip
OWN_PICTURES = re.compile(r"\.(heatmap|overlay|pca|channels(-\d+)?\.ome)\.(tif|png|json)$")
LIST_COLUMNS = {"slide", "mpp", "mask", "out"}


@dataclass(frozen=True)
class Outcome:
    """What became of one slide. "elsewhere": another call is predicting it."""

    job: Job
    status: Literal["done", "up to date", "elsewhere", "failed"]
    n_spots: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    error: StpredictError | None = None


@dataclass(frozen=True)
class Anonymity:
    """The table of anonymous names, and whether those that it lacks are added."""

    table: Path
    keep: bool = True


def find_jobs(arguments: Sequence[str], out: Path, report: Report, anonymity: Anonymity | None = None) -> list[Job]:
    """The slides that a call names: files, patterns, folders (searched throughout), or lists (`@FILE.csv`).

    The results of a folder's slides go to folders of the same names within `out`; other results, and those of anonymous
    slides, straight into it. What is passed over in folders is reported. Raises UsageError for no slides, two of one
    result, one slide in two ways, or a table of names that cannot be used.
    """
    jobs = [job for argument in arguments for job in _jobs_of(argument, out, report, flat=anonymity is not None)]
    if anonymity:
        jobs = _anonymised(jobs, out, report, anonymity)
    results: dict[Path, Job] = {}
    for job in jobs:
        other = results.setdefault(job.result, job)
        if other.slide != job.slide:
            raise UsageError(
                f"{other.slide} and {job.slide} would both be written to {job.result}; give them a folder (-o) each."
            )
        if other != job:
            raise UsageError(
                f"{job.slide} is named twice, with another mpp or mask; give each a folder (out) of its own."
            )
    return list(results.values())


def _anonymised(jobs: Sequence[Job], out: Path, report: Report, anonymity: Anonymity) -> list[Job]:
    table = anonymity.table
    demand_apart(table, {out, *(job.result.parent for job in jobs)})
    names = anonymous_names([job.slide for job in jobs], table, anonymity.keep)
    if readable_by_others(table):
        report(f"{table}: others can read which slide is which; chmod 600 keeps them from it")
    return [
        replace(job, result=job.result.with_name(f"{name}{RESULT_SUFFIX}"), anonymous=name)
        for job, name in zip(jobs, names, strict=True)
    ]


def _jobs_of(argument: str, out: Path, report: Report, flat: bool) -> Iterator[Job]:
    if not argument:
        raise UsageError("a slide's name is empty.")
    path = Path(argument)
    if path.is_dir():
        yield from _in_folder(path, out, report, flat)
    elif argument.startswith("@") and not path.exists():
        yield from _in_list(Path(argument[1:]), out)
    elif glob.has_magic(argument) and not path.exists():
        found = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
        if not found:
            raise UsageError(f"{argument}: no file has such a name.")
        yield from (_job(Path(name), out) for name in found)
    elif path.suffix == RESULT_SUFFIX and path.is_file():
        raise UsageError(f"{path}: a result, not a slide; `stpredict render` draws it.")
    else:
        yield _job(path, out)


def _job(slide: Path, out: Path, mpp: float | None = None, mask: Path | None = None) -> Job:
    return Job(slide, out / f"{slide_name(slide)}{RESULT_SUFFIX}", mpp, mask)


def _in_folder(folder: Path, out: Path, report: Report, flat: bool) -> Iterator[Job]:
    passed_over: Counter[str] = Counter()
    found = 0
    for parent, folders, names in os.walk(folder, onerror=_cannot_be_read):
        for path in (Path(parent, name) for name in folders):
            if path.is_symlink() and flat:  # whose name may be a patient's
                passed_over["a link to a folder, not followed"] += 1
            elif path.is_symlink():
                report(f"{path}: a link to a folder, not followed; name it to search it")
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(parent, name) for name in sorted(names)):
            if reason := _not_a_slide(path):
                passed_over[reason] += 1
                continue
            found += 1
            yield _job(path, out if flat else out / path.parent.relative_to(folder))
    for reason, count in sorted(passed_over.items()):
        report(f"{folder}: passed over {count} {'file' if count == 1 else 'files'}: {reason}")
    if not found:
        raise UsageError(f"{folder}: holds no slides ({', '.join(sorted(SLIDE_SUFFIXES))}).")


def _cannot_be_read(error: OSError) -> None:
    raise UsageError(f"{error.filename}: cannot be read ({error.strerror}).") from error


def _not_a_slide(path: Path) -> str | None:
    if path.name.startswith("."):
        return "hidden"
    if OWN_PICTURES.search(path.name):
        return "pictures that stpredict drew"
    if path.suffix == RESULT_SUFFIX:
        return "results"
    suffix = path.suffix.lower()
    return None if suffix in SLIDE_SUFFIXES else f"{suffix or 'no suffix'}, not a slide's (name them to try them)"


def _in_list(path: Path, out: Path) -> Iterator[Job]:
    """Slides of a CSV with the column `slide` and, if wanted, `mpp`, `mask`, `out`; paths count from its folder."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"@{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    columns = set(rows[0]) if rows else set()
    if "slide" not in columns or not columns <= LIST_COLUMNS:
        needed = "a line of column names, separated by commas: slide and, if wanted, mpp, mask, out; then slides"
        raise UsageError(f"@{path}: needs {needed}.")
    for number, row in enumerate(rows, start=2):
        slide, given, mask, folder = ((row.get(column) or "").strip() for column in ("slide", "mpp", "mask", "out"))
        if not slide:
            raise UsageError(f"@{path}, line {number}: names no slide.")
        try:
            mpp = float(given) if given else None
        except ValueError:
            mpp = math.nan
        if mpp is not None and not 0 < mpp < math.inf:
            raise UsageError(f"@{path}, line {number}: mpp {given!r} is not a positive number of um per pixel.")
        goes_to = path.parent / folder if folder else out
        yield _job(path.parent / slide, goes_to, mpp, path.parent / mask if mask else None)
