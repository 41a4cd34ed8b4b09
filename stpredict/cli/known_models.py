"""`stpredict models import-known`: bring in a published model by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stpredict.cli.models import models_app
from stpredict.cli.options import Overwrite
from stpredict.cli.program import command


@command(models_app, "import-known")
def models_import_known(
    name: Annotated[
        str, typer.Argument(help="path2space, deepspot-m, stpath, deepspot or histoprism.", show_default=False)
    ],
    head: Annotated[
        Path,
        typer.Option(
            help="The file of its weights, as published; Path2Space's archive, or the folder it unpacks to.",
            show_default=False,
        ),
    ],
    encoder: Annotated[
        Path | None,
        typer.Option(
            help="The file of its encoder's weights, where they are not in the same file. It stays beside the model.",
            show_default=False,
        ),
    ] = None,
    genes: Annotated[
        Path | None,
        typer.Option(
            help="Its genes, as published: genes.txt, symbol2ensembl.json, stpath_genes.yaml ...",
            show_default="tokens.csv beside DeepSpot-M's weights",
        ),
    ] = None,
    organ: Annotated[
        str | None,
        typer.Option(
            help="What slides are of: an organ of STPath's, a cancer of HistoPrism's.", show_default="not told"
        ),
    ] = None,
    technology: Annotated[
        str | None, typer.Option(help="Of STPath: Visium, Xenium ...", show_default="not told")
    ] = None,
    gene_source: Annotated[
        str | None, typer.Option(help="Of DeepSpot-M: what it knows genes by.", show_default="scgpt")
    ] = None,
    mpp: Annotated[
        float | None, typer.Option(help="Micrometres per pixel of its patches.", show_default="as published")
    ] = None,
    tile_um: Annotated[
        float | None, typer.Option(help="Width of its patches, um.", show_default="as published")
    ] = None,
    pitch: Annotated[
        float | None,
        typer.Option(help="Distance between the spots it was trained on, um.", show_default="as published"),
    ] = None,
    encoder_mean: Annotated[
        str | None,
        typer.Option(help="Mean of RGB in 0 to 1 that the encoder was trained with.", show_default="as published"),
    ] = None,
    encoder_std: Annotated[str | None, typer.Option(help="Their deviation.", show_default="as published")] = None,
    encoder_licence: Annotated[
        str | None, typer.Option(help="The encoder's licence, for the card.", show_default="not stated")
    ] = None,
    tissue: Annotated[
        str | None, typer.Option(help="Tissue that this one was trained on, for the card.", show_default="as published")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="The model file to write.", show_default="NAME.safetensors"),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Bring in a published model that is known by name, from files that you downloaded.

    Nothing in them is executed, pickles included. `stpredict models list --known` says where each one is published.

    Example: stpredict models import-known path2space --encoder ctranspath.pth --head mlp_ensemble.tar.gz
    --genes genes.txt
    """
    from stpredict.commands.known_models import import_known_command
    from stpredict.model.import_known import KnownRequest  # slow to import
    from stpredict.model.known_models import KnownFiles

    import_known_command(
        KnownRequest(
            name, KnownFiles(head, genes, organ, technology, gene_source), out or Path(f"{name}.safetensors"), encoder,
            mpp, tile_um, pitch, encoder_mean, encoder_std, encoder_licence, tissue,
        ),
        overwrite,
    )  # fmt: skip
