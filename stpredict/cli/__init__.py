"""The command line: options and help texts, a file per command, each of which calls one function of `commands`.

What commands do stands there, not here. Heavy imports wait until a command runs, so that help answers at once.
"""

from __future__ import annotations

# In the order in which help lists them.
# isort: off
from stpredict.cli import predict, render, tile, train, evaluate, summary, models, clean, doctor
from stpredict.cli.program import app

__all__ = ["app", "clean", "doctor", "evaluate", "models", "predict", "render", "summary", "tile", "train"]
