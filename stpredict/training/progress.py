"""Progress of an epoch of training: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from stpredict.console import Report, logs_json
from stpredict.training.processes import is_main_process

LINE_EVERY_S = 300.0
#: A function to call after each step with its number of patches.
Advance = Callable[[int], None]


class Pace:
    """Counts the steps of an epoch, and the patches that this call saw, to tell the speed."""

    def __init__(self, steps: int, done: int, steps_after: int) -> None:
        self.steps, self.done, self._steps_after = steps, done, steps_after
        self._done_before, self._patches, self._start = done, 0, time.monotonic()

    def advance(self, n_patches: int) -> None:
        self.done += 1
        self._patches += n_patches

    def __str__(self) -> str:
        """The step, the patches per second, and the time that the rest of the stage takes at this speed."""
        seconds = time.monotonic() - self._start
        here = f"step {self.done:,} of {self.steps:,}"
        if self.done == self._done_before or not seconds:
            return here
        left = (self.steps - self.done + self._steps_after) * seconds / (self.done - self._done_before)
        rate = self._patches / seconds
        return f"{here}, {rate:.{int(rate < 10)}f} patches a second, about {timedelta(seconds=round(left))} left"


@contextmanager
def watching_steps(what: str, pace: Pace, report: Report) -> Iterator[Advance]:
    """Show the progress of an epoch, called `what`, in the first process."""
    if not is_main_process():
        yield pace.advance
    elif logs_json() or not sys.stderr.isatty():
        yield in_lines(what, pace, report)
    else:
        with _in_a_bar(what, pace) as advance:
            yield advance


def in_lines(what: str, pace: Pace, report: Report) -> Advance:
    """Report the progress in a line now and then, as beside another bar."""
    last = time.monotonic()

    def advance(n_patches: int) -> None:
        nonlocal last
        pace.advance(n_patches)
        if time.monotonic() - last >= LINE_EVERY_S and pace.done < pace.steps:
            last = time.monotonic()
            report(f"{what}: {pace}")

    return advance


@contextmanager
def _in_a_bar(what: str, pace: Pace) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[pace]}", markup=False),
    )
    console = Console(stderr=True, highlight=False)
    # Lines that are printed meanwhile appear above the bar.
    with Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as bars:
        task = bars.add_task(what, total=pace.steps, completed=pace.done, pace=pace)

        def advance(n_patches: int) -> None:
            pace.advance(n_patches)
            bars.update(task, completed=pace.done)

        yield advance
