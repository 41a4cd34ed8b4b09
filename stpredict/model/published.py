"""Import published checkpoints as model files: M2ORT, M2OST and networks of one patch, by their released names."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from stpredict.errors import ModelFileError, UsageError
from stpredict.model.card import PIXEL_SCALING
from stpredict.model.file import can_name_files, check_card, save_model
from stpredict.model.released_banks import (
    BLEEP_UNIT,
    EGN_UNIT,
    BankRequest,
    give_bank,
    is_bank_network,
    read_bank_network,
)
from stpredict.model.released_sections import read_section_network
from stpredict.model.released_sections import system_of as section_system_of
from stpredict.model.released_trunks import read_patch_network, system_of
from stpredict.networks import (
    ARCHITECTURES,
    BankNetwork,
    Config,
    SectionNetwork,
    describe_bank,
    network_parameters,
)
from stpredict.networks.bleep import BleepConfig
from stpredict.networks.egn import EgnConfig
from stpredict.networks.hist2st import Hist2STConfig
from stpredict.networks.histogene import HisToGeneConfig
from stpredict.networks.m2ort import M2ORT, M2ORTConfig, Mixing
from stpredict.networks.m2ost import M2OST, VIEWS, M2OSTConfig
from stpredict.networks.patch_level import PatchConfig, PatchNetwork
from stpredict.networks.tensor_files import read_tensors
from stpredict.statistics.normalisation import NORMALISATIONS

VFrom = Literal["qkv3", "qkv2"]
#: Units of networks that were trained by their authors' code. The file of any other network does not say its unit.
UNITS = {
    **dict.fromkeys(("m2ort", "m2ost"), NORMALISATIONS["panel"].unit),
    **dict.fromkeys(("histogene", "hist2st"), NORMALISATIONS["panel-1e4"].unit),
    "patch": "as its authors trained it",
    "bleep": BLEEP_UNIT,
    "egn": EGN_UNIT,
}
LICENCE = "of the published checkpoint; not restated here"
#: Tensors that only networks of HIPT have, among those whose checkpoints can be imported.
HIPTS = ("phi.0.weight",)
HEAD_DIM = 64  # the same in every published variant; shapes do not reveal it

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
    (LAYER + r"\.0\.to_qkv\.(\w+)", r"encoders.\g<layer>.token_mixing.qkv.\2"),
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
    # In this part, released level numbers begin at 0, too.
    (LAYER + r"\.2\.norm\.(\w+)", r"encoders.\g<layer>.cross_level_mixing.norm.\2"),
    (LAYER + r"\.2\.to_([qkv])(\d)\.(\w+)", r"encoders.\g<layer>.cross_level_mixing.\2.\3.\4"),
    (LAYER + r"\.2\.to_out(\d)\.0\.(\w+)", r"encoders.\g<layer>.cross_level_mixing.out.\2.\3"),
    (LAYER + r"\.3\.net\.0\.(\w+)", r"encoders.\g<layer>.channel_mixing.norm.\2"),
    (LAYER + r"\.3\.net\.1\.(\w+)", r"encoders.\g<layer>.channel_mixing.squeeze.\2"),
    (LAYER + r"\.3\.net\.4\.(\w+)", r"encoders.\g<layer>.channel_mixing.expand.\2"),
)
LEVEL_NUMBERED = ("patch_embeddings.", "position_embeddings.", "token_mixing.qkv.", "token_mixing.out.")


Imported = M2ORT | M2OST | SectionNetwork | PatchNetwork | BankNetwork


def read_checkpoint(path: Path, v_from: VFrom = "qkv3", head_dim: int = HEAD_DIM) -> Imported:
    """The network of a checkpoint, which the names of its tensors identify. Nothing in the file is executed.

    Raises ModelFileError if it is no released checkpoint: pickled code, other keys, other shapes.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such checkpoint.")
    try:
        loaded = read_tensors(path)
    except ModelFileError as error:
        if error.__cause__ is None:  # the message is complete, as for a file that unpacks to far more
            raise
        raise ModelFileError(
            f"{path.name}: not a checkpoint of plain tensors, or a damaged one; it was not opened."
        ) from error
    if not loaded:
        raise ModelFileError(f"{path.name}: holds no state dict of tensors, so it is no checkpoint.")
    released = {name.removeprefix("module."): tensor.float() for name, tensor in loaded.items()}
    if is_bank_network(released):
        try:
            return read_bank_network(released, head_dim).eval()
        except (KeyError, RuntimeError, ValueError, IndexError, ZeroDivisionError) as error:
            raise ModelFileError(f"{path.name}: not the tensors of a BLEEP or EGN ({_reason(error)}).") from error
    if any(name.removeprefix("teacher.").removeprefix("backbone.") in HIPTS for name in released):
        raise ModelFileError(
            f"{path.name}: a network of HIPT, which predicts nothing by itself; train --arch hipt or istar reads it."
        )
    try:
        section_network = read_section_network(released, head_dim)
    except (KeyError, RuntimeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise ModelFileError(f"{path.name}: not the tensors of a HisToGene or Hist2ST ({_reason(error)}).") from error
    if section_network:
        return section_network.eval()
    try:
        found = read_patch_network(released)
    except (KeyError, RuntimeError, ValueError, IndexError) as error:
        raise ModelFileError(f"{path.name}: not the tensors of a network of one patch ({_reason(error)}).") from error
    if found:
        return found.eval()
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
        raise ModelFileError(f"{path.name}: not the tensors of an {system} ({_reason(error)}).") from error
    return network.eval()


def _reason(error: Exception) -> str:
    """The first lines of torch's message."""
    return " ".join(str(error).strip().splitlines()[:2]).strip()


def import_checkpoint(
    checkpoint: Path, genes: list[str], mpp: float, spot_diameter_um: float, pitch_um: float, out: Path,
    v_from: VFrom = "qkv3", head_dim: int = HEAD_DIM, bank: BankRequest | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write a model file from a checkpoint and the names of its genes; returns the card.

    BLEEP and EGN look up measured spots, the `bank`. Raises ModelFileError as `read_checkpoint` and `give_bank` do, and
    if the number of genes differs, a bank is missing, or another network is given a bank.
    """
    for option, value in (("mpp", mpp), ("spot-diameter", spot_diameter_um), ("pitch", pitch_um)):
        if not 0 < value < math.inf:
            raise ModelFileError(f"--{option} {value:g}: must be a positive number of micrometres.")
    if not can_name_files(out.stem):
        raise ModelFileError(f"{out}: {out.stem!r} cannot be a model's name.")
    network = read_checkpoint(checkpoint, v_from, head_dim)
    if len(genes) != network.config.n_genes:
        raise ModelFileError(f"{checkpoint.name}: predicts {network.config.n_genes} genes, but {len(genes)} are named.")
    training: dict[str, Any] = {"imported_from": checkpoint.name, "licence": LICENCE}
    if isinstance(network, BankNetwork):
        if bank is None:
            raise ModelFileError(f"{checkpoint.name}: looks measured spots up, which it lacks; name some by --bank.")
        patients = give_bank(network, bank, genes, mpp)
        training |= {"licence": bank.licence, "patients": patients, "bank": describe_bank(network)}
    elif bank:
        raise ModelFileError(f"--bank: of a BLEEP or EGN, which {checkpoint.name} is not.")
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
        "pixel_scaling": PIXEL_SCALING[parameters["network"]],
        "objective": None if isinstance(network, BankNetwork) else "mse",
        "expression_unit": UNITS[parameters["network"]],
        "genes": {
            "training_mean": None,
            "training_spread": None,
            "display_range": None,
        },
        "training": training,
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
    raise ModelFileError(f"{path.name}: not a released checkpoint that is known here (it has a tensor {name[:60]!r}).")


def _m2ort_config(tensors: dict[str, Tensor], v_from: VFrom, head_dim: int) -> M2ORTConfig:
    """Read the sizes off the shapes."""
    joined, channels = tensors["head.weight"].shape[1], tensors["head.weight"].shape[1] // 3
    mixing: Mixing = "cross_level" if "encoders.0.token_mixing.out.weight" in tensors else "per_level"
    if (joined_qkv := tensors.get("encoders.0.token_mixing.qkv.weight")) is not None:
        mixing, inner = "dense", joined_qkv.shape[0] // 9  # of one level
    else:
        inner = tensors["encoders.0.token_mixing.qkv.0.weight"].shape[0] // 3
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
        mixing=mixing,
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


def _architecture(config: Config) -> str:
    if isinstance(config, HisToGeneConfig | Hist2STConfig):
        return section_system_of(config)
    if isinstance(config, PatchConfig):
        return system_of(config)
    if isinstance(config, BleepConfig | EgnConfig):
        return "bleep" if isinstance(config, BleepConfig) else "egn"
    if isinstance(config, M2OSTConfig):
        return "m2ost" if config == M2OSTConfig(config.n_genes, VIEWS) else "m2ost-custom"
    for name, sizes in ARCHITECTURES.items():
        if "network" not in sizes and all(getattr(config, key) == value for key, value in sizes.items()):
            return name
    return f"m2ort-{'cross' if getattr(config, 'mixing', '') == 'cross_level' else 'custom'}"
