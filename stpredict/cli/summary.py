"""`stpredict summary`: a cohort as one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stpredict.cli.options import Exclude, JsonOption, one_of, parse_exclude, parse_genes
from stpredict.cli.program import app, command
from stpredict.errors import UsageError


@command(app, "summary")
def summary(
    results: Annotated[
        list[Path], typer.Argument(help="Results of predict, folders of them, or patterns.", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Option("-o", "--out", help="CSV file to write. Without it, the table is printed.", show_default=False),
    ] = Path("-"),
    genes: Annotated[
        list[str] | None, typer.Option("--genes", help="Genes, separated by commas.", show_default="all")
    ] = None,
    regions: Annotated[
        Path | None,
        typer.Option(
            help="GeoJSON of areas, level-0 pixels, as QuPath exports annotations: a row for each name or class. "
            "For several slides, a folder with a SLIDE.geojson each."
        ),
    ] = None,
    origin: Annotated[
        str,
        typer.Option(help="Where the regions' coordinates begin: slide; or bounds, if QuPath crops the slide to them."),
    ] = "slide",
    exclude: Exclude = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Summarise a cohort as CSV: per slide, and per region, each gene's mean and percentiles.

    Examples: stpredict summary results/ -o cohort.csv; stpredict summary slide.h5ad --regions slide.geojson
    """
    from stpredict.commands.summary import summary_command
    from stpredict.result.frame import ORIGINS

    chosen = one_of("--origin", origin, ORIGINS)
    if chosen != ORIGINS[0] and regions is None:
        raise UsageError("--origin: says where the coordinates of --regions begin; give --regions, too.")
    if as_json and str(out) != "-":
        raise UsageError("--json: prints the table; leave --out, which names a CSV file, out.")
    raise typer.Exit(
        summary_command(results, regions, chosen, out, overwrite, parse_exclude(exclude), parse_genes(genes), as_json)
    )
