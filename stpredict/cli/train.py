"""`stpredict train`: weights from measured sections."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer

from stpredict import UNKNOWN_LICENCE
from stpredict.cli.config import ConfigFile, write_used
from stpredict.cli.options import (
    PATCH_FORMATS,
    BinUm,
    Orthologs,
    PatchFormat,
    SkipBrokenSlides,
    Species,
    Threads,
    Tissue,
    Where,
    demand_positive,
    one_of,
    refuse,
    refuse_epochs,
    refuse_with_protocol,
    split,
)
from stpredict.cli.program import app, command
from stpredict.cli.training_options import (
    BALANCES,
    Accumulate,
    AllowPatientLeak,
    AnonymousCard,
    Arch,
    AttachTeacher,
    BalanceOption,
    BatchSize,
    BeginAnew,
    CountsOnly,
    Dataset,
    Device,
    DryRun,
    Encoder,
    EncoderLicence,
    EncoderMean,
    EncoderStd,
    EncoderWeights,
    Epochs,
    Folds,
    GenesFile,
    GenesRequired,
    Head,
    HoldOut,
    LearningRate,
    Licence,
    MinDepth,
    MinSections,
    ModelFile,
    Normalisation,
    Objective,
    Only,
    PanelRule,
    PanelSize,
    PatchMpp,
    PatchUm,
    Protocol,
    Recipe,
    RegionWeights,
    SmoothLabels,
    Stain,
    StainJitter,
    Teach,
    Teacher,
    TeachLearningRate,
    TeachPatches,
    Unlabelled,
)
from stpredict.errors import UsageError
from stpredict.machine import usable_cores
from stpredict.training.defaults import (
    BATCH_SIZE,
    EPOCHS,
    FOLDS,
    LEARNING_RATE,
    OBJECTIVE,
    PANEL_RULE,
    STAIN_JITTER,
    TEACH_PATCHES,
    UNLABELLED,
)

#: Equals networks.FLAGSHIP, whose import would delay help.
ARCHITECTURE = "m2ort-small:depth=2:pool=mean:pixels=density"
TEACHINGS: tuple[Literal["dense", "ridge"], ...] = ("dense", "ridge")
WITH_TOKENS = "an M2ORT, an M2OST and a TRIPLEX have"
HEADS: tuple[Literal["ridge", "linear"], ...] = ("ridge", "linear")


@command(app, "train")
def train(
    context: typer.Context,
    dataset: Dataset,
    out: ModelFile,
    arch: Arch = ARCHITECTURE,
    objective: Objective = OBJECTIVE,
    head: Head = None,
    folds: Folds = FOLDS,
    hold_out: HoldOut = None,
    allow_patient_leak: AllowPatientLeak = False,
    protocol: Protocol = None,
    normalisation: Normalisation = None,
    min_depth: MinDepth = None,
    smooth_labels: SmoothLabels = False,
    genes_file: GenesFile = None,
    panel: PanelRule = None,
    min_sections: MinSections = None,
    genes_required: GenesRequired = None,
    panel_size: PanelSize = None,
    counts_only: CountsOnly = None,
    encoder: Encoder = None,
    encoder_mean: EncoderMean = None,
    encoder_std: EncoderStd = None,
    encoder_licence: EncoderLicence = None,
    stain: Stain = None,
    encoder_weights: EncoderWeights = None,
    region_weights: RegionWeights = None,
    attach_teacher: AttachTeacher = False,
    recipe: Recipe = "ours",
    epochs: Epochs = EPOCHS,
    unlabelled: Unlabelled = UNLABELLED,
    tissue: Tissue = None,
    teach: Teach = None,
    teacher: Teacher = None,
    teach_patches: TeachPatches = TEACH_PATCHES,
    stain_jitter: StainJitter = STAIN_JITTER,
    batch_size: BatchSize = BATCH_SIZE,
    accumulate: Accumulate = 1,
    balance: BalanceOption = None,
    learning_rate: LearningRate = LEARNING_RATE,
    teach_learning_rate: TeachLearningRate = None,
    mpp: PatchMpp = None,
    patch_um: PatchUm = None,
    bin_um: BinUm = None,
    where: Where = None,
    species: Species = None,
    orthologs: Orthologs = None,
    skip_broken: SkipBrokenSlides = False,
    patch_format: PatchFormat = "raw",
    licence: Licence = UNKNOWN_LICENCE,
    anonymous: AnonymousCard = False,
    seed: int = 0,
    device: Device = "auto",
    threads: Threads = None,
    only: Only = None,
    dry_run: DryRun = False,
    overwrite: BeginAnew = False,
    config: ConfigFile = None,  # noqa: ARG001 (read before the others are)
) -> None:
    """Train a model, test it on held-out tissue beside baselines, and write both into one file.

    Example: stpredict train her2st/ -o mine.safetensors

    Writes mine.run/config.toml, too: `--config` of that repeats the call.
    """
    from stpredict.commands.train import describe_weights, train_command
    from stpredict.networks import has_bank, has_tokens, has_trunk_tokens, reads_sections
    from stpredict.networks.encoder_settings import describe_encoder, describe_teacher
    from stpredict.training.settings import Settings, TrainingRequest

    demand_positive({
        "--mpp": mpp, "--patch-um": patch_um, "--bin-um": bin_um, "--learning-rate": learning_rate,
        "--teach-learning-rate": teach_learning_rate,
    })  # fmt: skip
    if patch_um and mpp is None:
        raise UsageError("--patch-um: needs --mpp, the um per pixel; the two say how many pixels a patch has.")
    described = bool(encoder_mean or encoder_std or stain or (encoder_licence and not encoder_weights))
    taught = (teach, teach_patches, teach_learning_rate) != (None, TEACH_PATCHES, None)
    more_unlabelled = unlabelled != UNLABELLED
    if teacher:
        _check_teacher(arch, teach, teach_patches and unlabelled, {
            "--encoder": encoder is not None, "--encoder-weights": encoder_weights is not None,
            f"--recipe {recipe}": recipe != "ours",
        })  # fmt: skip
    if not encoder and ((described and not teacher) or arch == "encoder"):
        raise UsageError(
            "--encoder-mean, -std, -licence and --stain describe an encoder; name it with --encoder FILE or --teacher "
            "FILE."
        )
    if encoder_weights and (taught or more_unlabelled):
        raise UsageError("--encoder-weights: the trunk is not taught; leave --unlabelled, --teach and --teach-... out.")
    _check_weights(arch, encoder, encoder_weights, region_weights, mpp)
    if reads_sections(arch) and not encoder and (taught or more_unlabelled or batch_size != BATCH_SIZE):
        raise UsageError(
            f"--arch {arch}: learns from measured spots alone, section by section; leave --unlabelled, --teach, "
            "--teach-... and --batch-size out."
        )
    if accumulate > 1 and not encoder and (reads_sections(arch) or has_bank(arch)):
        raise UsageError(
            f"--accumulate: {arch} compares all spots of a batch with one another, so that no part can be computed "
            "alone; leave it out."
        )
    if reads_sections(arch) and not encoder and balance == "sections":
        raise UsageError(f"--balance sections: {arch} learns section by section, so they count alike; leave it out.")
    if attach_teacher and (encoder or not arch.startswith("triplex")):
        raise UsageError("--attach-teacher: only for --arch triplex.")
    if encoder:
        if arch != ARCHITECTURE or mpp is None:
            raise UsageError("--encoder: needs --mpp, the um per pixel that it was trained at, and takes no --arch.")
        if more_unlabelled:
            raise UsageError("--encoder: is not taught; leave --unlabelled out.")
        arch = "encoder"
    refuse_with_protocol(protocol, {
        "--objective": objective != OBJECTIVE, "--folds": folds != FOLDS, "--hold-out": bool(hold_out),
        "--panel": panel not in (None, PANEL_RULE), "--min-sections": bool(min_sections),
        "--smooth-labels": smooth_labels,
    })  # fmt: skip
    of_batches = {
        "--batch-size": batch_size != BATCH_SIZE, "--stain-jitter": stain_jitter != STAIN_JITTER,
        "--learning-rate": learning_rate != LEARNING_RATE,
    }  # fmt: skip
    refuse(recipe != "ours", f"--recipe {recipe} has its own", {
        "--objective": objective != OBJECTIVE, "--smooth-labels": smooth_labels, **of_batches,
        "--teach or --teach-...": taught, "--unlabelled": more_unlabelled,
    })  # fmt: skip
    chosen_head = _choose_head(arch, head, objective, {
        "--epochs": epochs != EPOCHS, "--teach-patches": teach_patches != TEACH_PATCHES, **of_batches,
        "--teach": teach is not None, "--teach-learning-rate": teach_learning_rate is not None,
        "--accumulate": accumulate > 1, "--balance": balance is not None,
    })  # fmt: skip
    if teach == "dense" and not (has_tokens(arch) or has_trunk_tokens(arch)):
        raise UsageError(f"--teach dense: {arch} has no tokens that could be taught; {WITH_TOKENS}.")
    settings = Settings(
        architecture=arch, objective=objective, epochs=epochs,
        teach=one_of("--teach", teach, TEACHINGS) if teach else "dense" if has_tokens(arch) else "ridge",
        teach_patches=teach_patches, batch_size=batch_size, learning_rate=learning_rate,
        teach_learning_rate=teach_learning_rate, stain_jitter=stain_jitter,
        smooth_labels=smooth_labels, seed=seed, head=chosen_head,
        balance=one_of("--balance", balance, BALANCES) if balance else None,
        encoder=describe_encoder(encoder, encoder_mean, encoder_std, encoder_licence, stain) if encoder else None,
        encoder_weights=describe_weights(encoder_weights, encoder_licence) if encoder_weights else None,
        region_weights=describe_weights(region_weights, encoder_licence) if region_weights else None,
        teacher=describe_teacher(teacher, encoder_mean, encoder_std, encoder_licence, stain) if teacher else None,
        fusion_teacher=("attached" if attach_teacher else "detached") if arch.startswith("triplex") else None,
    )  # fmt: skip
    request = TrainingRequest(
        dataset, out, settings, folds=folds, hold_out=split(hold_out), allow_patient_leak=allow_patient_leak,
        protocol=protocol, normalisation=normalisation, min_depth=min_depth, counts_only=counts_only,
        encoder=encoder, encoder_weights=encoder_weights, teacher=teacher,
        unlabelled=0 if encoder or encoder_weights or recipe != "ours" or reads_sections(arch) else unlabelled,
        mpp=mpp, patch_um=patch_um, bin_um=bin_um, licence=licence, anonymous=anonymous, device=device,
        threads=threads or usable_cores(), overwrite=overwrite, region_weights=region_weights, where=where,
        species=species, orthologs=orthologs, skip_broken=skip_broken, only=split(only), accumulate=accumulate,
        patch_format=one_of("--patch-format", patch_format, PATCH_FORMATS), tissue=tissue or (),
    )  # fmt: skip
    if only and overwrite:
        raise UsageError("--only: shares a run with other calls; begin that anew by a call without it.")
    code = train_command(request, genes_file, split(genes_required), panel_size, panel, min_sections, recipe, dry_run)
    from stpredict.training.preparation import run_folder
    from stpredict.training.processes import is_main_process  # needs the extra [train], which the command has demanded

    if is_main_process() and not dry_run:
        write_used(context, run_folder(out) / "config.toml")
    raise typer.Exit(code)


def _check_teacher(arch: str, teach: str | None, n_patches: int, others: dict[str, bool]) -> None:
    """Raises UsageError for a teacher that would teach no tokens, and for options that leave nothing to teach."""
    from stpredict.networks import has_tokens, has_trunk_tokens

    refuse(True, "with it nothing is taught densely, so leave --teacher out", others)
    if teach == "ridge":
        raise UsageError("--teacher: teaches each token; --teach ridge teaches the patch, so leave one of them out.")
    if not (has_tokens(arch) or has_trunk_tokens(arch)):
        raise UsageError(f"--teacher: {arch} has no tokens that could be taught; {WITH_TOKENS}.")
    if not (has_tokens(arch) or teach):
        raise UsageError(f"--teacher: {arch} learns what a teacher sees only with --teach dense; add it.")
    if not n_patches:
        raise UsageError("--teacher: teaches on unlabelled patches; --unlabelled and --teach-patches must not be 0.")


def _check_weights(
    arch: str, encoder: Path | None, encoder_weights: Path | None, region_weights: Path | None, mpp: float | None
) -> None:
    """Raises UsageError for weights that a network cannot begin with, and for missing weights that it needs."""
    from stpredict.networks import TRUNK_FIRST, has_trunk, reads_tiles

    if bool(region_weights) != (reads_tiles(arch) and not encoder) or (region_weights and not encoder_weights):
        raise UsageError("--region-weights: only for --arch hipt and istar, which also need --encoder-weights.")
    if region_weights and mpp is None:
        raise UsageError(f"--arch {arch}: needs --mpp, 0.5 or near to it, as HIPT was trained.")
    if encoder_weights and (encoder or not (has_trunk(arch) or region_weights)):
        raise UsageError(f"--encoder-weights: only for a network that has a trunk, --arch {', '.join(TRUNK_FIRST)}.")


def _choose_head(
    arch: str, head: str | None, objective: str, by_epoch: dict[str, bool]
) -> Literal["ridge", "linear"] | None:
    """The head of a network that is fitted at once; None for others, which have their own.

    Raises UsageError for a head that is not to be chosen, and where options `by_epoch` were given for one that is.
    """
    from stpredict.networks import FITTED

    if arch not in FITTED:
        if head:
            raise UsageError(
                f"--head {head}: {arch} has a head of its own; --arch dictionary, hipt and --encoder choose."
            )
        return None
    chosen: Literal["ridge", "linear"] = one_of("--head", head or "ridge", HEADS)
    if chosen == "ridge" and objective in ("nb", "poisson"):
        raise UsageError(f"--objective {objective}: a ridge head takes squared error alone; --head linear any.")
    refuse_epochs(by_epoch)
    return chosen
