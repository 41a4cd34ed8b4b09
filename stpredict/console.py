"""What people see while a command runs: progress on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[str], None]

LINE_EVERY_S = 10.0


def report(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """A text that may hold strangers' names, without the characters that could steer a terminal."""
    return "".join(character if character.isprintable() or character in "\n\t" else "\ufffd" for character in text)


@contextmanager
def progress_of_spots() -> Iterator[tuple[Callable[[int, int], None], Report]]:
    """Functions to call with (spots done, spots in all) of the slide at hand, and with a line to print."""
    if not sys.stderr.isatty():
        last = time.monotonic()

        def print_line(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= LINE_EVERY_S and done < total:
                last = time.monotonic()
                report(f"  {done} of {total} spots")

        yield print_line, report
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("spots"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task("spots", total=None)
        yield (
            lambda done, total: bar.update(task, completed=done, total=total),
            lambda line: console.print(printable(line), markup=False),
        )
