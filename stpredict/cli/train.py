"""`stpredict train`: weights from measured sections."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from stpredict import UNKNOWN_LICENCE
from stpredict.cli.options import BinUm, Threads, demand_positive, one_of, refuse_epochs, refuse_with_protocol, split
from stpredict.cli.program import app, command
from stpredict.errors import UsageError
from stpredict.evaluation import MIN_DEPTH
from stpredict.machine import usable_cores

#: Defaults that a paper's protocol replaces.
FOLDS, PANEL_RULE = "patient", "variance"
ARCHITECTURE = "m2ort-small"
UNLABELLED = 5000
HEADS: tuple[Literal["ridge", "linear"], ...] = ("ridge", "linear")


@command(app, "train")
def train(
    dataset: Annotated[
        Path, typer.Argument(help="Folder of measured sections, or a .tiles.h5 file.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The model file to write, NAME.safetensors.", show_default=False)
    ],
    arch: Annotated[
        str,
        typer.Option(
            help="m2ort-small, -base or -large, with -cross as in the released code; m2ost; "
            "triplex, -bc2 or -scc; stnet, resnet50, vit-b16, deepspace, crossvit-small or -base; or dictionary."
        ),
    ] = ARCHITECTURE,
    objective: Annotated[
        str,
        typer.Option(
            help="residuals, nb, poisson, mse on ln(1 + CPM) as in the papers, or standardised-mse, each gene over its "
            "spread."
        ),
    ] = "residuals",
    head: Annotated[
        str | None,
        typer.Option(
            help="What reads a dictionary or an encoder: ridge, or linear, which takes any --objective.",
            show_default="ridge",
        ),
    ] = None,
    folds: Annotated[
        str,
        typer.Option(
            help="What to hold out in turn to test: each patient, each section, none, or a number of parts by patient."
        ),
    ] = FOLDS,
    hold_out: Annotated[
        list[str] | None,
        typer.Option(help="Further patients or sections to hold out in turn, separated by commas.", show_default=False),
    ] = None,
    allow_patient_leak: Annotated[
        bool, typer.Option("--allow-patient-leak", help="Hold out sections of patients that are also trained on.")
    ] = False,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Split, choose genes, label and score as a paper does, with what it leaks: m2ort or triplex. Sets "
            "folds, panel, objective; how the network is trained stays ours.",
            show_default="none",
        ),
    ] = None,
    normalisation: Annotated[
        str | None,
        typer.Option(
            help="What expression is: ln(1 + x) of counts per million of the spot's total, or of the panel alone as "
            "the released M2ORT code has it; or 1e4, counts per 10,000 of the total.",
            show_default="total, or the protocol's",
        ),
    ] = None,
    min_depth: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Leave out held-out spots with fewer counts when scoring.",
            show_default=f"{MIN_DEPTH}, or 1 with a protocol",
        ),
    ] = None,
    smooth_labels: Annotated[
        bool, typer.Option("--smooth-labels", help="Train on means over neighbouring spots, as ST-Net and TRIPLEX do.")
    ] = False,
    genes_file: Annotated[
        Path | None, typer.Option(help="The genes to predict: .txt, .csv or .npy.", show_default="chosen by --panel")
    ] = None,
    panel: Annotated[
        str,
        typer.Option(
            help="Choose genes by variance in every section, by mean count, or variable beyond what the mean explains."
        ),
    ] = PANEL_RULE,
    genes_required: Annotated[
        list[str] | None,
        typer.Option(help="Genes that must be in the panel, separated by commas.", show_default=False),
    ] = None,
    panel_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Genes to choose; by variance, they are drawn from those that qualify.",
            show_default="all, or 250 by mean and variable",
        ),
    ] = None,
    counts_only: Annotated[
        Path | None,
        typer.Option(
            help="More sections, which tell how genes vary together; HER2ST ones need no images. "
            "For a dictionary or an encoder with a ridge head.",
            show_default="none",
        ),
    ] = None,
    encoder: Annotated[
        Path | None,
        typer.Option(
            help="A frozen encoder to read instead of --arch: .pt2 of torch.export.save, TorchScript, or a timm Vision "
            "Transformer's weights. Needs --mpp.",
            show_default="none",
        ),
    ] = None,
    encoder_mean: Annotated[
        str | None,
        typer.Option(
            help="Mean of RGB in 0 to 1 that it was trained with.",
            show_default="of config.json beside timm weights, or ImageNet's",
        ),
    ] = None,
    encoder_std: Annotated[
        str | None, typer.Option(help="Their standard deviation.", show_default="as the mean")
    ] = None,
    encoder_licence: Annotated[
        str | None, typer.Option(help="Its licence, for the model's card.", show_default="as the mean, or not stated")
    ] = None,
    encoder_weights: Annotated[
        Path | None,
        typer.Option(
            help="Weights of the trunk under torchvision's names, which triplex, stnet, resnet50, vit-b16, deepspace "
            "or a crossvit begins with, their licence by --encoder-licence.",
            show_default="taught colour and texture of unlabelled tissue",
        ),
    ] = None,
    attach_teacher: Annotated[
        bool,
        typer.Option(
            "--attach-teacher", help="Let TRIPLEX's fused head move towards the other three, as its released code does."
        ),
    ] = False,
    epochs: Annotated[int, typer.Option(min=1, help="Most epochs on measured spots; validation chooses the best.")] = 8,
    unlabelled: Annotated[
        int, typer.Option(min=0, help="Unlabelled patches of tissue, to be taught on or to learn windows from.")
    ] = UNLABELLED,
    teach_patches: Annotated[
        int, typer.Option(min=0, help="How many of them to see in all, with repetition.")
    ] = 25_000,
    stain_jitter: Annotated[float, typer.Option(min=0, help="Spread of the random factors on the stains.")] = 0.1,
    batch_size: Annotated[int, typer.Option(min=1)] = 48,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate on measured spots.")] = 1e-4,
    teach_learning_rate: Annotated[float, typer.Option(help="Peak learning rate on unlabelled tissue.")] = 5e-4,
    mpp: Annotated[
        float | None, typer.Option(help="Micrometres per pixel of the model.", show_default="the sections'")
    ] = None,
    bin_um: BinUm = None,
    licence: Annotated[str, typer.Option(help="Licence of the data, for the model's card.")] = UNKNOWN_LICENCE,
    seed: int = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Threads = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew.")] = False,
) -> None:
    """Train a model, test it on held-out tissue beside baselines, and write both into one file.

    Example: stpredict train her2st/ -o mine.safetensors
    """
    from stpredict.commands.train import describe_encoder, describe_weights, train_command
    from stpredict.networks import TRUNK_FIRST, has_trunk
    from stpredict.training.settings import Settings, TrainingRequest

    demand_positive(
        {
            "--mpp": mpp,
            "--bin-um": bin_um,
            "--learning-rate": learning_rate,
            "--teach-learning-rate": teach_learning_rate,
        }
    )
    described = encoder_mean or encoder_std or (encoder_licence and not encoder_weights)
    if not encoder and (described or arch == "encoder"):
        raise UsageError("--encoder FILE names the encoder that --encoder-mean, -std and -licence are of.")
    taught = (teach_patches, teach_learning_rate) != (Settings.teach_patches, Settings.teach_learning_rate)
    if encoder_weights and (taught or unlabelled != UNLABELLED):
        raise UsageError("--encoder-weights: the trunk is not taught; leave --unlabelled and --teach-... out.")
    if encoder_weights and (encoder or not has_trunk(arch)):
        raise UsageError(f"--encoder-weights: a trunk begins with them, that of --arch {', '.join(TRUNK_FIRST)}.")
    if attach_teacher and (encoder or not arch.startswith("triplex")):
        raise UsageError("--attach-teacher is of a TRIPLEX: --arch triplex.")
    if encoder:
        if arch != ARCHITECTURE or mpp is None:
            raise UsageError("--encoder: needs --mpp, the um per pixel that it was trained at, and takes no --arch.")
        if unlabelled != UNLABELLED:
            raise UsageError("--encoder: is not taught; leave --unlabelled out.")
        arch = "encoder"
    refuse_with_protocol(protocol, {
        "--objective": objective != Settings.objective, "--panel": panel != PANEL_RULE, "--folds": folds != FOLDS,
        "--hold-out": bool(hold_out), "--smooth-labels": smooth_labels,
    })  # fmt: skip
    chosen_head: Literal["ridge", "linear"] | None = None
    if arch in ("dictionary", "encoder"):
        chosen_head = one_of("--head", head or "ridge", HEADS)
        if chosen_head == "ridge" and objective in ("nb", "poisson"):
            raise UsageError(f"--objective {objective}: not of a ridge head, whose error is squared; --head linear.")
        refuse_epochs({
            "--epochs": epochs != Settings.epochs, "--teach-patches": teach_patches != Settings.teach_patches,
            "--batch-size": batch_size != Settings.batch_size, "--stain-jitter": stain_jitter != Settings.stain_jitter,
            "--learning-rate": learning_rate != Settings.learning_rate,
            "--teach-learning-rate": teach_learning_rate != Settings.teach_learning_rate,
        })  # fmt: skip
    elif head:
        raise UsageError(
            f"--head {head}: {arch} is trained with its own; --arch dictionary and --encoder have a choice."
        )
    settings = Settings(
        architecture=arch, objective=objective, epochs=epochs, teach_patches=teach_patches, batch_size=batch_size,
        learning_rate=learning_rate, teach_learning_rate=teach_learning_rate, stain_jitter=stain_jitter,
        smooth_labels=smooth_labels, seed=seed, head=chosen_head,
        encoder=describe_encoder(encoder, encoder_mean, encoder_std, encoder_licence) if encoder else None,
        encoder_weights=describe_weights(encoder_weights, encoder_licence) if encoder_weights else None,
        fusion_teacher=("attached" if attach_teacher else "detached") if arch.startswith("triplex") else None,
    )  # fmt: skip
    request = TrainingRequest(
        dataset, out, settings, folds=folds, hold_out=split(hold_out), allow_patient_leak=allow_patient_leak,
        protocol=protocol, normalisation=normalisation, min_depth=min_depth, counts_only=counts_only,
        encoder=encoder, encoder_weights=encoder_weights, unlabelled=0 if encoder or encoder_weights else unlabelled,
        mpp=mpp, bin_um=bin_um, licence=licence, device=device, threads=threads or usable_cores(), overwrite=overwrite,
    )  # fmt: skip
    train_command(request, genes_file, split(genes_required), panel_size, panel)
