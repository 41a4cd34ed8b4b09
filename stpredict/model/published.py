"""Bring published M2ORT and M2OST checkpoints (`.pth`) in as model files."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from stpredict.errors import ModelFileError, UsageError
from stpredict.model.file import can_name_files, check_card, save_model
from stpredict.networks import ARCHITECTURES, network_parameters
from stpredict.networks.m2ort import M2ORT, M2ORTConfig
from stpredict.networks.m2ost import M2OST, VIEWS, M2OSTConfig
from stpredict.networks.tensor_files import refuse_bomb
from stpredict.statistics.normalisation import NORMALISATIONS

VFrom = Literal["qkv3", "qkv2"]
HEAD_DIM = 64  # of every published variant; the shapes do not tell it

LAYER = r"transformer\.layers\.(?P<layer>\d+)"
#: Released names, and the names here. Level numbers begin at 1 there and at 0 here.
SHARED_NAMES = (
    (r"cls_token", "cls_token"),
    (r"to_patch_embedding(\d)\.1\.(\w+)", r"patch_embeddings.\1.norm.\2"),
    (r"to_patch_embedding(\d)\.2\.(\w+)", r"patch_embeddings.\1.expand.\2"),
    (r"to_patch_embedding(\d)\.4\.(\w+)", r"patch_embeddings.\1.project.\2"),
    (r"to_patch_embedding(\d)\.5\.(\w+)", r"patch_embeddings.\1.norm_out.\2"),
    (LAYER + r"\.0\.to_qkv(\d)\.(\w+)", r"encoders.\g<layer>.token_mixing.qkv.\2.\3"),
    (LAYER + r"\.0\.to_out(\d)\.0\.(\w+)", r"encoders.\g<layer>.token_mixing.out.\2.\3"),
    (r"transformer\.norm\.(\w+)", r"norm.\1"),
    (r"mlp_head\.(\w+)", r"head.\1"),
)
M2ORT_NAMES = (
    *SHARED_NAMES,
    (r"pos_embedding", "position_embedding"),
    (LAYER + r"\.0\.norm\.(\w+)", r"encoders.\g<layer>.token_norm.\2"),
    (LAYER + r"\.0\.to_out\.0\.(\w+)", r"encoders.\g<layer>.token_mixing.out.\2"),
    (LAYER + r"\.1\.net\.0\.(\w+)", r"encoders.\g<layer>.channel_norm.\2"),
    (LAYER + r"\.1\.net\.1\.(\w+)", r"encoders.\g<layer>.channel_mixing.squeeze.\2"),
    (LAYER + r"\.1\.net\.4\.(\w+)", r"encoders.\g<layer>.channel_mixing.expand.\2"),
)
M2OST_NAMES = (
    *SHARED_NAMES,
    (r"pos_embedding(\d)", r"position_embeddings.\1"),
    (LAYER + r"\.0\.norm\.(\w+)", r"encoders.\g<layer>.unused_norm.\2"),
    (LAYER + r"\.1\.split_mlp\.0\.(\w+)", r"encoders.\g<layer>.level_mlp.norm.\2"),
    (LAYER + r"\.1\.split_mlp\.1\.(\w+)", r"encoders.\g<layer>.level_mlp.squeeze.\2"),
    (LAYER + r"\.1\.split_mlp\.4\.(\w+)", r"encoders.\g<layer>.level_mlp.expand.\2"),
    # Of this part level numbers begin at 0 there, too.
    (LAYER + r"\.2\.norm\.(\w+)", r"encoders.\g<layer>.cross_level_mixing.norm.\2"),
    (LAYER + r"\.2\.to_([qkv])(\d)\.(\w+)", r"encoders.\g<layer>.cross_level_mixing.\2.\3.\4"),
    (LAYER + r"\.2\.to_out(\d)\.0\.(\w+)", r"encoders.\g<layer>.cross_level_mixing.out.\2.\3"),
    (LAYER + r"\.3\.net\.0\.(\w+)", r"encoders.\g<layer>.channel_mixing.norm.\2"),
    (LAYER + r"\.3\.net\.1\.(\w+)", r"encoders.\g<layer>.channel_mixing.squeeze.\2"),
    (LAYER + r"\.3\.net\.4\.(\w+)", r"encoders.\g<layer>.channel_mixing.expand.\2"),
)
LEVEL_NUMBERED = ("patch_embeddings.", "position_embeddings.", "token_mixing.qkv.", "token_mixing.out.")


def read_checkpoint(path: Path, v_from: VFrom = "qkv3", head_dim: int = HEAD_DIM) -> M2ORT | M2OST:
    """The network of a checkpoint. Nothing in the file is executed.

    Raises ModelFileError if it is not an M2ORT or M2OST checkpoint: pickled code, other keys, other shapes.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such checkpoint.")
    try:
        refuse_bomb(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except ModelFileError:
        raise
    except Exception as error:
        raise ModelFileError(
            f"{path.name}: not a checkpoint of plain tensors, or a damaged one; it was not opened."
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ModelFileError(f"{path.name}: holds no state dict of tensors.")
    released = {str(name).removeprefix("module."): tensor.float() for name, tensor in loaded.items()}
    is_m2ost = "pos_embedding1" in released
    if is_m2ost and v_from == "qkv2":
        raise ModelFileError(f"--v-from-qkv2: for M2ORT, but {path.name} is of M2OST.")
    names, system = (M2OST_NAMES, "M2OST") if is_m2ost else (M2ORT_NAMES, "M2ORT")
    tensors = {_renamed(name, names, path): tensor for name, tensor in released.items()}
    network: M2ORT | M2OST
    try:
        if is_m2ost:
            network = M2OST(_m2ost_config(tensors, head_dim))
        else:
            network = M2ORT(_m2ort_config(tensors, v_from, head_dim))
        network.load_state_dict(tensors)
    except (KeyError, RuntimeError, ValueError, ZeroDivisionError, IndexError) as error:
        reason = str(error).strip().splitlines()
        raise ModelFileError(
            f"{path.name}: not the tensors of an {system} ({' '.join(reason[:2]).strip()})."
        ) from error
    return network.eval()


def import_checkpoint(
    checkpoint: Path, genes: list[str], mpp: float, spot_diameter_um: float, pitch_um: float, out: Path,
    v_from: VFrom = "qkv3", head_dim: int = HEAD_DIM,
) -> dict[str, Any]:  # fmt: skip
    """Write a model file from a checkpoint and the names of its genes; returns the card.

    Raises ModelFileError as `read_checkpoint` does, and if the number of genes is another.
    """
    for option, value in (("mpp", mpp), ("spot-diameter", spot_diameter_um), ("pitch", pitch_um)):
        if not 0 < value < math.inf:
            raise ModelFileError(f"--{option} {value:g}: must be a positive number of micrometres.")
    if not can_name_files(out.stem):
        raise ModelFileError(f"{out}: {out.stem!r} cannot be a model's name.")
    network = read_checkpoint(checkpoint, v_from, head_dim)
    if len(genes) != network.config.n_genes:
        raise ModelFileError(f"{checkpoint.name}: predicts {network.config.n_genes} genes, but {len(genes)} are named.")
    parameters = network_parameters(network.config)
    card = {
        "name": out.stem,
        "architecture": _architecture(network.config),
        "parameters": parameters,
        "panel": genes,
        "patch_px": network.config.patch_px,
        "mpp": mpp,
        "spot_diameter_um": spot_diameter_um,
        "pitch_um": pitch_um,
        "pixel_scaling": "RGB uint8 / 255",
        "objective": "mse",
        "expression_unit": NORMALISATIONS["panel"].unit,  # as the released code trains
        "genes": {
            "training_mean": None,
            "training_spread": None,
            "display_range": None,
        },
        "training": {"imported_from": checkpoint.name, "licence": "of the published checkpoint; not restated here"},
        "held_out": [],
        "intended_use": "Research use only. Never tested by this program on held-out tissue.",
    }
    tensors = {name: tensor.numpy().astype(np.float32) for name, tensor in network.state_dict().items()}
    try:
        check_card(card, tensors)
    except ValueError as error:
        raise UsageError(f"{out}: a model file cannot hold this ({error}).") from error
    save_model(out, tensors, card)
    return card


def _renamed(name: str, names: Sequence[tuple[str, str]], path: Path) -> str:
    for pattern, replacement in names:
        match = re.fullmatch(pattern, name)
        if match:
            new = match.expand(replacement)
            for prefix in LEVEL_NUMBERED:
                new = re.sub(rf"({re.escape(prefix)})([1-9])(?=\.|$)", lambda m: f"{m[1]}{int(m[2]) - 1}", new)
            return new
    raise ModelFileError(f"{path.name}: not an M2ORT or M2OST checkpoint (it has a tensor {name[:60]!r}).")


def _m2ort_config(tensors: dict[str, Tensor], v_from: VFrom, head_dim: int) -> M2ORTConfig:
    """Read the sizes off the shapes."""
    joined, channels = tensors["head.weight"].shape[1], tensors["head.weight"].shape[1] // 3
    cross_level = "encoders.0.token_mixing.out.weight" in tensors
    inner = tensors["encoders.0.token_mixing.qkv.0.weight"].shape[0] // 3  # of one level
    token_px = round((tensors["patch_embeddings.0.norm.weight"].shape[0] / 3) ** 0.5)
    side = round((tensors["position_embedding"].shape[1] - 1) ** 0.5)
    if joined != 3 * channels or inner % head_dim:
        raise ValueError(f"a width of {inner} does not divide into attention heads of {head_dim}; see --head-dim")
    return M2ORTConfig(
        n_genes=tensors["head.weight"].shape[0],
        channels=channels,
        depth=_depth(tensors),
        heads=inner // head_dim,
        head_dim=head_dim,
        mlp_dim=tensors["encoders.0.channel_mixing.squeeze.weight"].shape[0],
        patch_px=side * token_px,
        token_px=token_px,
        mixing="cross_level" if cross_level else "per_level",
        v_from=v_from,
    )


def _m2ost_config(tensors: dict[str, Tensor], head_dim: int) -> M2OSTConfig:
    """Read the sizes off the shapes."""
    inner = tensors["encoders.0.token_mixing.qkv.0.weight"].shape[0] // 3
    cross = tensors["encoders.0.cross_level_mixing.q.0.weight"].shape[0]
    token_px = round((tensors["patch_embeddings.0.norm.weight"].shape[0] / 3) ** 0.5)
    if inner % head_dim or cross % head_dim:
        raise ValueError(
            f"widths of {inner} and {cross} do not divide into attention heads of {head_dim}; see --head-dim"
        )
    return M2OSTConfig(
        n_genes=tensors["head.weight"].shape[0],
        views=VIEWS,
        channels=tensors["cls_token"].shape[-1],
        depth=_depth(tensors),
        heads=inner // head_dim,
        head_dim=head_dim,
        cross_heads=cross // head_dim,
        patch_px=round((tensors["position_embeddings.0"].shape[1] - 1) ** 0.5) * token_px,
        token_px=token_px,
    )


def _depth(tensors: dict[str, Tensor]) -> int:
    return 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("encoders."))


def _architecture(config: M2ORTConfig | M2OSTConfig) -> str:
    if isinstance(config, M2OSTConfig):
        return "m2ost" if config == M2OSTConfig(config.n_genes, VIEWS) else "m2ost-custom"
    for name, sizes in ARCHITECTURES.items():
        if "network" not in sizes and all(getattr(config, key) == value for key, value in sizes.items()):
            return name
    return f"m2ort-{'cross' if config.mixing == 'cross_level' else 'custom'}"
