"""Many inputs of one command: carry on after one fails, print what comes of each, and sum up."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from stpredict.console import Report, report
from stpredict.errors import ResultError, SlideError, StpredictError, UsageError

Failure = tuple[Path, str]


def for_each(
    inputs: Sequence[Path],
    work: Callable[[Path], Iterator[Path]],
    alone: bool | None = None,
    tell: Report = report,
) -> list[Failure]:
    """Print what comes of each input. One that fails costs only itself; one that is `alone` may raise UsageError."""
    alone = len(inputs) == 1 if alone is None else alone
    failures: list[Failure] = []
    for path in inputs:
        try:
            for written in work(path):
                print(written, flush=True)
        except BrokenPipeError:
            raise
        except (StpredictError, OSError) as error:
            if alone and isinstance(error, UsageError):
                raise
            if alone and isinstance(error, SlideError) and error.remediable:
                raise UsageError(str(error)) from error
            reason = str(error) if isinstance(error, StpredictError) else f"{path.name}: {error.strerror or error}."
            failures.append((path, reason))
            tell(f"stpredict: {reason}")
        except Exception as error:
            if os.environ.get("STPREDICT_DEBUG"):
                raise
            reason = f"{path.name}: unexpected {type(error).__name__}: {error} (stpredict --debug says where)."
            failures.append((path, reason))
            tell(f"stpredict: {reason}")
    return failures


def sum_up(failures: Sequence[Failure], total: int, what: str) -> int:
    """The exit code, after a table of failures where there were several inputs."""
    if table := table_of_failures(failures, total, what):
        report(table)
    return ResultError.exit_code if failures else 0


def table_of_failures(failures: Sequence[Failure], total: int, what: str) -> str | None:
    """Which of several inputs failed, and why; None if none did, or there was only one."""
    if not failures or total == 1:
        return None
    width = max(len(str(path)) for path, _ in failures)
    lines = (
        f"  {path!s:{width}}  {reason.removeprefix(f'{path.name}: ').removeprefix(f'{path}: ')}"
        for path, reason in failures
    )
    return "\n".join((f"{len(failures)} of {total} {what} failed:", *lines))


def needs_training_extra(error: ModuleNotFoundError) -> UsageError:
    return UsageError(f"this needs {error.name}: install stpredict with its extra [train].")
