"""List models, and bring in others."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from stpredict import DEFAULT_MODEL
from stpredict.console import printable, report
from stpredict.errors import StpredictError, UsageError
from stpredict.model.file import can_name_files, list_models, load_model
from stpredict.storage.files import demand_new, output_folders


def list_command() -> None:
    """Print the installed models, one a line."""
    for name, path in list_models().items():
        try:
            model = load_model(path)
        except StpredictError as error:
            report(f"stpredict: {error}")
            continue
        told = f"{name}  {model.card['architecture']}, {len(model.panel)} genes, {model.card['mpp']:g} um/px"
        print(printable(told + (", default" if name == DEFAULT_MODEL else "")))


def import_command(
    checkpoint: Path, genes: Path, mpp: float, spot_diameter_um: float, pitch_um: float, out: Path,
    v_from: Literal["qkv2", "qkv3"], head_dim: int, overwrite: bool,
) -> None:  # fmt: skip
    """Bring in a published checkpoint and print the path of the model file."""
    from stpredict.data.panel import read_gene_list
    from stpredict.model.published import import_checkpoint  # slow to import

    check_model_path(out)
    if not overwrite:
        demand_new(out)
    with output_folders(out.parent):
        import_checkpoint(checkpoint, read_gene_list(genes), mpp, spot_diameter_um, pitch_um, out, v_from, head_dim)
    print(out)


def check_model_path(out: Path) -> None:
    """Raises UsageError for a path that no model file can be written to."""
    if out.suffix != ".safetensors":
        raise UsageError(f"-o {out}: a model's file name ends in .safetensors.")
    if not can_name_files(out.stem):
        raise UsageError(f"-o {out}: {out.stem!r} cannot be a model's name.")
    if out.is_dir():
        raise UsageError(f"-o {out}: is a folder.")
