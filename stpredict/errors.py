"""What can go wrong, as exceptions. The command line turns them into one sentence and an exit code."""

from __future__ import annotations

from collections.abc import Iterable

#: The ImportError of a library that does not fit into memory says this, or the RuntimeError of a thread.
NO_MEMORY = ("failed to map segment", "can't start new thread")


def first_line(error: BaseException) -> str:
    """An exception's message, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up, in words of the loader of libraries or of Python's threads."""
    return isinstance(error, MemoryError) or any(said in str(error) for said in NO_MEMORY)


def some(names: Iterable[str], limit: int = 5) -> str:
    """The first few of `names`, and how many more there are."""
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def some_of(part: str) -> str:
    """The name of a held-out part, which joins its patients by "+": of many patients, the first few."""
    names = part.split("+")
    return "+".join(names[:5]) + f" and {len(names) - 5} more" if len(names) > 6 else part


def counted(n: int, thing: str) -> str:
    """How many of a thing there are, in words: `1 gene`, `2,345 genes`."""
    return f"{n:,} {thing}" + ("" if n == 1 else "s")


class StpredictError(Exception):
    """Base of all expected errors. `exit_code` 1: this input failed; 2: the call could not have worked.

    The caller can mend a `remediable` error: if every input has one, the call could not have worked either.
    """

    exit_code = 1
    remediable = False


class UsageError(StpredictError):
    """The call could not have worked for any input: unknown option value, gene, model or file."""

    exit_code = 2
    remediable = True


class ModelFileError(UsageError):
    """A model file or checkpoint that is missing, damaged or of another kind."""


class EngineError(UsageError):
    """An engine that was asked for and cannot run here."""


class PrecisionError(EngineError):
    """A precision that this processor does not have."""


class DatasetError(UsageError):
    """Measured data that cannot be read or do not fit together."""


class UnknownLayoutError(DatasetError):
    """A path that holds no measured data in a known layout."""


class RegionsError(StpredictError):
    """A file of regions that cannot be read."""

    remediable = True


class MaskError(StpredictError):
    """A mask that cannot be read, or does not fit its slide."""

    remediable = True


class SlideError(StpredictError):
    """One slide that cannot be processed."""


class LevelError(SlideError):
    """A region of one level of a slide that cannot be decoded. Finer levels hold the same tissue."""

    def __init__(self, message: str, level: int = 0) -> None:
        super().__init__(message, level)
        self.level = level

    def __str__(self) -> str:
        return str(self.args[0])


class SlideNotFoundError(SlideError):
    """A path where there is no slide file."""

    remediable = True


class MissingMppError(SlideError):
    """A slide that states no size of its pixels, or an implausible one."""

    remediable = True


class SpotsError(SlideError):
    """A pitch or positions of spots that do not suit one slide, but may suit another."""

    remediable = True


class NoTissueError(SlideError):
    """A slide on which no tissue was found."""


class ResultError(StpredictError):
    """A result that cannot be read, or exists with other settings."""


class ResultNotFoundError(ResultError):
    """A path where there is no result."""

    remediable = True
