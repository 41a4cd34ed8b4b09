from __future__ import annotations

import pytest
import typer

from stpredict.cli.program import command
from stpredict.console import printable, report
from stpredict.errors import UsageError

ODD, TAMED = "a\x1b]0;b\x07\r\x9bc\u202e", "a\ufffd]0;b\ufffd\ufffd\ufffdc\ufffd"


def test_names_cannot_steer_the_terminal(capsys):
    assert printable("Ä µm\tx\ny") == "Ä µm\tx\ny"
    report(ODD)
    assert capsys.readouterr().err == f"{TAMED}\n"

    @command(typer.Typer(), "fails")
    def fails() -> None:
        raise UsageError(ODD)

    with pytest.raises(typer.Exit):
        fails()
    assert capsys.readouterr().err == f"stpredict: {TAMED}\n"
