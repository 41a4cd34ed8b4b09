"""`--config FILE.toml`: the options of a long call from a file, and the file that repeats a call."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from stpredict.cli.groups import long_name
from stpredict.errors import UsageError
from stpredict.storage.files import atomic_path

#: Options that belong to one call, not to what the call makes.
NOT_KEPT = ("config", "dry_run", "help", "only", "overwrite")


def names_of(command: Any) -> dict[str, Any]:
    """A command's parameters by their names in a file: long options without dashes, arguments as they are called."""
    return {long_name(each): each for each in command.params if long_name(each) not in ("config", "help")}


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take options that the command line omits from a file. Raises UsageError for an option that the command lacks."""
    if path is None or context.resilient_parsing:
        return path
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read ({error.strerror or error}).") from error
    except ValueError as error:  # invalid TOML, or text that is not UTF-8
        raise UsageError(f"--config {path}: is no TOML ({error}).") from error
    known = names_of(context.command)
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise UsageError(f"--config {path}: {context.command.name} has no {key!r}; the nearest is {near[0]!r}.")
    context.default_map = {known[key].name: _given(path, key, value, known[key]) for key, value in content.items()}
    return path


def _given(path: Path, key: str, value: Any, parameter: Any) -> Any:
    """A value as the command line would pass it: a text, a list of texts, or a bool for an option without a value."""
    if getattr(parameter, "is_flag", False):
        if not isinstance(value, bool):
            raise UsageError(f"--config {path}: {key} is true or false.")
        return value
    values = value if isinstance(value, list) and parameter.multiple else [value]
    if not all(isinstance(each, str | int | float) and not isinstance(each, bool) for each in values):
        kind = "a text, a number, or a list of them" if parameter.multiple else "a text or a number"
        raise UsageError(f"--config {path}: {key} is {kind}.")
    texts = [str(each) for each in values]
    return texts if parameter.multiple else texts[0]


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.toml",
        callback=read_config,
        is_eager=True,
        help="Options by their long names, as `epochs = 8`; the command line wins.",
        show_default=False,
    ),
]


def write_used(context: typer.Context, path: Path) -> None:
    """Write a file for `--config` that repeats this call: each option that has a value, defaults included."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in _lines(context)), encoding="utf-8")


def _lines(context: typer.Context) -> Iterator[str]:
    yield f"# stpredict {context.command.name} --config FILE repeats this call, from the folder that it was made in"
    for key, parameter in names_of(context.command).items():
        value = context.params[parameter.name]
        if value is None or parameter.name in NOT_KEPT:
            continue
        values = [str(each) if isinstance(each, Path) else each for each in (value if _is_list(value) else [value])]
        # JSON writes texts, numbers and truth values as TOML does, except for one character.
        written = json.dumps(values if _is_list(value) else values[0], ensure_ascii=False).replace("\x7f", "\\u007f")
        yield f"{key} = {written}" if _is_text(written) else f"# {key}: a name that is not text"


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_text(written: str) -> bool:
    """Is it valid text? Python represents bytes of a file's name that are not text as halves of surrogate pairs."""
    return not any("\ud800" <= character <= "\udfff" for character in written)
