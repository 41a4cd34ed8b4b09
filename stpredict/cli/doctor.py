"""`stpredict doctor`: what this machine can do."""

from __future__ import annotations

from stpredict.cli.options import JsonOption
from stpredict.cli.program import app, command


@command(app, "doctor")
def doctor(as_json: JsonOption = False) -> None:
    """Say what this machine can do, and why it cannot do the rest."""
    from stpredict.commands.doctor import doctor_command

    doctor_command(as_json)
