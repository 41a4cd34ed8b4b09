"""Weights of encoders that are published as tensors: which network they are of, and how that is read.

A Vision Transformer under timm's names or, as Midnight, Hibou and Phikon-v2, under those of `transformers`; CTransPath;
a ResNet or a DenseNet under torchvision's names, which are timm's too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stpredict.errors import ModelFileError
from stpredict.networks import dinov2
from stpredict.networks.tensor_files import read_tensors
from stpredict.networks.timm_config import CONFIG, MAX_CONFIG_BYTES, TimmDescription, describe_checkpoint, three
from stpredict.networks.timm_vit import ViTReading, build_vit
from stpredict.networks.trunks import swin
from stpredict.networks.trunks.densenet import densenet_of
from stpredict.networks.trunks.resnet import resnet_of

PREPROCESSOR = "preprocessor_config.json"  # of `transformers`
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Convolutions:
    """Networks whose sizes and whose way of reading their tensors tell by themselves.

    `known` is a tensor that none but they have, behind whatever stands before all; `classifier` what is left out.
    """

    name: str
    known: str
    classifier: tuple[str, ...]
    build: Callable[[Mapping[str, Tensor], int], nn.Module]


SELF_TOLD = (
    Convolutions("a Swin Transformer behind convolutions, as CTransPath is", swin.KNOWN, ("head.",), swin.build_swin),
    Convolutions("a ResNet", "layer1.0.conv1.weight", ("fc.",), lambda tensors, _px: resnet_of(tensors)),
    Convolutions(
        "a DenseNet",
        "features.denseblock1.denselayer1.conv1.weight",
        ("classifier.",),
        lambda tensors, _px: densenet_of(tensors),
    ),
)


def describe_weights(path: Path) -> TimmDescription:
    """What is known of an encoder's weights, from their names and shapes and what lies beside them.

    Raises ModelFileError, with what to do instead, for weights of another network, and for a file beside them that
    cannot be read or is of another network.
    """
    tensors = read_tensors(path)
    if kind := _self_told(tensors):
        return TimmDescription(None, kind=kind.name)
    if not dinov2.is_dinov2(tensors):
        return describe_checkpoint(path)
    try:
        named = dinov2.timm_names(tensors)
        reading = dinov2.describe_dinov2(named, _read_json(path.with_name(CONFIG)))
        pixels = _read_json(path.with_name(PREPROCESSOR)) or {}
        return TimmDescription(
            reading, three(pixels, "image_mean", 0), three(pixels, "image_std", 0.01), kind="a Dinov2 of `transformers`"
        )
    except (ValueError, IndexError, KeyError, ZeroDivisionError) as error:
        raise _refusal(path, error) from error


def open_weights(path: Path, reading: ViTReading | None, patch_px: int) -> nn.Module:
    """The network of an encoder's weights, ready to run, for patches of `patch_px`.

    A Vision Transformer is read as `reading` says. Raises ModelFileError as `describe_weights` does.
    """
    tensors = read_tensors(path)
    kind = _self_told(tensors)
    try:
        if kind is not None:
            network = kind.build(_without(tensors, kind), patch_px)
        else:
            reading = reading or describe_weights(path).reading
            assert reading is not None, "only of networks that tell all by themselves"
            named = dinov2.timm_names(tensors) if dinov2.is_dinov2(tensors) else tensors
            network = build_vit(named, reading, patch_px)
    except (ValueError, IndexError, KeyError, ZeroDivisionError, RuntimeError) as error:
        raise _refusal(path, error) from error
    if not all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values()):
        raise ModelFileError(f"{path.name}: some of its weights are not finite.")
    return network.eval()


def _self_told(tensors: Mapping[str, Tensor]) -> Convolutions | None:
    return next((kind for kind in SELF_TOLD if any(name.endswith(kind.known) for name in tensors)), None)


def _without(tensors: Tensors, kind: Convolutions) -> Tensors:
    """The tensors without what stands before all their names, and without a classifier."""
    prefix = next(name.removesuffix(kind.known) for name in tensors if name.endswith(kind.known))
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name: tensor for name, tensor in own.items() if not name.startswith(kind.classifier)}


def _refusal(path: Path, reason: Exception) -> ModelFileError:
    said = "; ".join(line.strip() for line in str(reason).splitlines()[:2])
    return ModelFileError(
        f"{path.name}: not read as an encoder's weights ({said}); export it instead, as docs/train.md shows."
    )


def _read_json(path: Path) -> Mapping[str, Any] | None:
    """None where there is no such file. Raises ModelFileError if it holds no settings."""
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError("it is too large")
        said = json.loads(path.read_text())
        if not isinstance(said, dict):
            raise ValueError("it holds no settings")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: cannot be read as what is saved beside weights ({error}).") from error
    return said
