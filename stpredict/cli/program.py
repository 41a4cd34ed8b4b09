"""The program, and how the errors of its commands reach the user: one line on stderr and an exit code."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from stpredict import __version__
from stpredict.console import report
from stpredict.errors import StpredictError

INTERRUPTED = 130


app = typer.Typer(
    help="Predict spatial gene expression from H&E whole-slide images. Research use only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)


def command(group: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command whose errors become one line on stderr and an exit code."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except StpredictError as error:
                _fail(str(error), error.exit_code)
            except KeyboardInterrupt:
                _fail("interrupted; the same command goes on where it stopped.", INTERRUPTED)
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(1) from None
            except OSError as error:
                _fail(f"{error.strerror or error}{f': {Path(error.filename).name}' if error.filename else ''}.", 1)

        return group.command(name, no_args_is_help=name not in ("doctor", "list"))(run)

    return decorate


def _fail(message: str, code: int) -> None:
    if os.environ.get("STPREDICT_DEBUG"):
        raise
    report(f"stpredict: {message}")
    raise typer.Exit(code) from None


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    if debug:
        os.environ["STPREDICT_DEBUG"] = "1"
    if version:
        print(__version__)
        raise typer.Exit
