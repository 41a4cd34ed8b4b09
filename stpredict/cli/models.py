"""`stpredict models`: what weights there are; bring in others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from stpredict.cli.options import JsonOption, Overwrite
from stpredict.cli.program import app, command
from stpredict.errors import UsageError

models_app = typer.Typer(help="List, show and import models.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(models_app, name="models")


@command(models_app, "list")
def models_list(
    known: Annotated[
        bool,
        typer.Option(
            "--known", help="List instead the models that others published, and how to bring them in. Uses no network."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the installed models."""
    from stpredict.commands.catalogue import list_known_command
    from stpredict.commands.models import list_command

    if known:
        list_known_command(as_json)
    else:
        list_command(as_json)


@command(models_app, "note")
def models_note(
    model: Annotated[str, typer.Argument(help="Name of an installed model, or a model file.", show_default=False)],
    evaluation: Annotated[
        Path, typer.Argument(help="The file that `evaluate` wrote: MODEL-DATASET.evaluation.json.", show_default=False)
    ],
    whose: Annotated[str, typer.Option(help="Whose sections they were, and of what.", show_default=False)],
) -> None:
    """Keep in a model's file what it scored on your sections, for `models show` to print. Its sha256 stays the same."""
    from stpredict.commands.catalogue import note_command

    note_command(model, evaluation, whose)


@command(models_app, "show")
def models_show(
    model: Annotated[str, typer.Argument(help="Name of an installed model, or a model file.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Show a model's card: what it predicts, what it was trained on, and how well it did on held-out tissue."""
    from stpredict.commands.models import show_command

    show_command(model, as_json)


@command(models_app, "import")
def models_import(
    genes: Annotated[Path, typer.Option(help="Its genes, in order: .npy, .txt or .csv.", show_default=False)],
    mpp: Annotated[
        float, typer.Option(help="Micrometres per pixel of the patches it was trained on.", show_default=False)
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            help="A checkpoint of M2ORT, M2OST, HisToGene, Hist2ST, BLEEP, EGN or a network of one patch, .pth; or "
            "--encoder and --head.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="The model file to write.", show_default="NAME, or the checkpoint's, .safetensors"
        ),
    ] = None,
    encoder: Annotated[
        Path | None,
        typer.Option(
            help="The encoder that a head reads: .pt2 of torch.export.save, TorchScript, or weights of a timm Vision "
            "Transformer. It stays a file beside the model.",
            show_default=False,
        ),
    ] = None,
    head: Annotated[
        Path | None,
        typer.Option(
            help="The head: .pt2, TorchScript, .safetensors of a linear layer or an MLP, or .npz of a linear model.",
            show_default=False,
        ),
    ] = None,
    unit: Annotated[
        str | None, typer.Option(help="What it predicts, in its authors' words.", show_default=False)
    ] = None,
    tile_um: Annotated[float | None, typer.Option(help="Width of its patches, um.", show_default=False)] = None,
    stain: Annotated[
        str | None, typer.Option(help="How patches are normalised first: macenko.", show_default="not")
    ] = None,
    encoder_mean: Annotated[
        str | None,
        typer.Option(
            help="Mean of RGB in 0 to 1 that the encoder was trained with.",
            show_default="of config.json beside timm weights, or ImageNet's",
        ),
    ] = None,
    encoder_std: Annotated[
        str | None, typer.Option(help="Their standard deviation.", show_default="as the mean")
    ] = None,
    encoder_licence: Annotated[
        str | None, typer.Option(help="The encoder's licence.", show_default="as the mean, or not stated")
    ] = None,
    activation: Annotated[
        str | None,
        typer.Option(help="Of an MLP's tensors, between layers: relu, gelu, silu, tanh ...", show_default=False),
    ] = None,
    last_activation: Annotated[str, typer.Option(help="After the last layer.")] = "none",
    layers: Annotated[
        str | None, typer.Option(help="An MLP's layers from first to last: a,b,c.", show_default="by number")
    ] = None,
    measured: Annotated[
        Path | None,
        typer.Option(help="Genes that its training sections measured; the others are NaN.", show_default="all"),
    ] = None,
    expect: Annotated[
        Path | None,
        typer.Option(
            help=".npz of an `image` and its authors' first `output`s for it; a model that gives others is refused.",
            show_default=False,
        ),
    ] = None,
    bank: Annotated[
        Path | None,
        typer.Option(
            help="Measured sections, or a .tiles.h5 file, with the spots that BLEEP or EGN looks up; the model file "
            "holds their measurements, under --licence.",
            show_default=False,
        ),
    ] = None,
    frozen: Annotated[
        Path | None,
        typer.Option(help="The ResNet by which an EGN finds spots, under torchvision's names.", show_default=False),
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="The head's licence, or the bank's, for the card.", show_default="not stated")
    ] = None,
    commercial: Annotated[
        bool | None,
        typer.Option("--commercial/--no-commercial", help="Do both licences allow commercial use?", show_default=False),
    ] = None,
    by: Annotated[str | None, typer.Option(help="Who published it.", show_default=False)] = None,
    source: Annotated[str | None, typer.Option(help="Where it was published.", show_default=False)] = None,
    tissue: Annotated[str | None, typer.Option(help="Tissue that it was trained on.", show_default=False)] = None,
    cite: Annotated[str | None, typer.Option(help="The paper to cite.", show_default=False)] = None,
    name: Annotated[str | None, typer.Option(help="What the model is called.", show_default="the head's name")] = None,
    spot_diameter: Annotated[float | None, typer.Option(help="um", show_default="100, or --tile-um")] = None,
    pitch: Annotated[
        float | None,
        typer.Option(help="Distance between the spots it was trained on, um.", show_default="200, or --tile-um"),
    ] = None,
    v_from_qkv2: Annotated[
        bool, typer.Option("--v-from-qkv2", help="For M2ORT checkpoints of the oldest released code.")
    ] = False,
    head_dim: Annotated[int, typer.Option(min=1, help="Width of an M2ORT's attention head.")] = 64,
    overwrite: Overwrite = False,
) -> None:
    """Bring in a published checkpoint, or anyone's head on an encoder.

    Files of tensors are read and nothing in them is executed. An exported program or TorchScript is a program of tensor
    operations: take it only from people whom you trust.

    Example: stpredict models import --encoder uni.bin --head ridge.npz --genes genes.txt --unit "log1p of counts"
    --mpp 0.5 --tile-um 112
    """
    from stpredict.commands.models import import_command, import_head_command
    from stpredict.model.origin import Origin

    if checkpoint and (encoder or head):
        raise UsageError(f"{checkpoint}: a checkpoint is whole; --encoder and --head are for a head on an encoder.")
    if checkpoint:
        refuse_head_options({
            "--unit": unit, "--tile-um": tile_um, "--stain": stain, "--encoder-mean": encoder_mean,
            "--encoder-std": encoder_std, "--encoder-licence": encoder_licence, "--activation": activation,
            "--layers": layers, "--measured": measured, "--expect": expect, "--by": by,
            "--licence": None if bank else licence,
            "--source": source, "--tissue": tissue, "--cite": cite, "--name": name, "--commercial": commercial,
        })  # fmt: skip
        target = out or Path(checkpoint.name).with_suffix(".safetensors")
        v_from: Literal["qkv2", "qkv3"] = "qkv2" if v_from_qkv2 else "qkv3"
        sizes = (100.0 if spot_diameter is None else spot_diameter, 200.0 if pitch is None else pitch)
        import_command(
            checkpoint, genes, mpp, *sizes, target, v_from, head_dim, overwrite, bank=bank, frozen=frozen,
            licence=licence,
        )  # fmt: skip
        return
    if bank or frozen:
        raise UsageError("--bank and --frozen: only for a checkpoint of BLEEP or EGN.")
    if not encoder or not head or unit is None or tile_um is None:
        raise UsageError("models import: needs a checkpoint, or --encoder, --head, --unit and --tile-um.")
    target = out or Path(f"{name or head.stem}.safetensors")
    import_head_command(
        encoder, (encoder_mean, encoder_std, encoder_licence, stain), head, activation, last_activation,
        [part.strip() for part in layers.split(",")] if layers else [], genes, measured, expect, unit, mpp, tile_um,
        tile_um if spot_diameter is None else spot_diameter, tile_um if pitch is None else pitch,
        Origin(by, source, licence, tissue, cite, commercial), target, overwrite,
    )  # fmt: skip


def refuse_head_options(options: Mapping[str, object]) -> None:
    """Raises UsageError for options that apply only to a head on an encoder."""
    given = [option for option, value in options.items() if value is not None]
    if given:
        raise UsageError(f"{given[0]}: only for a head on an encoder; name both with --encoder and --head.")
