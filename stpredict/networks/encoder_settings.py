"""What a model's card says of a frozen encoder: its file, how it was trained, its licence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from stpredict import UNKNOWN_LICENCE
from stpredict.errors import UsageError
from stpredict.networks.encoder import STAINS, Stain
from stpredict.networks.encoder_files import CHECKPOINTS, file_sha256
from stpredict.networks.encoder_weights import describe_weights
from stpredict.networks.timm_vit import ViTReading
from stpredict.networks.trunks.pixels import IMAGENET_MEAN, IMAGENET_STD

#: How features come of a Vision Transformer's tokens, in words.
READ_BY = {
    "token": "the class token",
    "mean": "the mean of the patch's tokens",
    "token_and_mean": "the class token and the mean of the patch's tokens",
    "patches": "all tokens of the patch",
}


@dataclass(frozen=True)
class EncoderSettings:
    """A frozen encoder's file, known by its content, and how it was trained. `mean` and `std` are of RGB in 0..1."""

    file: str
    sha256: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    vit: ViTReading | None = None  # of a Vision Transformer's weights
    stain: Stain | None = None  # how patches are normalised before


def describe_encoder(
    path: Path, mean: str | None, std: str | None, licence: str | None, stain: str | None = None
) -> EncoderSettings:
    """What a model's card says of its encoder: what is given, or else what lies beside a timm checkpoint, or is usual.

    Raises UsageError for means that are not three numbers and an unknown stain normalisation, and ModelFileError for a
    file that is no encoder's.
    """

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
    chosen = next((name for name in STAINS if name == stain), None)
    if stain and not chosen:
        raise UsageError(f"--stain {stain}: choose {', '.join(STAINS)}, or leave it out.")
    known = describe_weights(path) if path.suffix in CHECKPOINTS else None
    return EncoderSettings(
        path.name,
        file_sha256(path),
        given_mean or (known and known.mean) or IMAGENET_MEAN,
        given_std or (known and known.std) or IMAGENET_STD,
        licence or (known and known.licence) or UNKNOWN_LICENCE,
        known.reading if known else None,
        chosen,
    )


def describe_teacher(
    path: Path, mean: str | None, std: str | None, licence: str | None, stain: str | None = None
) -> EncoderSettings:
    """The same of an encoder that teaches tokens: of a Vision Transformer all tokens of the patch are read."""
    known = describe_encoder(path, mean, std, licence, stain)
    return replace(known, vit=replace(known.vit, pooling="patches")) if known.vit else known


def show_timm_encoder(encoder: EncoderSettings, vit: ViTReading) -> str:
    """One line: how a timm checkpoint is read, for a person to compare with what its authors say."""
    mean, std = (",".join(f"{x:g}" for x in numbers) for numbers in (encoder.mean, encoder.std))
    source = (
        "as its config.json has it" if vit.told_by == "config.json" else "assumed, as no config.json lies beside it"
    )
    pooled = READ_BY[vit.pooling]
    return (
        f"{encoder.file}: a Vision Transformer of {vit.heads} heads and {vit.activation}, read by {pooled}, {source}; "
        f"mean {mean}, deviation {std}, licence {encoder.licence}"
    )
