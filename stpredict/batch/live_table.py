"""The table that a terminal shows while slides are predicted."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from stpredict.console import printable

NAME_WIDTH = 40
#: Columns left free at a line's end: the terminal's echo of Ctrl-C would wrap the line, and leave the one above.
ECHO_WIDTH = 4
#: A slide's rate is that of its last so many seconds.
RATE_OVER_S = 30.0
#: The remaining time can be estimated once so much work is done, in slides.
ESTIMATE_FROM = 0.05


@contextmanager
def live_table(n_slides: int) -> Iterator[_Slides]:
    """Show how many slides are done, failed and left, and which are being predicted. The table is erased at the end."""
    console = Console(stderr=True, highlight=False)
    slides = _Slides(n_slides, console)
    # Lines that are printed meanwhile appear above it.
    with Live(
        get_renderable=slides.drawn, console=console, transient=True, refresh_per_second=4,
        redirect_stdout=sys.stdout.isatty(),
    ):  # fmt: skip
        yield slides


class _Slides:
    def __init__(self, n_slides: int, console: Console) -> None:
        name = TextColumn("{task.description}", markup=False, table_column=_name_column())
        columns = (name, BarColumn(), _Rate(), *((TimeRemainingColumn(),) if n_slides == 1 else ()))
        self._bars = Progress(*columns, console=console, speed_estimate_period=RATE_OVER_S)
        self._rows: dict[str, TaskID] = {}
        self._ended: Counter[str] = Counter()
        self._n_slides, self._start = n_slides, time.monotonic()

    def progress(self, slide: str, done: int, total: int) -> None:
        if slide in self._rows:
            self._bars.update(self._rows[slide], completed=done, total=total)
        elif total:  # spots from an earlier call do not count for this call's rate
            self._rows[slide] = self._bars.add_task(printable(Path(slide).name), total=total, completed=done)

    def ended(self, slide: str, status: str, /) -> None:
        self._ended[status] += 1
        if slide in self._rows:
            self._bars.remove_task(self._rows.pop(slide))

    def drawn(self) -> RenderableType:
        bars = [self._bars] if self._rows else []  # without rows it would draw an empty line
        lines = Group(*bars) if self._n_slides == 1 else Group(Text(self._summary()), *bars)
        return Constrain(lines, max(1, self._bars.console.width - ECHO_WIDTH))

    def _summary(self) -> str:
        failed = self._ended["failed"]
        ended = self._ended.total()
        under_way = sum(task.percentage for task in self._bars.tasks) / 100
        work = self._ended["done"] + under_way
        line = f"slides: {ended - failed} done, {failed} failed, {self._n_slides - ended} left"
        if work < ESTIMATE_FROM or ended == self._n_slides:
            return line
        seconds = (time.monotonic() - self._start) / work * (self._n_slides - ended - under_way)
        return f"{line}; about {timedelta(seconds=round(seconds))} to go"


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        rate = f", {task.speed:,.0f} a second" if task.speed else ""
        return Text(f"{task.completed:,.0f} of {task.total:,.0f} spots{rate}", no_wrap=True)


def _name_column() -> Column:
    return Column(max_width=NAME_WIDTH, overflow="ellipsis", no_wrap=True)
