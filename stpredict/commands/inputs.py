"""Many inputs of one command: carry on after one fails, print what comes of each, and sum up."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from stpredict.console import Report, log, report
from stpredict.errors import ResultError, StpredictError, UsageError

#: Exit code if nothing failed, but other calls are still at some inputs (EX_TEMPFAIL of sysexits.h).
LEFT_TO_ANOTHER = 75


class Failure(NamedTuple):
    """An input that failed, why it failed, and whether the caller can mend that."""

    input: Path
    reason: str
    remediable: bool = False


def for_each(
    inputs: Sequence[Path],
    work: Callable[[Path], Iterator[Path]],
    alone: bool | None = None,
    tell: Report = report,
) -> list[Failure]:
    """Print what comes of each input. An input that fails costs only itself; the reason is reported.

    Raises the error of an input that is `alone` if the caller can mend it.
    """
    alone = len(inputs) == 1 if alone is None else alone
    failures: list[Failure] = []
    for path in inputs:
        try:
            for written in work(path):
                print(written, flush=True)
        except BrokenPipeError:
            raise
        except (StpredictError, OSError) as error:
            remediable = isinstance(error, StpredictError) and error.remediable
            if alone and remediable:
                raise
            reason = str(error) if isinstance(error, StpredictError) else f"{path.name}: {error.strerror or error}."
            failures.append(Failure(path, reason, remediable))
            tell(f"stpredict: {reason}")
        except Exception as error:
            if os.environ.get("STPREDICT_DEBUG"):
                raise
            reason = f"{path.name}: unexpected {type(error).__name__}: {error} (stpredict --debug says where)."
            failures.append(Failure(path, reason))
            tell(f"stpredict: {reason}")
    return failures


def unread(folders: Mapping[Path, str]) -> list[Failure]:
    """Report the folders that could not be searched, each with the reason. Returns them as failures."""
    failures = [Failure(path, f"{path}: {reason}.") for path, reason in folders.items()]
    for failure in failures:
        log("warning", f"stpredict: {failure.reason}")
    return failures


def sum_up(failures: Sequence[Failure], total: int, what: str) -> int:
    """The exit code, after a table of failures where there were several inputs."""
    if table := table_of_failures(failures, total, what):
        report(table)
    return exit_code(failures, total)


def exit_code(failures: Sequence[Failure], total: int) -> int:
    """The exit code after some inputs failed: 2 if all did and the caller can mend each, 1 for other failures, or 0."""
    if len(failures) >= total > 0 and all(failure.remediable for failure in failures):
        return UsageError.exit_code
    return ResultError.exit_code if failures else 0


def table_of_failures(failures: Sequence[Failure], total: int, what: str) -> str | None:
    """Which of several inputs failed, and why; None if none did, or there was only one."""
    if not failures or total == 1:
        return None
    width = max(len(str(path)) for path, *_ in failures)
    lines = (
        f"  {path!s:{width}}  {reason.removeprefix(f'{path.name}: ').removeprefix(f'{path}: ')}"
        for path, reason, _ in failures
    )
    return "\n".join((f"{len(failures)} of {total} {what} failed:", *lines))


def needs_training_extra(error: ModuleNotFoundError) -> UsageError:
    return UsageError(f"this needs {error.name}: install stpredict with its extra [train].")
