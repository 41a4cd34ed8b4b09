"""The command line as `python -m stpredict`."""

from __future__ import annotations

from stpredict.cli import app

app()
