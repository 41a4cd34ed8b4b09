"""Show the progress of slides: as a table on a terminal, elsewhere by a line now and then."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from stpredict.console import log, logs_json

LINE_EVERY_S = 10.0


class Watch(Protocol):
    """Follows the progress of each slide."""

    def progress(self, slide: str, done: int, total: int) -> None:
        """`done` of a slide's spots, of `total`, are done."""

    def ended(self, slide: str, status: str, /) -> None:
        """The slide is done, failed or left to another call."""


def watching(n_slides: int) -> AbstractContextManager[Watch]:
    """A view of the slides' progress: a table on a terminal, a line now and then elsewhere."""
    if logs_json() or not sys.stderr.isatty():
        return nullcontext(_Lines(n_slides))
    from stpredict.batch.live_table import live_table

    return live_table(n_slides)


class _Lines:
    def __init__(self, n_slides: int) -> None:
        self._last: dict[str, float] = {}
        self._name_slides = n_slides > 1

    def progress(self, slide: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last.setdefault(slide, now) < LINE_EVERY_S or done >= total:
            return
        self._last[slide] = now
        name = f"{Path(slide).name}: " if self._name_slides else ""
        log("progress", f"  {name}{done} of {total} spots", slide=slide, done=done, spots=total)

    def ended(self, slide: str, _status: str, /) -> None:
        self._last.pop(slide, None)
