"""Import a published model that is known by name, from the files that its authors published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stpredict.errors import ModelFileError, UsageError
from stpredict.model.catalogue import KNOWN as CATALOGUE
from stpredict.model.catalogue import UNREAD
from stpredict.model.importing import ImportRequest, check_import, write_published
from stpredict.model.known_models import KNOWN, KnownFiles, KnownModel
from stpredict.model.origin import Origin
from stpredict.networks.encoder import PublishedConfig
from stpredict.networks.encoder_files import count_features, open_encoder
from stpredict.networks.encoder_settings import EncoderSettings, describe_encoder
from stpredict.networks.gene_query_head import GeneQueryConfig


@dataclass(frozen=True)
class KnownRequest:
    """A model by its name, its files, and values of the user that replace those of its authors; None for no value."""

    name: str
    files: KnownFiles
    out: Path
    encoder: Path | None = None
    mpp: float | None = None
    tile_um: float | None = None
    pitch_um: float | None = None
    encoder_mean: str | None = None
    encoder_std: str | None = None
    encoder_licence: str | None = None
    tissue: str | None = None


def find_known(name: str) -> KnownModel:
    """Raises UsageError for an unknown name; the message says how else to import it, or why that is impossible."""
    found = KNOWN.get(name.lower())
    if found:
        return found
    for entry in CATALOGUE:
        if entry.name.lower() == name.lower() and entry.kind == "encoder":
            raise UsageError(f"{entry.name}: an encoder without a head; train one by `{entry.bring_in}`.")
        if entry.name.lower() == name.lower():
            raise UsageError(f"{entry.name}: has no reader of its own; bring it in by `{entry.bring_in}`.")
    if name.lower() in UNREAD:
        raise UsageError(f"{name}: cannot be brought in, as {UNREAD[name.lower()]}.")
    raise UsageError(f"{name}: not a published model that is known here; choose one of {', '.join(KNOWN)}.")


def import_known(request: KnownRequest) -> dict[str, Any]:
    """Write the model file of a published model; returns its card.

    Raises UsageError or ModelFileError, before anything is written, for files that are not the model's, or do not fit
    together, and for sizes that neither its authors nor the user state.
    """
    known = find_known(request.name)
    encoder_file = encoder_of(request, known)
    mpp, tile_um = told(request.mpp, known.mpp, "--mpp"), told(request.tile_um, known.tile_um, "--tile-um")
    mean, std = known.pixels or (None, None)
    settings = describe_encoder(
        encoder_file, request.encoder_mean or mean, request.encoder_std or std,
        request.encoder_licence or (known.origin.licence if known.own_encoder else None), known.stain,
    )  # fmt: skip
    read = known.read(request.files)
    settings = with_tokens(settings, read.config)
    origin: Origin = replace(known.origin, tissue=request.tissue or known.origin.tissue or request.files.organ)
    pitch_um = request.pitch_um or known.pitch_um or tile_um
    whole = ImportRequest(
        encoder_file, settings, read.genes, known.unit, mpp, tile_um, tile_um, pitch_um, request.out, origin
    )
    check_import(whole)
    n_genes = head_genes(read.tensors)
    if n_genes != len(read.genes):
        raise ModelFileError(f"{request.files.head.name}: predicts {n_genes} genes, but {len(read.genes)} are named.")
    encoder = open_encoder(encoder_file, whole.patch_px, settings.vit)
    if not isinstance(read.config, GeneQueryConfig):  # that one reads tokens, not one row per patch
        width = count_features(encoder, whole.patch_px, encoder_file.name)
        if width != read.n_features:
            raise ModelFileError(
                f"{encoder_file.name}: gives {width} features of a patch, and {request.name} reads {read.n_features}, "
                f"of {known.encoder}."
            )
    config = PublishedConfig(
        n_genes, read.n_features, settings.file, settings.sha256, settings.mean, settings.std, whole.patch_px,
        vit=settings.vit, stain=settings.stain, head=read.config,
    )  # fmt: skip
    tensors = {f"head.{name}": tensor for name, tensor in read.tensors.items()}
    return write_published(whole, config, tensors, encoder, request.files.head)


def encoder_of(request: KnownRequest, known: KnownModel) -> Path:
    """The encoder's file. Raises UsageError if it is not named, or is named although the model's own file has it."""
    if known.own_encoder:
        if request.encoder:
            raise UsageError(f"--encoder: {request.name} has its own, in {request.files.head.name}.")
        return request.files.head
    if request.encoder is None:
        raise UsageError(f"--encoder: name the file of {request.name}'s encoder ({known.encoder}).")
    return request.encoder


def told(said: float | None, usual: float | None, option: str) -> float:
    """The user's value, or the authors'. Raises UsageError if there is neither."""
    if said is None and usual is None:
        raise UsageError(f"{option}: differs from file to file; take it from what this one was trained on.")
    return said if said is not None else usual  # type: ignore[return-value]


def with_tokens(settings: EncoderSettings, head: object) -> EncoderSettings:
    """The settings, with all tokens of the encoder if the head reads these."""
    if not isinstance(head, GeneQueryConfig) or settings.vit is None:
        return settings
    return replace(settings, vit=replace(settings.vit, pooling="patches"))


def head_genes(tensors: Mapping[str, Any]) -> int:
    """How many genes a head's tensors predict."""
    names = {"second_bias": 1, "last.bias": 0, "bias": 0}
    name = next(name for name in names if name in tensors)
    return int(tensors[name].shape[names[name]])
