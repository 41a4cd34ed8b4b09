"""Find the slides of a call, by name, pattern, folder or list; where each result goes; what became of each slide."""

from __future__ import annotations

import csv
import glob
import math
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from stpredict.batch.anonymous import anonymous_names, demand_apart, readable_by_others
from stpredict.batch.folders import SLIDE_SUFFIXES, search
from stpredict.console import Report
from stpredict.errors import ResultError, StpredictError, UsageError
from stpredict.prediction.job import Job, as_text, slide_name
from stpredict.result.file import RESULT_SUFFIX, read_provenance
from stpredict.storage.files import is_excluded, is_folder, is_there

LIST_COLUMNS = {"slide", "mpp", "mask", "out"}
#: Suffixes of pictures of any kind, perhaps made from a slide beside them.
GENERIC_SUFFIXES = (".tif", ".tiff")
WEB_ADDRESS = re.compile(r"(https?|ftp|s3|gs)://", re.IGNORECASE)


@dataclass(frozen=True)
class Outcome:
    """The outcome of one slide. "elsewhere": another call is predicting it."""

    job: Job
    status: Literal["done", "up to date", "elsewhere", "failed"]
    n_spots: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    error: StpredictError | None = None


@dataclass(frozen=True)
class Anonymity:
    """The table of anonymous names, and whether to add names that it lacks."""

    table: Path
    keep: bool = True


@dataclass(frozen=True)
class Search:
    """How to search folders: skipped files are reported; folders that cannot be searched are noted with the reason."""

    report: Report
    exclude: Sequence[str] = ()
    flat: bool = False  # all results side by side; no folder is named, as it may bear a patient's name
    unreadable: dict[Path, str] = field(default_factory=dict)


def find_jobs(
    arguments: Sequence[str], out: Path, report: Report, anonymity: Anonymity | None = None,
    exclude: Sequence[str] = (), unreadable: dict[Path, str] | None = None,
) -> list[Job]:  # fmt: skip
    """The slides that a call names: files, patterns, folders (searched throughout), or lists (`@FILE.csv`).

    For slides in a folder, `out` gets the same subfolders; other results, and those of anonymous slides, go straight
    into `out`. Files skipped in folders are reported, and so are files that the patterns `exclude` match, except a file
    that is named alone. Subfolders that cannot be read are added to `unreadable`, with the reason.
    Raises UsageError for no slides, two with one result, one slide in two ways, or an unusable table of names.
    """
    how = Search(report, exclude, anonymity is not None, {} if unreadable is None else unreadable)
    jobs = [job for argument in arguments for job in _jobs_of(argument, out, how, alone=len(arguments) == 1)]
    if not jobs:
        raise UsageError("--exclude leaves no slide." if exclude else "there are no slides in these folders.")
    jobs = _anonymised(jobs, out, report, anonymity) if anonymity else _told_apart(jobs)
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


def _told_apart(jobs: Sequence[Job]) -> list[Job]:
    """Give slides that differ only in their suffix results of their own: case1.h5ad, and case1.tif.h5ad.

    An existing result stays its slide's, so the short name keeps its slide in later calls, whatever slides there are
    then. If there is no result yet, scanners' formats come before TIFF, and equals in the order of their names.
    """
    names: dict[Path, set[str]] = {}
    for job in jobs:
        names.setdefault(job.result, set()).add(job.slide.name)
    holders = {result: _holder(result, slides) for result, slides in names.items() if len(slides) > 1}
    return [_with_suffix(job) if _needs_suffix(job, holders.get(job.result), names) else job for job in jobs]


def _holder(result: Path, slides: Iterable[str]) -> str:
    """Among slides with one stem, the file name of the one that has the short name."""
    first = min(slides, key=lambda name: (Path(name).suffix.lower() in GENERIC_SUFFIXES, name))
    return (_owner(result) or first) if is_there(result) else first


def _needs_suffix(job: Job, holder: str | None, short: Container[Path]) -> bool:
    longer = _with_suffix(job)
    if is_there(longer.result):  # it may be the result of case1.svs.tif
        return _owner(longer.result) == job.slide.name
    if longer.result not in short and (is_there(longer.parts) or is_there(longer.lease)):
        return True
    if holder is None and is_there(job.result) and _has_twin(job.slide):
        holder = _owner(job.result)
    return holder is not None and holder != job.slide.name


def _with_suffix(job: Job) -> Job:
    return replace(job, result=job.result.with_name(f"{as_text(job.slide.name)}{RESULT_SUFFIX}"))


def _has_twin(slide: Path) -> bool:
    """Is there another slide beside it that differs only in the suffix?"""
    return any(is_there(slide.with_suffix(suffix)) for suffix in SLIDE_SUFFIXES - {slide.suffix})


def _owner(result: Path) -> str | None:
    """The file name of a result's slide, if the result records it."""
    with suppress(ResultError, KeyError, TypeError):
        return Path(read_provenance(result)["slide"]["path"]).name or None
    return None


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


def _jobs_of(argument: str, out: Path, how: Search, alone: bool) -> Iterator[Job]:
    if not argument:
        raise UsageError("a slide's name is empty.")
    if WEB_ADDRESS.match(argument):
        raise UsageError(f"{argument}: a web address, and nothing is downloaded; save the slide and name its file.")
    path = Path(argument)
    if is_folder(path):
        yield from _in_folder(path, out, how, alone)
    elif argument.startswith("@") and not is_there(path):
        yield from _not_excluded(argument, _in_list(Path(argument[1:]), out), how)
    elif glob.has_magic(argument) and not is_there(path):
        found = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
        if not found:
            raise UsageError(f"{argument}: no file has such a name.")
        yield from _not_excluded(argument, (_job(Path(name), out) for name in found), how)
    elif path.suffix == RESULT_SUFFIX and is_there(path):
        raise UsageError(f"{path}: a result, not a slide; `stpredict render` draws it.")
    elif alone:
        yield _job(path, out)
    else:
        yield from _not_excluded(argument, [_job(path, out)], how)


def _job(slide: Path, out: Path, mpp: float | None = None, mask: Path | None = None) -> Job:
    return Job(slide, out / f"{slide_name(slide)}{RESULT_SUFFIX}", mpp, mask)


def _not_excluded(argument: str, jobs: Iterable[Job], how: Search) -> Iterator[Job]:
    count = 0
    for job in jobs:
        if is_excluded(job.slide, how.exclude):
            count += 1
        else:
            yield job
    if count:
        where = "" if how.flat else f"{argument}: "  # it may bear a patient's name
        how.report(f"{where}passed over {count} file{'' if count == 1 else 's'}: --exclude")


def _in_folder(folder: Path, out: Path, how: Search, alone: bool) -> Iterator[Job]:
    """Raises UsageError for a folder that is named alone and cannot be read or holds no slides."""
    found = search(folder, how.exclude)
    if alone and folder in found.unreadable:
        raise UsageError(f"{folder}: cannot be read ({found.unreadable[folder]}).")
    if how.flat:
        found.files.update(["a link to a folder, not followed"] * len(found.links))
    else:
        for path in found.links:
            how.report(f"{path}: a link to a folder, not followed; name it to search it")
    for line in found.passed_over():
        how.report(f"{folder}: {line}")
    if how.flat and found.unreadable:
        how.unreadable[folder] = f"{len(found.unreadable)} of the folders in it cannot be read"
    else:
        how.unreadable.update({path: f"cannot be read ({reason})" for path, reason in found.unreadable.items()})
    if not found.slides and folder not in found.unreadable:
        unread = f", and {len(found.unreadable)} of its folders cannot be read" if found.unreadable else ""
        none = f"{folder}: holds no slides ({', '.join(sorted(SLIDE_SUFFIXES))}){unread}."
        if alone:
            raise UsageError(none)
        how.report(none)
    for path in found.slides:
        yield _job(path, out if how.flat else out / path.parent.relative_to(folder))


def _in_list(path: Path, out: Path) -> Iterator[Job]:
    """Slides of a CSV with the column `slide` and optional `mpp`, `mask`, `out`; paths are relative to its folder."""
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
