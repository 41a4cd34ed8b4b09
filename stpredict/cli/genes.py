"""`stpredict genes`: which models predict a gene."""

from __future__ import annotations

from typing import Annotated

import typer

from stpredict.cli.options import JsonOption
from stpredict.cli.program import app, command


@command(app, "genes")
def genes(
    names: Annotated[
        list[str],
        typer.Argument(metavar="SYMBOL|ENSEMBL...", help="Genes, by symbol or Ensembl id.", show_default=False),
    ],
    as_json: JsonOption = False,
) -> None:
    """Say which installed models predict a gene, under which name, and how reliably; exit code 1 if none predicts one.

    Example: stpredict genes GNAS ERBB2
    """
    from stpredict.commands.catalogue import genes_command

    raise typer.Exit(genes_command(names, as_json))
