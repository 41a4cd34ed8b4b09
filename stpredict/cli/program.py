"""The program, and how the errors of its commands reach the user: one line on stderr and an exit code."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from stpredict import __version__
from stpredict.cli.groups import in_groups
from stpredict.console import json_lines, log, logs_json
from stpredict.errors import StpredictError, UsageError, first_line, lacks_memory
from stpredict.machine import demand_memory, demand_working_folder
from stpredict.search_path import leave_out_working_folder
from stpredict.streams import demand_written, open_streams, use_utf8

INTERRUPTED, TERMINATED = 130, 143
#: `timeout` signals a process twice within this time: by its number, and with its group.
SAME_SIGNAL_S = 1.0
LOG_JSON = "--log-json"


class Program(typer.Typer):
    """The commands as a program. It works in whatever state its process starts."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        use_utf8()
        leave_out_working_folder()
        open_streams()
        return super().__call__(*args, **kwargs)


class Commands(TyperGroup):
    """The commands. For a slide that is named without a command, the error says which command to use."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if Path(args[0]).suffix and args[0] not in self.commands:
            ctx.fail(f"{args[0]}: no command; to predict a slide, run `stpredict predict {args[0]}`.")
        return super().resolve_command(ctx, args)


app = Program(
    cls=Commands,
    help="Predict spatial gene expression from H&E whole-slide images. Research use only.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
#: Printed by `stpredict` alone: the commands that a newcomer types next.
FIRST_STEPS = """\
Predict expression from H&E slides. Type next:
  stpredict predict slide.svs --genes GNAS,DDX5    predict two genes on a slide
  stpredict render slide.h5ad                      draw what came of it
  stpredict --help                                 see all commands; stpredict COMMAND --help: the options of one"""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which schedulers send. The command releases everything it holds, as after Ctrl-C."""


class Command(TyperCommand):
    """A command that lists its options in groups, and reports wrong ones as JSON if that is asked for."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options of each group as plain text: drawing boxes takes longer than all the rest."""
        for title, parameters in in_groups(self.name or "", self.get_params(ctx)):
            if records := [record for parameter in parameters if (record := parameter.get_help_record(ctx))]:
                with formatter.section(title):
                    formatter.write_dl(records)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        as_json = LOG_JSON in args
        try:
            return super().parse_args(ctx, args)
        except StpredictError as error:  # raised while an option is read, such as --config
            with json_lines(as_json):
                _fail(str(error), error.exit_code)
        except Exception as error:
            if not as_json or not hasattr(error, "format_message"):
                raise
            with json_lines(True):
                _fail(error.format_message(), UsageError.exit_code)


def command(group: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command whose errors become one line on stderr and an exit code."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            with json_lines(kwargs.get("log_json", False)):
                _run(function, *args, **kwargs)

        return group.command(name, cls=Command, no_args_is_help=name not in ("clean", "doctor", "list"))(run)

    return decorate


def _run(function: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    try:
        with _heeding_sigterm():
            demand_memory()
            demand_working_folder()
            code = _exit_code(function, *args, **kwargs)
        if not code:
            demand_written(sys.stdout)
        raise typer.Exit(code)
    except typer.Exit:
        raise
    except StpredictError as error:
        _fail(str(error), UsageError.exit_code if error.remediable else error.exit_code)
    except Terminated:
        _fail(f"terminated; {_how_to_go_on(kwargs)}", TERMINATED)
    except KeyboardInterrupt:
        _fail(f"interrupted; {_how_to_go_on(kwargs)}", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except OSError as error:
        _fail(f"{error.strerror or error}{f': {Path(error.filename).name}' if error.filename else ''}.", 1)
    except Exception as error:  # noqa: BLE001 (reported in one line)
        if lacks_memory(error):
            _fail(f"not enough memory ({first_line(error)}).", 1)
        _fail(f"unexpected {type(error).__name__}: {first_line(error)} (stpredict --debug says where).", 1)


def _exit_code(function: Callable[..., None], *args: Any, **kwargs: Any) -> int:
    try:
        function(*args, **kwargs)
    except typer.Exit as done:
        return done.exit_code
    return 0


def _how_to_go_on(options: Mapping[str, Any]) -> str:
    without = " without --overwrite" if options.get("overwrite") else ""
    return f"the same command{without} goes on where it stopped."


@contextmanager
def _heeding_sigterm() -> Iterator[None]:
    """Raise Terminated for SIGTERM in this context, unless the process ignores SIGTERM or has another handler."""
    told = 0.0

    def terminate(*_: object) -> None:
        nonlocal told
        again, told = time.monotonic() - told < SAME_SIGNAL_S, time.monotonic()
        if not again:
            raise Terminated

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        if ours and not told:  # else the second signal would end this process before it says why
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _fail(message: str, code: int) -> NoReturn:
    debug = bool(os.environ.get("STPREDICT_DEBUG"))
    if debug and not logs_json():
        raise
    where = {"traceback": traceback.format_exc()} if debug else {}
    log("error", f"stpredict: {message}", exit_code=code, **where)
    raise typer.Exit(code) from None


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    if debug:
        os.environ["STPREDICT_DEBUG"] = "1"
    if version:
        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(FIRST_STEPS)
