"""Train a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stpredict import UNKNOWN_LICENCE
from stpredict.commands.inputs import LEFT_TO_ANOTHER, needs_training_extra
from stpredict.commands.models import check_model_path
from stpredict.console import report
from stpredict.data.panel import read_gene_list
from stpredict.data.reading import about_left_out
from stpredict.errors import UsageError
from stpredict.storage.files import output_folders

if TYPE_CHECKING:
    from stpredict.training.settings import Settings, TrainingRequest, WeightsSettings


def train_command(
    request: TrainingRequest, genes_file: Path | None, genes_required: Sequence[str], panel_size: int | None,
    panel_rule: str | None, min_sections: int | None, recipe: str, dry_run: bool,
) -> int:  # fmt: skip
    """Train a model, or only some of its held-out parts, and print the files' paths; or print what that would take.

    Returns the exit code: 1 if sections were left out because they could not be read, else `LEFT_TO_ANOTHER` if other
    calls are training some parts.
    """
    try:
        from stpredict.training.defaults import PANEL_RULE
        from stpredict.training.jobs import MODEL
        from stpredict.training.panels import Panel
        from stpredict.training.plan import plan_run
        from stpredict.training.preparation import BROKEN, BROKEN_TISSUE, left_out, run_folder
        from stpredict.training.processes import is_main_process
        from stpredict.training.protocols import adopt_protocol
        from stpredict.training.settings import with_recipe
        from stpredict.training.whole_run import train_model
    except ModuleNotFoundError as error:
        raise needs_training_extra(error) from error

    out, settings, encoder = request.out, request.settings, request.encoder
    check_model_path(out)
    for weights in (encoder, request.encoder_weights, request.region_weights, request.teacher):
        if weights and weights.resolve() == out.resolve():
            raise UsageError(f"-o {out}: is the encoder's own file.")
    if request.dataset.suffix == ".h5":
        for name in ("bin_um", "where", "species", "orthologs", "skip_broken"):
            if getattr(request, name):
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{option}: needs a folder of sections; a .tiles.h5 file is already cut.")
        if request.tissue:
            raise UsageError("--tissue: needs a folder of sections; `stpredict tile --tissue` cuts both into one file.")
        if request.patch_format != "raw":
            raise UsageError("--patch-format: needs a folder of sections; a .tiles.h5 file is already cut.")
    if not settings.epochs and not (settings.taught_densely and request.unlabelled):
        raise UsageError("--epochs 0: only for a network that is first taught densely on unlabelled tissue.")
    check_counts_only(request.counts_only, request.dataset, settings, request.protocol)
    if genes_file and (panel_size or min_sections or panel_rule not in (None, PANEL_RULE)):
        raise UsageError("--genes-file names the panel; --panel, --panel-size and --min-sections choose one.")
    if min_sections and panel_rule not in (None, "coverage"):
        raise UsageError(f"--min-sections: is for --panel coverage, not {panel_rule}.")
    genes = read_gene_list(genes_file) if genes_file else ()
    panel = Panel(genes, panel_size, tuple(genes_required), panel_rule, min_sections)
    settings = with_recipe(settings, recipe)
    if request.protocol:
        settings, panel = adopt_protocol(request.protocol, settings, panel)
    settings = replace(
        settings, normalisation=request.normalisation or settings.normalisation,
        min_depth=request.min_depth or settings.min_depth,
    )  # fmt: skip
    for known in (settings.encoder, settings.teacher):
        if known and known.vit and is_main_process():
            from stpredict.networks.encoder_settings import show_timm_encoder

            report(show_timm_encoder(known, known.vit))
    request = replace(request, settings=settings)
    check_tissue(request)
    tell = report if is_main_process() else lambda _line: None
    if dry_run:
        for line in plan_run(request, panel, tell) if is_main_process() else ():
            print(line)
        return 0
    with output_folders(out.parent):
        elsewhere = train_model(request, panel, tell)
    for name in request.only if is_main_process() else ():
        if name in elsewhere:
            report(f"{name}: another call is training it, so this one skips it")
        else:
            print(run_folder(out) / name / MODEL)
    if is_main_process() and not request.only:
        if encoder and encoder.resolve().parent != out.resolve().parent:
            report(f"{out.name} needs {encoder.name} beside it, or in the folder $STPREDICT_MODELS")
        print(out)
    broken, slides = left_out(out), left_out(out, BROKEN_TISSUE)
    if broken and is_main_process():
        report(about_left_out(broken, run_folder(out) / BROKEN))
    if slides and is_main_process():
        report(about_left_out(slides, run_folder(out) / BROKEN_TISSUE, "slide"))
    return int(bool(broken or slides)) or (LEFT_TO_ANOTHER if elsewhere else 0)


def check_tissue(request: TrainingRequest) -> None:
    """Raises UsageError for slides without counts if nothing would learn from them."""
    from stpredict.networks import reads_sections

    settings = request.settings
    if request.tissue and not (settings.learns_from_tissue and request.unlabelled):
        arch = settings.architecture
        reasons = {
            "an encoder is not taught": settings.encoder,
            "a trunk with --encoder-weights is not taught": settings.encoder_weights,
            f"{arch} learns from measured spots alone": reads_sections(arch),
            "a recipe teaches on measured spots alone": settings.recipe,
            "--teach-patches is 0": not settings.teach_patches,
            "--unlabelled is 0": True,
        }
        why = next(reason for reason, holds in reasons.items() if holds)
        raise UsageError(f"--tissue: {why}, so nothing would learn from these slides; leave it out.")


def check_counts_only(counts_only: Path | None, dataset: Path, settings: Settings, protocol: str | None) -> None:
    """Raises UsageError if `counts_only` would not be used."""
    from stpredict.networks import FITTED

    if counts_only and settings.architecture not in FITTED and not settings.taught_densely:
        raise UsageError(
            f"--counts-only: {settings.architecture} learns nothing from counts alone; --arch dictionary, --encoder "
            "and an M2ORT or M2OST with --teach dense do."
        )
    if counts_only and (protocol or settings.objective != "residuals"):
        how = f"--protocol {protocol}" if protocol else f"--objective {settings.objective}"
        raise UsageError(f"--counts-only: {how} fits each gene by itself, and learns nothing from counts alone.")
    if counts_only and settings.head == "linear":
        raise UsageError("--counts-only: a linear head fits each gene by itself, and learns nothing from counts.")
    if counts_only and dataset.suffix == ".h5":
        raise UsageError("--counts-only: needs a folder of sections; a .tiles.h5 file is already cut.")


def describe_weights(path: Path, licence: str | None) -> WeightsSettings:
    """What a model's card says about the weights from which its training began."""
    from stpredict.networks.encoder_files import file_sha256
    from stpredict.training.settings import WeightsSettings

    return WeightsSettings(path.name, file_sha256(path), licence or UNKNOWN_LICENCE)
