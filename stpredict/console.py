"""What a command says while it runs, on stderr: lines for people, JSON for schedulers."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any

Report = Callable[[str], None]
#: Receives an event, its line for people if it has one, and its facts.
Tell = Callable[[str, str | None, dict[str, Any]], None]


def report(line: str) -> None:
    log("note", line)


def log(event: str, line: str | None = None, **facts: str | int | float) -> None:
    """Log an event: for people its line, if it has one; as JSON its facts and its line without the program's name."""
    _tell(event, line, facts)


def printable(text: str) -> str:
    """A text, which may hold names that strangers chose, without the characters that could steer a terminal."""
    return "".join(character if character.isprintable() or character in "\n\t" else "\ufffd" for character in text)


def logs_json() -> bool:
    return _tell is _as_json


def json_lines(wanted: bool) -> AbstractContextManager[None]:
    """If `wanted`, log as JSON, including the warnings of libraries."""
    return telling(_as_json) if wanted else nullcontext()


@contextmanager
def telling(tell: Tell) -> Iterator[None]:
    """Pass all events to `tell`, including the warnings of libraries."""
    global _tell
    before, show, handler = _tell, warnings.showwarning, _WarningHandler()
    logging.getLogger().addHandler(handler)
    warnings.showwarning = lambda message, kind, *_: log("warning", f"{kind.__name__}: {message}")
    _tell = tell
    try:
        yield
    finally:
        _tell = before
        warnings.showwarning = show
        logging.getLogger().removeHandler(handler)


class _WarningHandler(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        log("warning", record.getMessage())


def _for_people(_event: str, line: str | None, _facts: dict[str, Any]) -> None:
    if line is not None:
        _write(printable(line))


def _as_json(event: str, line: str | None, facts: dict[str, Any]) -> None:
    message = {} if line is None else {"message": line.removeprefix("stpredict: ").strip()}
    said = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts, **message}
    _write(json.dumps({key: _valid(value) for key, value in said.items()}))


def _write(line: str) -> None:
    sys.stderr.write(f"{line}\n")  # in one piece, as other processes may write to the same log
    sys.stderr.flush()


def _valid(value: str | int | float) -> str | int | float:
    """Replace halves of surrogate pairs, as in a file name that is not text: some programs refuse such JSON."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


_tell: Tell = _for_people
