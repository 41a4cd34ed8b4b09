"""`stpredict clean`: what killed calls left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stpredict.cli.options import JsonOption
from stpredict.cli.program import app, command


@command(app, "clean")
def clean(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders of results, searched throughout.", show_default="here")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove what is listed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List what killed calls left in folders of results, and remove it on request.

    Without a folder, this also lists the compiled networks in the cache, which all calls share.
    A temporary file counts as left over once nothing was written to it for an hour.

    Parts of interrupted predictions are listed, too. While they exist, the same call goes on where it stopped. Nothing
    that a running prediction uses is touched.
    """
    from stpredict.commands.clean import clean_command

    raise typer.Exit(clean_command(folders or [], remove, as_json))
