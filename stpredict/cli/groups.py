"""The groups in which help lists the options of commands that have many: first the five that most people need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

#: Per command, titles and long option names in order. Help lists all other options last, as "Other options".
GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "predict": {
        "Options": ("genes", "model", "out", "mpp", "render"),
        "Spots": ("pitch", "layout", "spots", "min-tissue", "mask", "mask-origin", "allow-upsampling"),
        "What is predicted": ("relative", "tta"),
        "Many slides": ("exclude", "anonymous", "cluster", "overwrite", "dry-run", "strict", "verbose", "log-json"),
        "Machine": ("engine", "precision", "device", "batch-size", "threads"),
    },
    "train": {
        "Options": ("out", "arch", "encoder", "folds", "config"),
        "Genes and expression": (
            "genes-file", "panel", "panel-size", "min-sections", "genes-required", "normalisation", "counts-only",
            "smooth-labels",
        ),
        "Tests on held-out tissue": ("hold-out", "allow-patient-leak", "protocol", "min-depth"),
        "Encoders and weights": (
            "encoder-mean", "encoder-std", "encoder-licence", "stain", "encoder-weights", "region-weights",
            "attach-teacher",
        ),
        "How it is trained": (
            "recipe", "objective", "head", "epochs", "batch-size", "accumulate", "balance", "learning-rate",
            "stain-jitter", "seed",
        ),
        "Teaching on unlabelled tissue": (
            "unlabelled", "tissue", "teach", "teacher", "teach-patches", "teach-learning-rate",
        ),
        "Data": (
            "mpp", "patch-um", "bin-um", "where", "species", "orthologs", "skip-broken", "licence", "anonymous",
        ),
        "Machine": ("device", "threads", "only", "dry-run", "overwrite"),
    },
    "compare": {
        "Options": ("arch", "out", "folds", "seeds", "config"),
        "Genes": ("genes-file", "panel", "panel-size"),
        "Tests on held-out tissue": ("hold-out", "allow-patient-leak", "protocol", "min-depth"),
        "How they are trained": (
            "recipe", "objective", "encoder-weights", "region-weights", "epochs", "batch-size", "balance",
            "learning-rate", "unlabelled", "teach-patches",
        ),
        "Data": ("mpp", "bin-um", "where", "species", "orthologs", "skip-broken"),
        "Machine": ("device", "threads", "cluster", "overwrite"),
    },
    "evaluate": {
        "Options": ("out", "min-depth", "allow-patient-leak", "json", "overwrite"),
        "Other scores": ("protocol",),
        "Data": ("where", "species", "orthologs", "skip-broken"),
        "Machine": ("engine", "precision", "device", "threads"),
    },
    "render": {
        "Options": ("genes", "style", "out", "slide", "scale-from"),
        "Colours": ("cmap", "scale", "vmin", "vmax", "opacity"),
        "Pictures": ("smooth", "downsample", "origin", "gzip"),
        "Files": ("exclude", "overwrite"),
    },
}  # fmt: skip
OTHERS = "Other options"


def in_groups(command: str, parameters: Iterable[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Titles and the parameters below each: arguments, then the groups of a command, then the rest."""
    arguments, options = [], {}
    for parameter in parameters:
        if parameter.param_type_name == "argument":
            arguments.append(parameter)
        else:
            options[long_name(parameter)] = parameter
    yield "Arguments", arguments
    groups = GROUPS.get(command, {})
    for title, names in groups.items():
        yield title, [options.pop(name) for name in names if name in options]
    yield OTHERS if groups else "Options", list(options.values())


def long_name(parameter: Any) -> str:
    """An option's long name without dashes, or an argument's name."""
    if parameter.param_type_name == "argument":
        return str(parameter.name)
    return str(max(parameter.opts, key=len)).removeprefix("--")
