"""Train a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stpredict import UNKNOWN_LICENCE
from stpredict.commands.inputs import needs_training_extra
from stpredict.commands.models import check_model_path
from stpredict.console import report
from stpredict.data.panel import read_gene_list
from stpredict.errors import UsageError
from stpredict.storage.files import output_folders

if TYPE_CHECKING:
    from stpredict.networks.timm_vit import ViTReading
    from stpredict.training.settings import EncoderSettings, Settings, TrainingRequest, WeightsSettings


def train_command(
    request: TrainingRequest, genes_file: Path | None, genes_required: Sequence[str], panel_size: int | None,
    panel_rule: str,
) -> None:  # fmt: skip
    """Train a model and print its path."""
    try:
        from stpredict.training.crossvalidation import train_model
        from stpredict.training.fit import is_main_process
        from stpredict.training.one_network import Panel
        from stpredict.training.protocols import PANEL_SIZE, find_protocol
    except ModuleNotFoundError as error:
        raise needs_training_extra(error) from error

    out, settings, encoder = request.out, request.settings, request.encoder
    check_model_path(out)
    for weights in (encoder, request.encoder_weights):
        if weights and weights.resolve() == out.resolve():
            raise UsageError(f"-o {out}: is the encoder's own file.")
    if request.bin_um and request.dataset.suffix == ".h5":
        raise UsageError("--bin-um: with a folder of sections, not with a .tiles.h5 file, which is already cut.")
    check_counts_only(request.counts_only, request.dataset, settings, request.protocol)
    if genes_file and (panel_size or panel_rule != Panel.rule):
        raise UsageError("--genes-file names the panel; --panel and --panel-size choose one.")
    panel = Panel(read_gene_list(genes_file) if genes_file else (), panel_size, tuple(genes_required), panel_rule)
    if request.protocol:
        paper = find_protocol(request.protocol)
        settings = replace(
            settings, objective="mse", smooth_labels=paper.smooth_labels, min_depth=1, normalisation=paper.normalisation
        )
        panel = replace(panel, rule=paper.panel_rule, size=panel.size or PANEL_SIZE)
    settings = replace(
        settings, normalisation=request.normalisation or settings.normalisation,
        min_depth=request.min_depth or settings.min_depth,
    )  # fmt: skip
    if settings.encoder and settings.encoder.vit and is_main_process():
        report(show_timm_encoder(settings.encoder, settings.encoder.vit))
    with output_folders(out.parent):
        tell = report if is_main_process() else lambda _line: None
        train_model(replace(request, settings=settings), panel, tell)
    if is_main_process():
        if encoder and encoder.resolve().parent != out.resolve().parent:
            report(f"{out.name} needs {encoder.name} beside it, or in the folder $STPREDICT_MODELS")
        print(out)


def check_counts_only(counts_only: Path | None, dataset: Path, settings: Settings, protocol: str | None) -> None:
    """Raises UsageError for counts that would not be used."""
    from stpredict.networks import FITTED

    if counts_only and settings.architecture not in FITTED:
        raise UsageError(
            f"--counts-only: {settings.architecture} learns nothing from counts alone; "
            "--arch dictionary and --encoder do."
        )
    if counts_only and (protocol or settings.objective != "residuals"):
        how = f"--protocol {protocol}" if protocol else f"--objective {settings.objective}"
        raise UsageError(f"--counts-only: {how} fits each gene by itself, and makes nothing of counts alone.")
    if counts_only and settings.head == "linear":
        raise UsageError("--counts-only: a linear head fits each gene by itself, and makes nothing of counts alone.")
    if counts_only and dataset.suffix == ".h5":
        raise UsageError("--counts-only: with a folder of sections, not with a .tiles.h5 file, which is already cut.")


def describe_weights(path: Path, licence: str | None) -> WeightsSettings:
    """What a model's card says of the weights that its network began with."""
    from stpredict.networks.encoder_files import file_sha256
    from stpredict.training.settings import WeightsSettings

    return WeightsSettings(path.name, file_sha256(path), licence or UNKNOWN_LICENCE)


def describe_encoder(path: Path, mean: str | None, std: str | None, licence: str | None) -> EncoderSettings:
    """What a model's card says of its encoder: what is given, or else what lies beside a timm checkpoint, or is usual.

    Raises UsageError for means that are not three numbers, and ModelFileError for a file that is no encoder's.
    """
    from stpredict.networks.encoder_files import CHECKPOINTS, file_sha256
    from stpredict.networks.timm_config import describe_checkpoint
    from stpredict.networks.trunks.pixels import IMAGENET_MEAN, IMAGENET_STD
    from stpredict.training.settings import EncoderSettings

    def three(option: str, text: str, least: float) -> tuple[float, ...]:
        try:
            numbers = tuple(float(part) for part in text.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != 3 or not all(least <= number <= 1 for number in numbers):
            raise UsageError(f"{option} {text}: three numbers from {least:g} to 1, separated by commas.")
        return numbers

    given_mean = three("--encoder-mean", mean, 0) if mean else None
    given_std = three("--encoder-std", std, 0.01) if std else None
    known = describe_checkpoint(path) if path.suffix in CHECKPOINTS else None
    return EncoderSettings(
        path.name,
        file_sha256(path),
        given_mean or (known and known.mean) or IMAGENET_MEAN,
        given_std or (known and known.std) or IMAGENET_STD,
        licence or (known and known.licence) or UNKNOWN_LICENCE,
        known.reading if known else None,
    )


def show_timm_encoder(encoder: EncoderSettings, vit: ViTReading) -> str:
    """One line: how a timm checkpoint is read, for a person to compare with what its authors say."""
    mean, std = (",".join(f"{x:g}" for x in numbers) for numbers in (encoder.mean, encoder.std))
    source = (
        "as its config.json has it" if vit.told_by == "config.json" else "assumed, as no config.json lies beside it"
    )
    pooled = "the class token" if vit.pooling == "token" else "the mean of the patch's tokens"
    return (
        f"{encoder.file}: a Vision Transformer of {vit.heads} heads and {vit.activation}, read by {pooled}, {source}; "
        f"mean {mean}, deviation {std}, licence {encoder.licence}"
    )
