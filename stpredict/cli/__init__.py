"""The command line: options and help texts. Each command has a file here, which calls one function of `commands`.

The work itself is done there. Heavy imports wait until a command runs, so that help answers at once.
"""

from __future__ import annotations

# In the order in which help lists them.
# isort: off
from stpredict.cli import (
    predict,
    render,
    export,
    tile,
    train,
    evaluate,
    compare,
    summary,
    models,
    known_models,
    genes,
    clean,
    doctor,
)
from stpredict.cli.program import app

__all__ = [
    "app",
    "clean",
    "compare",
    "doctor",
    "evaluate",
    "export",
    "genes",
    "known_models",
    "models",
    "predict",
    "render",
    "summary",
    "tile",
    "train",
]
