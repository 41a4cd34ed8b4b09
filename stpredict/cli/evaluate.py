"""`stpredict evaluate`: how good a model or a result is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stpredict.cli.options import (
    EngineOption,
    JsonOption,
    Orthologs,
    Out,
    Overwrite,
    PrecisionOption,
    SkipBroken,
    Species,
    Threads,
    Where,
    refuse,
    refuse_with_protocol,
)
from stpredict.cli.program import app, command
from stpredict.errors import UsageError
from stpredict.evaluation import MIN_DEPTH
from stpredict.machine import usable_cores


@command(app, "evaluate")
def evaluate(
    what: Annotated[
        str, typer.Argument(metavar="MODEL|RESULT", help="A model, or a result of predict.", show_default=False)
    ],
    dataset: Annotated[
        Path, typer.Argument(help="Folder of measured sections, or a .tiles.h5 file.", show_default=False)
    ],
    out: Out = Path(),
    min_depth: Annotated[int, typer.Option(min=1, help="Leave out spots with fewer counts.")] = MIN_DEPTH,
    allow_patient_leak: Annotated[
        bool, typer.Option("--allow-patient-leak", help="Also score patients that the model was trained on.")
    ] = False,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="hest: score the model's features as HEST-Bench does, in a table of its own.", show_default="none"
        ),
    ] = None,
    where: Where = None,
    species: Species = None,
    orthologs: Orthologs = None,
    skip_broken: SkipBroken = False,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: JsonOption = False,
) -> None:
    """Score a model or a result on measured sections, always beside baselines, most of which never look at the image.

    Example: stpredict evaluate m2ort-small-her2st visium/
    """
    from stpredict.commands.evaluate import evaluate_command
    from stpredict.engines.engine import EngineRequest

    refuse_with_protocol(protocol, {
        "--engine": engine != "auto", "--precision": precision != "auto", "--device": device != "auto",
        "--min-depth": min_depth != MIN_DEPTH,
    })  # fmt: skip
    refuse(str(what).endswith(".h5ad"), "a result is predicted already", {
        "--engine": engine != "auto", "--precision": precision != "auto", "--device": device != "auto",
    })  # fmt: skip
    if "," in device or device == "cuda:all":
        raise UsageError(f"--device {device}: evaluate uses one device; name it.")
    request = EngineRequest(engine, precision, device, threads=threads or usable_cores())
    left_out = evaluate_command(
        what, dataset, out, request, min_depth, allow_patient_leak, protocol, overwrite, as_json,
        where=where, species=species, orthologs=orthologs, skip_broken=skip_broken,
    )  # fmt: skip
    raise typer.Exit(int(left_out))
