"""Read a finer level in place of one that cannot be decoded: finer levels hold the same tissue."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from stpredict.errors import LevelError
from stpredict.slides.slide import Slide

Done = TypeVar("Done")


def on_readable_levels(slide: Slide, work: Callable[[], Done]) -> Done:
    """The result of `work`. If it meets a level that cannot be decoded, it begins again without that level.

    So all of the result comes from levels that could be decoded, wherever the damage was met.
    Raises LevelError if the finest level cannot be decoded.
    """
    while True:
        try:
            return work()
        except LevelError as error:
            if error.level == 0 or error.level in slide.unreadable:
                raise
            leave_out(slide, [error.level])


def leave_out(slide: Slide, levels: Iterable[int]) -> None:
    """Stop reading some levels of a slide, and note that."""
    for level in levels:
        if level not in slide.unreadable and 0 < level < len(slide.level_dimensions):
            slide.leave_out(level)
            slide.notes.append(f"level {level} is damaged and cannot be decoded; a finer level is read in its place")
