"""Write docs/reference-commands.md from the parsers of the program: `python docs/reference.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_name("reference-commands.md")
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from stpredict.cli import app  # noqa: E402
from stpredict.cli.groups import in_groups  # noqa: E402

INTRO = """# Commands

Every command with all its options, as `stpredict COMMAND --help` tells them. `python docs/reference.py` writes this
page from the program itself, and a test compares them.

Shell completion: `stpredict --install-completion` installs it for the shell that you type this in (bash, zsh, fish,
PowerShell); `--show-completion` prints it. Open a new terminal afterwards.

[Exit codes and environment variables](reference-environment.md); [what `--json` prints](reference-json.md).
"""


def page() -> str:
    """The page as Markdown."""
    program = typer.main.get_command(app)
    context = typer.Context(program, info_name="stpredict")
    commands = list(walk(program, context))
    listed = "\n".join(f"- [`{name}`](#{name.replace(' ', '-')}): {summary(command)}" for name, command, _ in commands)
    sections = ("\n".join(section(name, command, inner)) for name, command, inner in commands)
    return "\n".join([INTRO, listed, "", *sections])


def walk(group: Any, context: typer.Context) -> Iterator[tuple[str, Any, typer.Context]]:
    """The commands of a group and those in its groups, each by what one types."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        inner = typer.Context(command, info_name=name, parent=context)
        if hasattr(command, "list_commands"):
            yield from walk(command, inner)
        else:
            yield inner.command_path, command, inner


def summary(command: Any) -> str:
    """The first paragraph of a command's help, as one line."""
    return " ".join(command.help.split("\n\n")[0].split())


def section(name: str, command: Any, context: typer.Context) -> Iterator[str]:
    """What one command does, then a table for each group of its options."""
    yield f"## {name}\n"
    yield f"{command.help.strip()}\n"
    pieces = [piece.replace("{", "").replace("}", "") for piece in command.collect_usage_pieces(context)]
    yield f"```\n{name} {' '.join(pieces)}\n```\n"
    for title, parameters in in_groups(command.name, command.get_params(context)):
        records = [record for parameter in parameters if (record := parameter.get_help_record(context))]
        if title == "Other options":
            records = [record for record in records if record[0] != "--help"]
        if records and records != [("--help", "Show this message and exit.")]:
            yield f"| {title} | |\n|---|---|"
            yield from (f"| `{cell(term)}` | {cell(text).replace('<', '&lt;')} |" for term, text in records)
            yield ""


def cell(text: str) -> str:
    """A text as one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
