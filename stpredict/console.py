"""What a command says while it runs, on stderr: lines and progress for people, JSON for schedulers."""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

Report = Callable[[str], None]

LINE_EVERY_S = 10.0
_as_json = False


def report(line: str) -> None:
    log("note", line)


def log(event: str, line: str | None = None, **facts: str | int | float) -> None:
    """Tell of an event: to people its line, if it has one; as JSON its line, without the program's name, and facts."""
    if _as_json:
        message = {} if line is None else {"message": line.removeprefix("stpredict: ").strip()}
        said = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts, **message}
        text = json.dumps({key: _valid(value) for key, value in said.items()})
    elif line is not None:
        text = printable(line)
    else:
        return
    sys.stderr.write(f"{text}\n")  # in one piece, as other processes may write to the same log
    sys.stderr.flush()


def printable(text: str) -> str:
    """A text that may hold strangers' names, without the characters that could steer a terminal."""
    return "".join(character if character.isprintable() or character in "\n\t" else "\ufffd" for character in text)


def logs_json() -> bool:
    return _as_json


@contextmanager
def json_lines(wanted: bool) -> Iterator[None]:
    """If `wanted`, tell as JSON, also what libraries warn of."""
    global _as_json
    if not wanted:
        yield
        return
    show, handler = warnings.showwarning, _WarningHandler()
    logging.getLogger().addHandler(handler)
    warnings.showwarning = lambda message, kind, *_: log("warning", f"{kind.__name__}: {message}")
    _as_json = True
    try:
        yield
    finally:
        _as_json = False
        warnings.showwarning = show
        logging.getLogger().removeHandler(handler)


@contextmanager
def progress_of_spots() -> Iterator[Callable[[int, int], None]]:
    """A function to call with (spots done, spots in all) of the slide at hand."""
    if _as_json or not sys.stderr.isatty():
        last = time.monotonic()

        def print_line(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= LINE_EVERY_S and done < total:
                last = time.monotonic()
                log("progress", f"  {done} of {total} spots", done=done, spots=total)

        yield print_line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("spots"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Lines that are printed meanwhile appear above the bar.
    with Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task("spots", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _WarningHandler(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        log("warning", record.getMessage())


def _valid(value: str | int | float) -> str | int | float:
    """Half of a surrogate pair, as in a file name that is not text, is no JSON that all programs read."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
