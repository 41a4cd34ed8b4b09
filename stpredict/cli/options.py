"""Options that several commands share, and functions that read their values."""

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
    if not str(text):  # as a path, it would be the working folder
        raise typer.BadParameter("names no folder.")
    return Path(text)


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs, and nothing else.")]
Out = Annotated[Path, typer.Option("-o", "--out", metavar="PATH", parser=_folder, help="Folder for the output.")]
ModelOption = Annotated[str, typer.Option("-m", "--model", help="Name of an installed model, or a model file.")]
Genes = Annotated[
    list[str] | None,
    typer.Option(
        "--genes",
        help="Genes, separated by commas; or `reliable`, the reliable ones by the model's card; or `all`.",
        show_default="all, of up to 2,000",
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
        help="Predict at the positions of this CSV, columns x and y in level-0 pixels, whatever lattice and tissue say."
    ),
]
MinTissue = Annotated[float, typer.Option(help="Leave out spots with a smaller fraction of tissue.")]
EngineOption = Annotated[str, typer.Option("--engine", help="auto, tensorrt, compile, openvino or eager.")]
PrecisionOption = Annotated[
    str, typer.Option("--precision", help="auto, fp32, bf16, fp16; or int8, in openvino alone, which auto never takes.")
]
MppOption = Annotated[
    float | None, typer.Option("--mpp", help="Micrometres per level-0 pixel, whatever the slide says.")
]
Upsampling = Annotated[
    bool, typer.Option("--allow-upsampling", help="Accept slides coarser than the model was trained on.")
]


Where = Annotated[
    str | None,
    typer.Option(
        help="Read only sections whose columns in the data set satisfy this, as in 'organ=Breast and "
        "st_technology in (Visium, Xenium)'.",
        show_default="all",
    ),
]
Species = Annotated[
    str | None,
    typer.Option(
        help="Read only human or mouse sections; or all, which joins genes of two species that are spelt alike.",
        show_default="refused where there are several",
    ),
]
Orthologs = Annotated[
    Path | None,
    typer.Option(
        help="A table of two columns: genes of the first get the names in the second.",
        show_default=False,
    ),
]
SkipBroken = Annotated[
    bool,
    typer.Option(
        "--skip-broken", help="Leave out sections that cannot be read; a table names them, and the exit code is 1."
    ),
]
SkipBrokenSlides = Annotated[
    bool,
    typer.Option(
        "--skip-broken",
        help="Leave out sections that cannot be read, and slides of --tissue that cannot be used; tables name them, "
        "and the exit code is 1.",
    ),
]
BinUm = Annotated[
    float | None,
    typer.Option(
        "--bin-um", help="Pool the bins of Visium HD to squares of this side, um.", show_default="8 for smaller ones"
    ),
]
PATCH_FORMATS: tuple[Literal["raw", "jpeg"], ...] = ("raw", "jpeg")
PatchFormat = Annotated[
    str,
    typer.Option(
        "--patch-format",
        help="How the patches of a data set are stored: raw, their pixels, or jpeg, which loses a little and takes a "
        "sixth of the disk.",
    ),
]
Tissue = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="SLIDES",
        help="Cut unlabelled patches also from slides without counts: a slide, a folder of slides, or a table with the "
        "column image, and patient and mpp where known; can be repeated.",
        show_default=False,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="PATTERN",
        help="Skip files and folders of this name, as '*_old.tif', or, with a slash, of this path in a folder; "
        "can be repeated.",
        show_default=False,
    ),
]


def split(texts: Sequence[str] | None, separators: str = ",") -> list[str]:
    """The parts of an option's values, over all the times that the option was given."""
    parts = [part.strip() for text in texts or () for part in re.split(f"[{separators}]", text)]
    return [part for part in parts if part]


def parse_exclude(patterns: list[str] | None) -> list[str]:
    """Patterns of names and paths, without the slash that may follow a folder's name."""
    if patterns and not all(pattern.strip("/") for pattern in patterns):
        raise UsageError("--exclude names no pattern.")
    return [pattern.removeprefix("./").rstrip("/") for pattern in patterns or []]


def demand_positive(given: dict[str, float | None]) -> None:
    """Raises UsageError for an option whose value is not a positive number."""
    for option, number in given.items():
        if number is not None and not 0 < number < math.inf:
            raise UsageError(f"{option} {number:g}: must be a positive number.")


def refuse(applies: bool, reason: str, given: dict[str, bool]) -> None:
    """Raises UsageError if the reason applies and one of the options was `given`."""
    wrong = [option for option, was_given in given.items() if was_given]
    if applies and wrong:
        raise UsageError(f"{', '.join(wrong)}: {reason}.")


def refuse_with_protocol(protocol: str | None, changed: dict[str, bool]) -> None:
    """Raises UsageError if a protocol was given and an option that the protocol sets was `changed`."""
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
    """Raises UsageError if options of training by epochs were `given`, but a head is fitted at once."""
    wrong = [option for option, was_given in given.items() if was_given]
    if wrong:
        raise UsageError(f"{', '.join(wrong)}: not for a dictionary or an encoder, which is fitted at once.")
