"""`stpredict tile`: the grid of a slide, the patches of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stpredict import DEFAULT_MODEL
from stpredict.cli.options import (
    PATCH_FORMATS,
    BinUm,
    LayoutOption,
    MinTissue,
    ModelOption,
    MppOption,
    Orthologs,
    Out,
    Overwrite,
    PatchFormat,
    Pitch,
    SkipBrokenSlides,
    Species,
    SpotsFile,
    Threads,
    Tissue,
    Upsampling,
    Where,
    demand_positive,
    one_of,
    parse_layout,
    refuse,
)
from stpredict.cli.program import app, command
from stpredict.errors import UsageError
from stpredict.machine import usable_cores
from stpredict.storage.files import is_folder


@command(app, "tile")
def tile(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="SLIDE|DATASET...", help="Slides, or folders of measured sections.", show_default=False),
    ],
    model: ModelOption = DEFAULT_MODEL,
    out: Out = Path(),
    pitch: Pitch = None,
    layout: LayoutOption = "square",
    spots: SpotsFile = None,
    min_tissue: MinTissue = 0.25,
    mpp: MppOption = None,
    allow_upsampling: Upsampling = False,
    patches: Annotated[bool, typer.Option("--patches", help="Also write the patches of a slide's grid.")] = False,
    unlabelled: Annotated[
        int, typer.Option(min=0, help="How many further patches of a data set to cut, at random places of its tissue.")
    ] = 0,
    tissue: Tissue = None,
    bin_um: BinUm = None,
    where: Where = None,
    species: Species = None,
    orthologs: Orthologs = None,
    skip_broken: SkipBrokenSlides = False,
    patch_format: PatchFormat = "raw",
    overwrite: Overwrite = False,
    threads: Threads = None,
) -> None:
    """Show the grid that a prediction would use, or write a data set's patches and counts for training.

    Examples: stpredict tile slide.svs; stpredict tile her2st/ -o tiles
    """
    from stpredict.commands.tile import tile_command
    from stpredict.engines.engine import EngineRequest
    from stpredict.prediction.request import Request

    refuse(any(is_folder(path) for path in inputs), "a data set's spots are where they were measured", {
        "--pitch": pitch is not None, "--layout": layout != "square", "--spots": spots is not None,
        "--min-tissue": min_tissue != Request.min_tissue, "--allow-upsampling": allow_upsampling, "--patches": patches,
    })  # fmt: skip
    refuse(not all(is_folder(path) for path in inputs), "a slide has no measured spots", {
        "--unlabelled": unlabelled > 0, "--tissue": bool(tissue), "--bin-um": bin_um is not None,
        "--where": where is not None, "--species": species is not None, "--orthologs": orthologs is not None,
        "--skip-broken": skip_broken, "--patch-format": patch_format != "raw",
    })  # fmt: skip
    if tissue and not unlabelled:
        raise UsageError("--tissue: gives unlabelled patches; say by --unlabelled how many to cut of all slides.")
    demand_positive({"--bin-um": bin_um})
    request = Request(
        pitch_um=pitch, layout=parse_layout(layout), spots_file=spots, min_tissue=min_tissue, mpp=mpp,
        allow_upsampling=allow_upsampling, engine=EngineRequest(threads=threads or usable_cores()),
    )  # fmt: skip
    raise typer.Exit(tile_command(
        inputs, model, request, out, patches, unlabelled, bin_um, overwrite,
        one_of("--patch-format", patch_format, PATCH_FORMATS),
        tissue or (), where=where, species=species, orthologs=orthologs, skip_broken=skip_broken,
    ))  # fmt: skip
