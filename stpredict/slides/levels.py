"""What to do where a level of a slide cannot be decoded: finer levels hold the same tissue, and are read instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from stpredict.errors import LevelError
from stpredict.slides.slide import Slide

Done = TypeVar("Done")


def on_readable_levels(slide: Slide, work: Callable[[], Done]) -> Done:
    """What `work` makes of the slide, begun anew where it meets a level that cannot be decoded, which is then left out.

    All of it is of levels that can be decoded as far as it goes, so that it does not matter where damage was met.
    Raises LevelError where the finest level cannot be decoded.
    """
    while True:
        try:
            return work()
        except LevelError as error:
            if error.level == 0 or error.level in slide.unreadable:
                raise
            leave_out(slide, [error.level])


def leave_out(slide: Slide, levels: Iterable[int]) -> None:
    """Read some levels of a slide no more, and note it."""
    for level in levels:
        if level not in slide.unreadable and 0 < level < len(slide.level_dimensions):
            slide.leave_out(level)
            slide.notes.append(f"level {level} is damaged and cannot be decoded; a finer level is read in its place")
