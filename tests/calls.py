"""How tests call the program: in this process, or as one of its own."""

from __future__ import annotations

import sys

from conftest import NO_AVX2
from typer.testing import CliRunner, Result

from stpredict.cli import app

PROGRAM = [sys.executable, "-m", "stpredict"]
#: What a process predicts with for the least: once it is compiled, which is kept for the run, torch is not imported.
LIGHT = ("--engine", "eager" if NO_AVX2 else "openvino", "--precision", "fp32", "--threads", "1")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
