"""How tests call the program: in this process, or as one of its own."""

from __future__ import annotations

import sys

from typer.testing import CliRunner, Result

from stpredict.cli import app

PROGRAM = [sys.executable, "-m", "stpredict"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
