"""List models, and bring in others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stpredict import DEFAULT_MODEL, UNKNOWN_LICENCE
from stpredict.commands.as_json import print_json
from stpredict.console import printable, report
from stpredict.errors import StpredictError, UsageError, counted
from stpredict.model.file import Model, can_name_files, find_model, list_models, load_model
from stpredict.model.measured import IN_PATIENTS, IN_SECTIONS, IN_TRAINING
from stpredict.model.reliability import held_out_correlation, read_reliability
from stpredict.storage.files import demand_new, output_folders

if TYPE_CHECKING:
    from stpredict.model.origin import Origin


def list_command(as_json: bool = False) -> None:
    """Print the installed models, one a line or as JSON."""
    found = []
    for name, path in list_models().items():
        try:
            model = load_model(path)
        except StpredictError as error:
            report(f"stpredict: {error}")
            continue
        if as_json:
            found.append(describe(model) | {"genes": len(model.panel), "default": name == DEFAULT_MODEL})
            continue
        told = f"{name}  {model.card['architecture']}, {counted(len(model.panel), 'gene')}, {model.card['mpp']:g} um/px"
        print(printable(told + (", default" if name == DEFAULT_MODEL else "")))
    if as_json:
        print_json(found)


def show_command(name_or_path: str, as_json: bool) -> None:
    """Print a model's card, for a person or as JSON."""
    from stpredict.model.show import show_card

    model = load_model(find_model(name_or_path))
    if not as_json:
        print(printable("\n".join(show_card(model))))
        return
    card = model.card
    told = {key: card.get(key) for key in ("objective", "intended_use", "training", "published", "notes")}
    held_out = [{key: value for key, value in fold.items() if key != "per_gene"} for fold in card["held_out"]]
    print_json(describe(model) | told | {"held_out": held_out, "genes": describe_genes(model)})


def describe(model: Model) -> dict[str, Any]:
    """The facts of a model that both `models list` and `models show` print as JSON."""
    keys = ("architecture", "patch_px", "mpp", "spot_diameter_um", "pitch_um", "expression_unit")
    return {"name": model.name, "file": model.path, "sha256": model.sha256} | {key: model.card[key] for key in keys}


def describe_genes(model: Model) -> list[dict[str, Any]]:
    """Per gene of the panel, how well it was predicted when held out; None where that is not known."""
    correlation, reliability = held_out_correlation(model.card), read_reliability(model.card)
    measured, n_sections, n_patients = (model.card["genes"].get(key) for key in (IN_TRAINING, IN_SECTIONS, IN_PATIENTS))
    unknown = dict.fromkeys(("low", "high", "ridge", "reliable"))
    return [
        {
            "gene": gene,
            IN_TRAINING: None if measured is None else bool(measured[i]),
            IN_SECTIONS: None if n_sections is None else int(n_sections[i]),
            IN_PATIENTS: None if n_patients is None else int(n_patients[i]),
            "held_out_correlation": correlation[i],
            **({key: getattr(reliability, key)[i] for key in unknown} if reliability else unknown),
        }
        for i, gene in enumerate(model.panel)
    ]


def import_command(
    checkpoint: Path, genes: Path, mpp: float, spot_diameter_um: float, pitch_um: float, out: Path,
    v_from: Literal["qkv2", "qkv3"], head_dim: int, overwrite: bool, *, bank: Path | None = None,
    frozen: Path | None = None, licence: str | None = None,
) -> None:  # fmt: skip
    """Bring in a published checkpoint and print the path of the model file.

    BLEEP and EGN need the spots of the data set `bank`, under this `licence`; EGN also needs its `frozen` ResNet.
    """
    from stpredict.data.panel import read_gene_list
    from stpredict.model.published import import_checkpoint  # slow to import
    from stpredict.model.released_banks import BankRequest

    check_model_path(out)
    if not overwrite:
        demand_new(out)
    measured = BankRequest(bank, licence or UNKNOWN_LICENCE, frozen, report) if bank else None
    with output_folders(out.parent):
        import_checkpoint(
            checkpoint, read_gene_list(genes), mpp, spot_diameter_um, pitch_um, out, v_from, head_dim, measured
        )  # fmt: skip
    print(out)


def import_head_command(
    encoder: Path, described: tuple[str | None, str | None, str | None, str | None], head: Path,
    activation: str | None, last_activation: str, layers: Sequence[str], genes: Path, measured: Path | None,
    expect: Path | None, unit: str, mpp: float, tile_um: float, spot_diameter_um: float, pitch_um: float,
    origin: Origin, out: Path, overwrite: bool,
) -> None:  # fmt: skip
    """Bring in a head on an encoder, `described` by its mean, deviation, licence and stain, and print the path."""
    from stpredict.data.panel import read_gene_list
    from stpredict.model.importing import ImportRequest, check_import, import_head  # slow to import
    from stpredict.model.self_test import read_expected
    from stpredict.networks.encoder_settings import describe_encoder, show_timm_encoder

    check_model_path(out)
    for file in (encoder, head):
        if file.resolve() == out.resolve():
            raise UsageError(f"-o {out}: is the file that is to be brought in.")
    if not overwrite:
        demand_new(out)
    settings = describe_encoder(encoder, *described)
    request = ImportRequest(
        encoder, settings, read_gene_list(genes), unit, mpp, tile_um, spot_diameter_um, pitch_um, out, origin,
        measured=read_gene_list(measured) if measured else None,
    )  # fmt: skip
    if expect:
        check_import(request)
        request = replace(request, expected=read_expected(expect, request.patch_px, len(request.genes)))
    if settings.vit:
        report(show_timm_encoder(settings, settings.vit))
    with output_folders(out.parent):
        card = import_head(request, head, activation, last_activation, layers)
    tell_import(card, out, [encoder, *([head] if card["parameters"]["head"]["kind"] == "program" else [])])


def tell_import(card: dict[str, Any], out: Path, beside: Sequence[Path]) -> None:
    """Say where an imported model comes from, which files it needs and what to do next; print its path."""
    from stpredict.model.origin import told_origin

    if line := told_origin(card):
        report(line)
    for file in beside:
        if file.resolve().parent != out.resolve().parent:
            report(f"{out.name} needs {file.name} beside it, or in the folder $STPREDICT_MODELS")
    report(f"nobody has tested it here: `stpredict evaluate {out} DATASET` scores it on measured sections")
    print(out)


def check_model_path(out: Path) -> None:
    """Raises UsageError for a path that no model file can be written to."""
    if out.suffix != ".safetensors":
        raise UsageError(f"-o {out}: a model's file name ends in .safetensors.")
    if not can_name_files(out.stem):
        raise UsageError(f"-o {out}: {out.stem!r} cannot be a model's name.")
    if out.is_dir():
        raise UsageError(f"-o {out}: is a folder.")
