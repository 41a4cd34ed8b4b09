"""`stpredict compare`: systems beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stpredict.cli.config import ConfigFile, write_used
from stpredict.cli.options import (
    PATCH_FORMATS,
    BinUm,
    Orthologs,
    PatchFormat,
    SkipBroken,
    Species,
    Threads,
    Where,
    demand_positive,
    one_of,
    refuse,
    refuse_with_protocol,
    split,
)
from stpredict.cli.program import app, command
from stpredict.cli.training_options import (
    BALANCES,
    AllowPatientLeak,
    BalanceOption,
    BatchSize,
    BeginAnew,
    Dataset,
    Device,
    GenesFile,
    HoldOut,
    LearningRate,
    PanelRule,
    PanelSize,
    TeachPatches,
)
from stpredict.errors import UsageError
from stpredict.evaluation import MIN_DEPTH
from stpredict.training.defaults import (
    BATCH_SIZE,
    EPOCHS,
    FOLDS,
    LEARNING_RATE,
    OBJECTIVE,
    PANEL_RULE,
    TEACH_PATCHES,
    UNLABELLED,
)


@command(app, "compare")
def compare(
    context: typer.Context,
    dataset: Dataset,
    arch: Annotated[
        list[str],
        typer.Option(help="The systems, those of `train --arch`, separated by commas.", show_default=False),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="PATH", help="Folder for the comparison.", show_default=False)
    ],
    seeds: Annotated[
        int, typer.Option(min=1, help="How many times to train each system, with another random seed each time.")
    ] = 3,
    folds: Annotated[
        str,
        typer.Option(
            help="What to hold out in turn: each patient, each section, none, or a number of parts by patient."
        ),
    ] = FOLDS,
    hold_out: HoldOut = None,
    allow_patient_leak: AllowPatientLeak = False,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Split, choose genes, label and score as a paper does, and print the paper's numbers and what its "
            "test leaks: m2ort or triplex.",
            show_default="none",
        ),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            help="How to train: ours; published, each system as its own paper does; or m2ort-paper, all alike."
        ),
    ] = "ours",
    objective: Annotated[
        str, typer.Option(help="What networks learn: residuals, nb, poisson, mse or standardised-mse.")
    ] = OBJECTIVE,
    genes_file: GenesFile = None,
    panel: PanelRule = None,
    panel_size: PanelSize = None,
    min_depth: Annotated[
        int | None,
        typer.Option(
            min=1, help="Leave out held-out spots with fewer counts.", show_default=f"{MIN_DEPTH}, or 1 with a protocol"
        ),
    ] = None,
    encoder_weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ARCH=FILE",
            help="Weights that the trunk of a system begins with, or of HIPT's lower network, ViT256; can be repeated.",
            show_default="taught colour and texture of unlabelled tissue",
        ),
    ] = None,
    region_weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ARCH=FILE",
            help="Weights of HIPT's upper network, ViT4K, for hipt and istar; can be repeated.",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[
        int, typer.Option(min=1, help="Maximum number of epochs on measured spots; validation chooses the best.")
    ] = EPOCHS,
    batch_size: BatchSize = BATCH_SIZE,
    balance: BalanceOption = None,
    learning_rate: LearningRate = LEARNING_RATE,
    unlabelled: Annotated[int, typer.Option(min=0, help="Unlabelled patches of tissue to learn from.")] = UNLABELLED,
    teach_patches: TeachPatches = TEACH_PATCHES,
    mpp: Annotated[
        float | None, typer.Option(help="Micrometres per pixel of the patches.", show_default="the sections'")
    ] = None,
    bin_um: BinUm = None,
    where: Where = None,
    species: Species = None,
    orthologs: Orthologs = None,
    skip_broken: SkipBroken = False,
    patch_format: PatchFormat = "raw",
    device: Device = "auto",
    threads: Threads = None,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Let the workers of a dask scheduler train, for example tcp://host:8786."),
    ] = None,
    overwrite: BeginAnew = False,
    config: ConfigFile = None,  # noqa: ARG001 (read before the others are)
) -> None:
    """Train and test systems on the same parts, genes, spots and seeds, and put them into one table.

    Example: stpredict compare her2st/ --arch dictionary,stnet,m2ort-small -o compared

    Writes compared/config.toml: `--config` of that repeats the call.
    """
    from stpredict.commands.compare import compare_command, make_request
    from stpredict.training.settings import Settings

    demand_positive({"--mpp": mpp, "--bin-um": bin_um, "--learning-rate": learning_rate})
    refuse_with_protocol(protocol, {
        "--objective": objective != OBJECTIVE, "--panel": panel not in (None, PANEL_RULE), "--folds": folds != FOLDS,
        "--hold-out": bool(hold_out),
    })  # fmt: skip
    if cluster == "":
        raise UsageError("--cluster names no address.")
    refuse(recipe != "ours", f"--recipe {recipe} has its own", {
        "--objective": objective != OBJECTIVE, "--batch-size": batch_size != BATCH_SIZE,
        "--learning-rate": learning_rate != LEARNING_RATE,
        "--teach-patches": teach_patches != TEACH_PATCHES, "--unlabelled": unlabelled != UNLABELLED,
    })  # fmt: skip
    settings = Settings(
        objective=objective, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate,
        teach_patches=teach_patches, min_depth=min_depth or MIN_DEPTH,
        balance=one_of("--balance", balance, BALANCES) if balance else None,
    )  # fmt: skip
    request = make_request(
        dataset, out, split(arch), settings, seeds=seeds, folds=folds, hold_out=split(hold_out),
        allow_patient_leak=allow_patient_leak, protocol=protocol, recipe=recipe, min_depth=min_depth,
        weights=encoder_weights or (), region_weights=region_weights or (), genes_file=genes_file, panel_rule=panel,
        panel_size=panel_size,
        unlabelled=unlabelled if recipe == "ours" else 0, mpp=mpp, bin_um=bin_um,
        where=where, species=species, orthologs=orthologs, skip_broken=skip_broken, device=device,
        threads=threads or 0, patch_format=one_of("--patch-format", patch_format, PATCH_FORMATS),
    )  # fmt: skip
    code = compare_command(request, cluster, overwrite)
    write_used(context, out / "config.toml")
    raise typer.Exit(code)
