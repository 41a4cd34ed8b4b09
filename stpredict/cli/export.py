"""`stpredict export`: results in the formats of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stpredict.cli.options import Exclude, Out, Overwrite, one_of, parse_exclude, parse_genes
from stpredict.cli.program import app, command


@command(app, "export")
def export(
    results: Annotated[list[Path], typer.Argument(help="Results of predict, or folders of them.", show_default=False)],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="spatialdata: a SpatialData store, SLIDE.zarr; or seurat: SLIDE.seurat, which Seurat's Read10X reads.",
            show_default=False,
        ),
    ],
    genes: Annotated[
        list[str] | None, typer.Option("--genes", help="Genes, separated by commas.", show_default="all")
    ] = None,
    out: Out = Path(),
    exclude: Exclude = None,
    overwrite: Overwrite = False,
) -> None:
    """Write results in the formats of other programs; scanpy and squidpy open a SLIDE.h5ad as it is.

    Examples: stpredict export slide.h5ad --to spatialdata; stpredict export results/ --to seurat -o exported
    """
    from stpredict.commands.export import FORMATS, ExportRequest, export_command

    request = ExportRequest(one_of("--to", to, FORMATS), parse_genes(genes), overwrite)
    raise typer.Exit(export_command(results, request, out, parse_exclude(exclude)))
