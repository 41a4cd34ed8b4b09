"""Options that several commands share, and what their values are read as."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from stpredict.errors import UsageError

Choice = TypeVar("Choice", bound=str)


def _folder(text: str) -> Path:
    if not str(text):  # which as a path would be the folder we are in
        raise typer.BadParameter("names no folder.")
    return Path(text)


Out = Annotated[Path, typer.Option("-o", "--out", metavar="PATH", parser=_folder, help="Folder for the output.")]
ModelOption = Annotated[str, typer.Option("-m", "--model", help="Name of an installed model, or a model file.")]
Genes = Annotated[
    list[str] | None,
    typer.Option(
        "--genes", help="Genes, separated by commas, or `reliable`: those the card calls so.", show_default="all"
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Processor threads.", show_default="all")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is already there.")]
Pitch = Annotated[
    float | None, typer.Option(help="Distance between spots, um.", show_default="the model's spot diameter")
]
LayoutOption = Annotated[str, typer.Option("--layout", help="Lattice of spots: square or hex.")]
SpotsFile = Annotated[
    Path | None,
    typer.Option(
        help="CSV with columns x and y, level-0 pixels: predict there; pitch, layout and tissue then do not matter."
    ),
]
MinTissue = Annotated[float, typer.Option(help="Smallest tissue fraction of a spot that is predicted.")]
EngineOption = Annotated[str, typer.Option("--engine", help="auto, tensorrt, compile, openvino or eager.")]
PrecisionOption = Annotated[
    str, typer.Option("--precision", help="auto, fp32, bf16, fp16, or, in openvino and never by itself, int8.")
]
MppOption = Annotated[
    float | None, typer.Option("--mpp", help="Micrometres per level-0 pixel, whatever the slide says.")
]
Upsampling = Annotated[
    bool, typer.Option("--allow-upsampling", help="Accept slides coarser than the model was trained on.")
]


BinUm = Annotated[
    float | None,
    typer.Option(
        "--bin-um", help="Pool the bins of Visium HD to squares of this side, um.", show_default="8 for smaller ones"
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="PATTERN",
        help="Pass over files and folders of this name, as '*_old.tif', or, with a slash, of this path in a folder; "
        "can be repeated.",
        show_default=False,
    ),
]


def split(texts: Sequence[str] | None, separators: str = ",") -> list[str]:
    """The parts of what was given for an option, each time that it was given."""
    parts = [part.strip() for text in texts or () for part in re.split(f"[{separators}]", text)]
    return [part for part in parts if part]


def parse_exclude(patterns: list[str] | None) -> list[str]:
    """Patterns of names and paths; a slash at the end, as of a folder, does not count."""
    if patterns and not all(pattern.strip("/") for pattern in patterns):
        raise UsageError("--exclude names no pattern.")
    return [pattern.removeprefix("./").rstrip("/") for pattern in patterns or []]


def demand_positive(given: dict[str, float | None]) -> None:
    """Raises UsageError for an option that was given no positive number."""
    for option, number in given.items():
        if number is not None and not 0 < number < math.inf:
            raise UsageError(f"{option} {number:g}: must be a positive number.")


def refuse(applies: bool, reason: str, given: dict[str, bool]) -> None:
    """Raises UsageError if the reason applies and one of the options was `given`."""
    wrong = [option for option, was_given in given.items() if was_given]
    if applies and wrong:
        raise UsageError(f"{', '.join(wrong)}: {reason}.")


def refuse_with_protocol(protocol: str | None, changed: dict[str, bool]) -> None:
    """Raises UsageError if a protocol was asked for and one of the options that it sets itself was `changed`."""
    given = [option for option, is_changed in changed.items() if is_changed]
    if protocol and given:
        raise UsageError(f"--protocol {protocol} has its own settings; leave {', '.join(given)} out.")


def parse_genes(texts: Sequence[str] | None) -> list[str]:
    genes = split(texts, ",;\t\n")
    if texts and not genes:
        raise UsageError("--genes names no gene.")
    return genes


def parse_layout(name: str) -> Literal["square", "hex"]:
    return one_of("--layout", name, ("square", "hex"))


def one_of(option: str, name: str, choices: Sequence[Choice]) -> Choice:
    for choice in choices:
        if name == choice:
            return choice
    raise UsageError(f"{option} {name}: choose from {', '.join(choices)}.")


def refuse_epochs(given: dict[str, bool]) -> None:
    """Raises UsageError for options of training epoch by epoch that were `given`, where a head is fitted at once."""
    wrong = [option for option, was_given in given.items() if was_given]
    if wrong:
        raise UsageError(f"{', '.join(wrong)}: not for a dictionary or an encoder, which is fitted at once.")
