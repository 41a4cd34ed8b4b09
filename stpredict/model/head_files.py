"""Read from its file a head that somebody fitted to an encoder's features. No code in a file of tensors is executed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from stpredict.errors import ModelFileError, UsageError, first_line, some
from stpredict.networks.encoder_files import EXPORTED, SCRIPTED, file_sha256, open_program
from stpredict.networks.published_head import ACTIVATIONS, Activation, HeadConfig, LayersConfig, ProgramConfig
from stpredict.networks.tensor_files import read_tensors, refuse_bomb, refuse_pretenders, refuse_values

TENSORS, ARRAYS = (".safetensors", ".bin", ".pth"), (".npz",)
#: Names of a linear model's arrays in an `.npz`, scikit-learn's first.
NAMES = {
    "coef": ("coef_", "coef", "weight", "W"),
    "intercept": ("intercept_", "intercept", "bias", "b"),
    "mean": ("mean_", "feature_mean", "mean"),
    "scale": ("scale_", "feature_scale", "scale"),
}


@dataclass(frozen=True)
class ReadHead:
    """A head: its configuration, its tensors under the network's names, and the mean and scale of its features."""

    config: HeadConfig
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    feature_mean: Tensor | None = None
    feature_scale: Tensor | None = None  # factor on features less their mean


def read_head(
    path: Path, n_features: int, n_genes: int, activation: str | None = None, last_activation: str = "none",
    layers: Sequence[str] = (),
) -> ReadHead:  # fmt: skip
    """A head for an encoder of `n_features` and a list of `n_genes`.

    `activation` and the order of `layers` are needed for an MLP, whose file of tensors does not contain them.
    Raises ModelFileError for a file that is no head, or has another width or number of genes; UsageError for options
    that do not fit the file.
    """
    for option, name in (("--activation", activation), ("--last-activation", last_activation)):
        if name is not None and name not in ACTIVATIONS:
            raise UsageError(f"{option} {name}: choose one of {', '.join(ACTIVATIONS)}.")
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file of a head.")
    refuse_pretenders(path)
    if path.suffix in (*EXPORTED, *SCRIPTED):
        if activation or layers or last_activation != "none":
            raise UsageError(f"{path.name}: a program has its own activations and layers; leave these options out.")
        return read_program(path, n_features, n_genes)
    if path.suffix in ARRAYS:
        if activation or layers:
            raise UsageError(f"{path.name}: a linear model; leave --activation and --layers out.")
        return read_linear_model(path, n_features, n_genes, last_activation)
    if path.suffix in TENSORS:
        return read_layers(path, n_features, n_genes, activation, last_activation, layers)
    raise ModelFileError(
        f"{path.name}: not a head's file; take .pt2 of torch.export.save, TorchScript (.pt), a state dict of a linear "
        "layer or an MLP (.safetensors), or .npz of a linear model with coef_ and intercept_. "
        "Pickles (.pkl, .joblib) are not read: `np.savez('head.npz', coef_=model.coef_, intercept_=model.intercept_)` "
        "makes of a scikit-learn model what is."
    )


def read_program(path: Path, n_features: int, n_genes: int) -> ReadHead:
    """Raises ModelFileError for a program that does not give a row of so many genes for each row of features."""
    program = open_program(path, "a head")
    try:
        with torch.inference_mode():
            shapes = [tuple(program(torch.zeros(n, n_features)).shape) for n in (2, 3)]
    except Exception as error:  # the program may raise anything
        raise ModelFileError(
            f"{path.name}: does not take rows of the encoder's {n_features} features, any number of them "
            f"({first_line(error)})."
        ) from error
    if shapes != [(2, n_genes), (3, n_genes)]:
        raise ModelFileError(f"{path.name}: gives {shapes[0]} of 2 patches, but {n_genes} genes are named.")
    return ReadHead(ProgramConfig(path.name, file_sha256(path)))


def read_linear_model(path: Path, n_features: int, n_genes: int, last_activation: str) -> ReadHead:
    """Ridge or another linear model of scikit-learn: `coef_`, genes x features, `intercept_`, and a scaler's arrays."""
    try:
        refuse_bomb(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name], dtype=np.float64) for name in file.files}
    except ModelFileError:
        raise
    except Exception as error:  # numpy stumbles over a damaged file in many ways
        raise ModelFileError(
            f"{path.name}: cannot be read as arrays of numbers ({first_line(error)}); pickled objects are not read."
        ) from error
    found = {what: next((arrays[n] for n in names if n in arrays), None) for what, names in NAMES.items()}
    coef = found["coef"]
    if coef is None:
        raise ModelFileError(f"{path.name}: has no array coef_ (genes x features), but {some(arrays)}.")
    coef = np.atleast_2d(coef)
    if coef.shape != (n_genes, n_features) and coef.shape == (n_features, n_genes):
        coef = coef.T
    if coef.shape != (n_genes, n_features):
        raise ModelFileError(misfit(path, coef.shape[::-1], n_features, n_genes))
    intercept = np.zeros(n_genes) if found["intercept"] is None else found["intercept"].ravel()
    if len(intercept) not in (1, n_genes):
        raise ModelFileError(f"{path.name}: its intercept is of {len(intercept)} genes, but {n_genes} are named.")
    intercept = np.broadcast_to(intercept, (n_genes,)).copy()
    standardised = {}
    for what in ("mean", "scale"):
        values = found[what]
        if values is not None and values.shape != (n_features,):
            raise ModelFileError(
                f"{path.name}: its {what} is of {values.size} features, not the encoder's {n_features}."
            )
        standardised[what] = values
    scale = standardised["scale"]
    if scale is not None and not (scale != 0).all():
        raise ModelFileError(f"{path.name}: its scaler divides by 0.")
    tensors = {"last.weight": torch.tensor(coef).float(), "last.bias": torch.tensor(intercept).float()}
    refuse_values(path, tensors.values())
    mean = standardised["mean"]
    return ReadHead(
        LayersConfig((), "none", chosen(last_activation)),
        tensors,
        None if mean is None else torch.tensor(mean).float(),
        None if scale is None else torch.tensor(1 / scale).float(),
    )


def read_layers(
    path: Path, n_features: int, n_genes: int, activation: str | None, last_activation: str, layers: Sequence[str]
) -> ReadHead:
    """A linear layer or an MLP, with its sizes from the shapes. For several layers, `activation` must be given."""
    tensors = read_tensors(path)
    refuse_values(path, tensors.values())
    weights = {
        name.removesuffix("weight").removesuffix("."): tensor
        for name, tensor in tensors.items()
        if tensor.ndim == 2 and name.rpartition(".")[2] == "weight"
    }
    biases = {name: tensors.get(f"{name}.bias" if name else "bias") for name in weights}
    n_used = len(weights) + sum(bias is not None for bias in biases.values())
    if not weights or n_used != len(tensors):
        known = {f"{n}.{part}".lstrip(".") for n in weights for part in ("weight", "bias")}
        others = some(sorted(set(tensors) - known)) or "no tensors"
        raise ModelFileError(
            f"{path.name}: not a linear layer or an MLP of those alone (it has {others}); export the head as .pt2."
        )
    order = list(layers) or sorted(weights, key=natural)
    if set(order) != set(weights) or len(order) != len(weights):
        raise UsageError(f"--layers: names {some(order)}; {path.name} has {some(sorted(weights, key=natural))}.")
    chain = [n_features, *(weights[name].shape[0] for name in order)]
    fits = [weights[name].shape[1] for name in order] == chain[:-1]
    if len(order) == 1 or fits or weights[order[0]].shape[1] != n_features:
        widths = (weights[order[0]].shape[1], weights[order[-1]].shape[0])
        if widths != (n_features, n_genes):
            raise ModelFileError(misfit(path, widths, n_features, n_genes))
    if not fits:
        raise UsageError(
            f"{path.name}: its layers do not follow one another as {some(order)}; --layers tells the order."
        )
    if len(order) > 1 and activation is None:
        raise UsageError(f"{path.name}: has {len(order)} layers; --activation tells what lies between them.")
    named = [*(f"hidden.{i}" for i in range(len(order) - 1)), "last"]
    state = {}
    for ours, theirs in zip(named, order, strict=True):
        bias = biases[theirs]
        state[f"{ours}.weight"] = weights[theirs].float()
        state[f"{ours}.bias"] = torch.zeros(len(weights[theirs])) if bias is None else bias.float()
    return ReadHead(LayersConfig(tuple(chain[1:-1]), chosen(activation or "none"), chosen(last_activation)), state)


def chosen(name: str) -> Activation:
    """A name of ACTIVATIONS as its type."""
    return next(known for known in get_args(Activation) if known == name)


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts layer2 before layer10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def misfit(path: Path, found: Sequence[int], n_features: int, n_genes: int) -> str:
    """One sentence on a head whose numbers of features and genes differ from those of encoder and list."""
    reads, gives = found
    if reads != n_features:
        return f"{path.name}: reads {reads} features, but the encoder gives {n_features}; it is another encoder's head."
    return f"{path.name}: predicts {gives} genes, but {n_genes} are named."
