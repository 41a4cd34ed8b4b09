from __future__ import annotations

from stpredict.cli import app

app()
