"""`stpredict models`: what weights there are; bring in others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from stpredict.cli.options import Overwrite
from stpredict.cli.program import app, command
from stpredict.console import printable

models_app = typer.Typer(help="List, show and import models.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(models_app, name="models")


@command(models_app, "list")
def models_list() -> None:
    """List the installed models."""
    from stpredict.commands.models import list_command

    list_command()


@command(models_app, "show")
def models_show(
    model: Annotated[str, typer.Argument(help="Name of an installed model, or a model file.", show_default=False)],
) -> None:
    """Show a model's card: what it predicts, what it was trained on, and how well it did on held-out tissue."""
    from stpredict.model.card import show_card
    from stpredict.model.file import find_model, load_model

    print(printable("\n".join(show_card(load_model(find_model(model))))))


@command(models_app, "import")
def models_import(
    checkpoint: Annotated[
        Path, typer.Argument(help="A published M2ORT or M2OST checkpoint, .pth.", show_default=False)
    ],
    genes: Annotated[Path, typer.Option(help="Its genes, in order: .npy, .txt or .csv.", show_default=False)],
    mpp: Annotated[
        float, typer.Option(help="Micrometres per pixel of the patches it was trained on.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The model file to write.", show_default="CHECKPOINT.safetensors")
    ] = None,
    spot_diameter: Annotated[float, typer.Option(help="um")] = 100.0,
    pitch: Annotated[float, typer.Option(help="Distance between the spots it was trained on, um.")] = 200.0,
    v_from_qkv2: Annotated[
        bool, typer.Option("--v-from-qkv2", help="For M2ORT checkpoints of the oldest released code.")
    ] = False,
    head_dim: Annotated[int, typer.Option(min=1, help="Width of an attention head.")] = 64,
    overwrite: Overwrite = False,
) -> None:
    """Bring in a published checkpoint; nothing in it is executed."""
    from stpredict.commands.models import import_command

    target = out or Path(checkpoint.name).with_suffix(".safetensors")
    v_from: Literal["qkv2", "qkv3"] = "qkv2" if v_from_qkv2 else "qkv3"
    import_command(checkpoint, genes, mpp, spot_diameter, pitch, target, v_from, head_dim, overwrite)
