"""Read a timm checkpoint, with the `config.json` that its repository has beside it, or with what is usual."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import Tensor

from stpredict.errors import ModelFileError
from stpredict.networks.tensor_files import read_tensors
from stpredict.networks.timm_vit import ViTReading

Choice = TypeVar("Choice", bound=str)
CONFIG = "config.json"
MAX_CONFIG_BYTES = 1 << 20
HEAD_WIDTH = 64
#: Of timm's Vision Transformers of these widths, whose heads are not 64 wide.
HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}
#: Architectures of timm's with the same names of tensors that compute otherwise, or have other heads.
OTHERS = ("quickgelu", "siglip", "_rpn_", "_pe_", "beit3", "vit_base_patch16_gap_224", "test_vit")
#: Arguments of timm's that change what is computed without a trace in names and shapes.
UNTRACED = ("attn_layer", "block_fn", "dynamic_img_pad", "embed_layer", "norm_layer", "pool_include_prefix")
POOLINGS: dict[str, Literal["token", "mean"]] = {"": "token", "token": "token", "avg": "mean"}
ACTIVATIONS: dict[str, Literal["gelu", "silu"]] = {"gelu": "gelu", "silu": "silu", "swish": "silu"}
MLPS = {name: name for name in ("mlp", "swiglupacked")}
#: Tensors that every Vision Transformer of timm's has.
KNOWN = ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight")
LONGEST_LICENCE = 100


@dataclass(frozen=True)
class TimmDescription:
    """How a checkpoint is to be read, and what else its `config.json` says; `mean` and `std` are of RGB in 0..1.

    There is no `reading` where names and shapes tell all. `kind` names the network.
    """

    reading: ViTReading | None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    licence: str | None = None
    kind: str = "a Vision Transformer"


def describe_checkpoint(path: Path) -> TimmDescription:
    """What is known of a timm Vision Transformer's weights, from their shapes and the `config.json` beside them.

    Raises ModelFileError, with what to do instead, for weights of another network, and for a `config.json` that cannot
    be read or is of another network.
    """
    tensors = read_tensors(path)
    try:
        check_names(tensors)
        return describe_tensors(tensors, read_config(path.with_name(CONFIG)))
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise not_a_vit(path, error) from error


def not_a_vit(path: Path, reason: Exception) -> ModelFileError:
    return ModelFileError(
        f"{path.name}: not read as a timm Vision Transformer ({reason}); export it instead, as docs/train.md shows."
    )


def read_config(path: Path) -> Mapping[str, Any] | None:
    """None where there is no such file. Raises ModelFileError if timm did not write it."""
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError("it is too large")
        config = json.loads(path.read_text())
        if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
            raise ValueError("it names no architecture of timm's")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: cannot be read as what timm saves beside weights ({error}).") from error
    return config


def check_names(tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError, in words, for tensors that are certainly not those of a network here."""
    for name in KNOWN:
        if name not in tensors:
            raise ValueError(f"it has no tensor {name}")
    if "attn_pool.latent" in tensors:
        raise ValueError("it pools by attention")


def describe_tensors(tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> TimmDescription:
    """Raises ValueError, in words, for what `config` asks for and is not here."""
    width = tensors["patch_embed.proj.weight"].shape[0]
    said = config or {}
    args = mapping(said.get("model_args"))
    architecture = said.get("architecture", "")
    if any(name in architecture for name in OTHERS):
        raise ValueError(f"{architecture} computes otherwise")
    if said.get("num_features", width) != width:
        raise ValueError(f"its {CONFIG} is of a network that is {said['num_features']} wide, and it is {width}")
    for name in UNTRACED:
        if args.get(name):
            raise ValueError(f"its {CONFIG} asks for {name} {args[name]}")
    one_of_known(MLPS, "mlp_layer", args.get("mlp_layer"), "mlp")  # which of them, the tensors tell
    gated = tensors["blocks.0.mlp.fc1.weight"].shape[0] != tensors["blocks.0.mlp.fc2.weight"].shape[1]
    reading = ViTReading(
        find_heads(width, args),
        pooling=one_of_known(
            POOLINGS, "global_pool", args.get("global_pool", said.get("global_pool")), pooled_by_default(tensors)
        ),
        activation=one_of_known(ACTIVATIONS, "act_layer", args.get("act_layer"), "silu" if gated else "gelu"),
        # timm's networks that have a norm before the first block, CLIP's, have larger ones throughout.
        epsilon=1e-5 if "norm_pre.weight" in tensors else 1e-6,
        told_by="assumed" if config is None else "config.json",
    )
    pretrained = mapping(said.get("pretrained_cfg")) or said  # of older ones, which have all in one place
    licence = pretrained.get("license")
    return TimmDescription(
        reading,
        mean=three(pretrained, "mean", 0),
        std=three(pretrained, "std", 0.01),
        licence=licence if isinstance(licence, str) and 0 < len(licence) <= LONGEST_LICENCE else None,
    )


def mapping(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {}


def find_heads(width: int, args: Mapping[str, Any]) -> int:
    """As many as `config.json` says, or as timm's networks of this width have."""
    heads = args.get("num_heads", HEADS.get(width))
    if heads is None:
        if width % HEAD_WIDTH:
            raise ValueError(f"its width of {width} does not tell the number of heads; num_heads in {CONFIG} would")
        heads = width // HEAD_WIDTH
    if not isinstance(heads, int) or not 0 < heads <= width or width % heads:
        raise ValueError(f"its width of {width} does not divide into {heads} heads")
    return heads


def pooled_by_default(tensors: Mapping[str, Tensor]) -> str:
    """timm has a norm after pooling where it takes the mean."""
    return "avg" if "fc_norm.weight" in tensors or "cls_token" not in tensors else "token"


def one_of_known(known: Mapping[str, Choice], what: str, said: object, otherwise: str) -> Choice:
    """What `config.json` says of something, or else what is usual. Raises ValueError for what is not known here."""
    name = otherwise if said is None else str(said).rpartition(".")[2].lower()
    if name not in known:
        raise ValueError(f"its {CONFIG} asks for {what} {said}")
    return known[name]


def three(config: Mapping[str, Any], key: str, least: float) -> tuple[float, ...] | None:
    """Three numbers from `least` to 1, or None if there is no such entry. Raises ValueError for others."""
    numbers = config.get(key)
    if numbers is None:
        return None
    valid = isinstance(numbers, list) and len(numbers) == 3 and all(isinstance(x, int | float) for x in numbers)
    if not valid or not all(math.isfinite(x) and least <= x <= 1 for x in numbers):
        raise ValueError(f"its {CONFIG} has the {key} {numbers}, not three numbers from {least:g} to 1")
    return tuple(float(x) for x in numbers)
