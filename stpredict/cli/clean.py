"""`stpredict clean`: what killed calls left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stpredict.cli.program import app, command


@command(app, "clean")
def clean(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders of results, searched throughout.", show_default="here")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove what is listed.")] = False,
) -> None:
    """List what killed calls left in folders of results; remove it on request.

    Where no folder is named, also all compiled networks that are kept, which are those of all calls.
    A temporary file is left over once nothing was written to it for an hour.

    Parts of interrupted predictions are among it: the call that made them goes on with them as long as they are there.
    What a running prediction is at is not touched.
    """
    from stpredict.commands.clean import clean_command

    raise typer.Exit(clean_command(folders or [], remove))
