"""`stpredict predict`: slides in, results out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from stpredict import DEFAULT_MODEL
from stpredict.cli.options import (
    EngineOption,
    Exclude,
    Genes,
    LayoutOption,
    MinTissue,
    ModelOption,
    MppOption,
    Out,
    Overwrite,
    Pitch,
    PrecisionOption,
    SpotsFile,
    Threads,
    Upsampling,
    one_of,
    parse_exclude,
    parse_genes,
    parse_layout,
)
from stpredict.cli.program import LOG_JSON, app, command
from stpredict.errors import UsageError
from stpredict.machine import usable_cores


@command(app, "predict")
def predict(
    slides: Annotated[
        list[str],
        typer.Argument(
            help="Slides, folders of slides, patterns, or @FILE.csv: a list with columns slide, mpp, mask, out.",
            show_default=False,
        ),
    ],
    genes: Genes = None,
    model: ModelOption = DEFAULT_MODEL,
    out: Out = Path(),
    pitch: Pitch = None,
    layout: LayoutOption = "square",
    spots: SpotsFile = None,
    min_tissue: MinTissue = 0.25,
    mask: Annotated[
        Path | None,
        typer.Option(help="Predict only within: GeoJSON areas in level-0 pixels, or an image that is black outside."),
    ] = None,
    mask_origin: Annotated[
        str,
        typer.Option(help="Where the mask's coordinates begin: slide; or bounds, if QuPath crops the slide to them."),
    ] = "slide",
    mpp: MppOption = None,
    allow_upsampling: Upsampling = False,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or several GPUs: cuda:0,cuda:1 or cuda:all.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=0, max=1024, help="Spots per batch; 0 lets the engine choose.")] = 0,
    threads: Threads = None,
    relative: Annotated[
        bool,
        typer.Option(
            "--relative",
            help="Add a layer of each gene relative to its own distribution, in training or on the slide: genes of one "
            "spot cannot be ranked by expression.",
        ),
    ] = False,
    tta: Annotated[
        bool,
        typer.Option(
            "--tta",
            help="Predict the mean of each patch's eight flips and rotations, and in a layer their spread: a stability "
            "measure, not an uncertainty. Takes eight times as long.",
        ),
    ] = False,
    render: Annotated[bool, typer.Option("--render", help="Also draw heatmaps and overlays.")] = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing; say how many spots, how much time and disk it would take.")
    ] = False,
    anonymous: Annotated[
        Path | None,
        typer.Option(
            metavar="TABLE.csv",
            help="Call slides by salted hashes in all output; this table, readable by you alone, says which is which.",
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Let the workers of a dask scheduler predict, for example tcp://host:8786."
        ),
    ] = None,
    exclude: Exclude = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="End with exit code 1 if a result is not to be trusted; it is written all the same."
        ),
    ] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say where each slide's time went.")] = False,
    log_json: Annotated[  # noqa: ARG001 (`command` reads it)
        bool, typer.Option(LOG_JSON, help="Log JSON, an object per line, for schedulers.")
    ] = False,
) -> None:
    """Predict expression on slides: one SLIDE.h5ad each, which anndata and scanpy open.

    Example: stpredict predict slide.svs --genes GNAS,DDX5
    """
    from stpredict.commands.predict import plan_command, predict_command
    from stpredict.engines.engine import EngineRequest
    from stpredict.prediction.request import Request

    if out.suffix in (".h5ad", ".h5") and not out.is_dir():
        raise UsageError(
            f"-o {out}: names a folder, whose results are called after their slides; leave {out.suffix} out."
        )
    request = Request(
        genes=parse_genes(genes), pitch_um=pitch, layout=parse_layout(layout), spots_file=spots, min_tissue=min_tissue,
        mask=mask, mask_origin=one_of("--mask-origin", mask_origin, ("slide", "bounds")), mpp=mpp,
        allow_upsampling=allow_upsampling, relative=relative, tta=tta,
        overwrite_before=time.time() if overwrite else 0.0,
        engine=EngineRequest(engine, precision, device, batch_size, threads or (0 if cluster else usable_cores())),
    )  # fmt: skip
    if cluster and ("," in device or device == "cuda:all"):
        raise UsageError(f"--device {device}: one worker has one GPU; start a worker for each.")
    if cluster == "":
        raise UsageError("--cluster names no address.")
    if dry_run and cluster:
        raise UsageError("--dry-run measures this machine; leave --cluster out.")
    if dry_run:
        raise typer.Exit(plan_command(slides, model, request, out, anonymous, parse_exclude(exclude)))
    raise typer.Exit(
        predict_command(
            slides, model, request, out, render, verbose, anonymous, cluster, parse_exclude(exclude), strict
        )
    )
