"""`stpredict doctor`: what this machine can do."""

from __future__ import annotations

from stpredict.cli.program import app, command


@command(app, "doctor")
def doctor() -> None:
    """Say what this machine can do, and why not what it can't."""
    from stpredict.commands.doctor import examine

    for line in examine():
        print(line, flush=True)
