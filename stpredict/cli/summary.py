"""`stpredict summary`: a cohort as one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stpredict.cli.options import Exclude, one_of, parse_exclude
from stpredict.cli.program import app, command
from stpredict.errors import UsageError


@command(app, "summary")
def summary(
    results: Annotated[
        list[Path], typer.Argument(help="Results of predict, folders of them, or patterns.", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", help="CSV file to write; without it the table itself is printed.", show_default=False
        ),
    ] = Path("-"),
    regions: Annotated[
        Path | None,
        typer.Option(
            help="GeoJSON of areas, level-0 pixels, as QuPath exports annotations: a row for each name or class. "
            "For several slides, a folder with a SLIDE.geojson each."
        ),
    ] = None,
    origin: Annotated[
        str, typer.Option(help="Where the regions' coordinates begin: slide, or bounds as QuPath crops slides.")
    ] = "slide",
    exclude: Exclude = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
) -> None:
    """Summarise a cohort as CSV: per slide, and per region, each gene's mean and percentiles.

    Examples: stpredict summary results/ -o cohort.csv; stpredict summary slide.h5ad --regions slide.geojson
    """
    from stpredict.commands.summary import summary_command
    from stpredict.result.frame import ORIGINS

    chosen = one_of("--origin", origin, ORIGINS)
    if chosen != ORIGINS[0] and regions is None:
        raise UsageError("--origin: says where the coordinates of --regions begin, which are not given.")
    raise typer.Exit(summary_command(results, regions, chosen, out, overwrite, parse_exclude(exclude)))
