"""Checkpoints of BLEEP and EGN, under the names of their released code, and the bank that they lack.

The bank is filled with measured spots of the user. BLEEP embeds them by their expression. EGN describes them by a
frozen ResNet, which its checkpoint lacks, too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from stpredict.arrays import Float, Int
from stpredict.data.cutting import write_tiles
from stpredict.data.dataset import read_dataset
from stpredict.data.panel import match_genes
from stpredict.data.tiles import Tiles, read_tiles
from stpredict.data.whole_depth import whole_depth
from stpredict.errors import ModelFileError, UsageError
from stpredict.networks import BankNetwork
from stpredict.networks.bank import MAX_SPOTS
from stpredict.networks.bleep import Bleep, BleepConfig
from stpredict.networks.egn import Egn, EgnConfig
from stpredict.networks.trunk_files import read_trunk
from stpredict.networks.trunks.resnet import ResNetName
from stpredict.statistics.metrics import log_cpm
from stpredict.statistics.normalisation import NORMALISATIONS

#: Units of model files with a bank. BLEEP's authors instead scale to the median depth, and correct for batches.
BLEEP_UNIT, EGN_UNIT = NORMALISATIONS["1e4"].unit, "ln(1 + counts)"
BATCH = 32
#: The frozen ResNet of EGN, by the width of its features.
FROZEN: dict[int, ResNetName] = {2048: "resnet50", 512: "resnet18"}

BLEEP_NAMES = (
    (r"image_encoder\.model\.", "trunk."),
    (r"well_projection\.", "spot_projection."),  # in older files
)
EGN_NAMES = (
    (r"to_patch_embedding\.1\.", "embed_tokens."),
    (r"transformer\.encoder\.proq\.", "exemplars.embed_patch."),
    (r"transformer\.encoder\.proe\.", "exemplars.embed_exemplars."),
    (r"transformer\.encoder\.to_v\.", "exemplars.embed_expression."),
    (r"transformer\.encoder\.layers\.(\d+)\.norm\.", r"exemplars.layers.\1.0."),
    (r"transformer\.encoder\.layers\.(\d+)\.fn\.net\.0\.", r"exemplars.layers.\1.1."),
    (r"transformer\.encoder\.layers\.(\d+)\.fn\.net\.3\.", r"exemplars.layers.\1.3."),
    (r"transformer\.layers\.(\d+)\.0\.norm\.", r"layers.\1.norm."),
    (r"transformer\.layers\.(\d+)\.0\.fn\.to_qkv\.", r"layers.\1.attention.qkv."),
    (r"transformer\.layers\.(\d+)\.0\.fn\.to_out\.0\.", r"layers.\1.attention.out."),
    (r"transformer\.layers\.(\d+)\.2\.norm\.", r"layers.\1.mlp.0."),
    (r"transformer\.layers\.(\d+)\.2\.fn\.net\.0\.", r"layers.\1.mlp.1."),
    (r"transformer\.layers\.(\d+)\.2\.fn\.net\.3\.", r"layers.\1.mlp.3."),
    (r"transformer\.layers\.(\d+)\.1\.update\.value\.", r"layers.\1.bridge.expression."),
    (r"transformer\.layers\.(\d+)\.1\.update\.query\.", r"layers.\1.bridge.compare."),
    (r"transformer\.layers\.(\d+)\.1\.update\.norm\.", r"layers.\1.bridge.norm."),
    (r"transformer\.layers\.(\d+)\.1\.to_k\.", r"layers.\1.bridge.gate."),
    (r"transformer\.layers\.(\d+)\.1\.to_x\.", r"layers.\1.bridge.values."),
    (r"transformer\.layers\.(\d+)\.1\.to_n\.1\.", r"layers.\1.bridge.to_patch."),
    (r"transformer\.layers\.(\d+)\.1\.to_v\.1\.", r"layers.\1.bridge.to_tokens."),
    (r"transformer\.pool\.head\.", "pool."),
    (r"mlp_head\.0\.", "norm."),
    (r"mlp_head\.1\.", "head."),
    (r"pos_embedding$", "position_embedding"),
)
#: Tensors that the released code of EGN never reads.
DEAD = re.compile(r"transformer\.layers\.\d+\.1\.to_out\.")


@dataclass(frozen=True)
class BankRequest:
    """The data set whose measured spots become a bank, its licence, and the file of EGN's `frozen` ResNet."""

    dataset: Path
    licence: str
    frozen: Path | None
    report: Callable[[str], None]


def is_bank_network(released: Mapping[str, Tensor]) -> bool:
    return any(name.startswith("image_projection.") for name in released) or "transformer.pool.head.weight" in released


def read_bank_network(released: Mapping[str, Tensor], head_dim: int) -> BankNetwork:
    """The network of a state dict that `is_bank_network`. Its bank is empty; EGN's frozen ResNet is not loaded yet.

    Raises KeyError, RuntimeError or ValueError if tensors are missing, or do not fit together.
    """
    network: BankNetwork
    if "transformer.pool.head.weight" in released:
        tensors = egn_tensors(released)
        network = Egn(egn_config(tensors, head_dim))
        lacking = [f"frozen.{name}" for name in network.frozen.state_dict()]
    else:
        tensors = {_renamed(name, BLEEP_NAMES): tensor for name, tensor in released.items()}
        network = Bleep(bleep_config(tensors))
        lacking = ["head.lengths"]
    own = network.state_dict()
    empty = [name for name in own if "bank." in name or name in lacking or name.endswith("num_batches_tracked")]
    network.load_state_dict({name: own[name] for name in empty} | tensors)
    return network


def egn_tensors(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A released state dict under this program's names, without tensors that the released code never reads."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in released.items():
        if DEAD.match(name):
            continue
        ours = _renamed(name, EGN_NAMES)
        if ".qkv." in ours:
            parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            tensors |= {ours.replace(".qkv.", f".{part}."): rows for part, rows in parts}
        else:
            tensors[ours] = tensor[:, :-1] if ours == "position_embedding" else tensor
    return tensors


def bleep_config(tensors: Mapping[str, Tensor]) -> BleepConfig:
    """The sizes, from the shapes. Pixels are in the order in which the released code reads them."""
    return BleepConfig(
        n_genes=tensors["spot_projection.projection.weight"].shape[1],
        projection=len(tensors["spot_projection.projection.weight"]),
        trunk="resnet50" if "trunk.layer1.0.conv3.weight" in tensors else "resnet18",
        trunk_width=len(tensors["trunk.conv1.weight"]), colours="bgr",
    )  # fmt: skip


def egn_config(tensors: Mapping[str, Tensor], head_dim: int) -> EgnConfig:
    """Read the sizes off the shapes."""
    channels, n_features = tensors["exemplars.embed_patch.weight"].shape
    inner = len(tensors["layers.0.attention.query.weight"])
    bridged = sorted({int(name.split(".")[1]) for name in tensors if ".bridge." in name})
    first = f"layers.{bridged[0]}.bridge"
    if f"{first}.norm.weight" not in tensors:
        raise ValueError("it is TRIPLEX's authors' version, whose spots are found by another network's features")
    token_px = math.isqrt(tensors["embed_tokens.weight"].shape[1] // 3)
    n_tokens = tensors["position_embedding"].shape[1]
    heads = len(tensors[f"{first}.gate.1.bias"]) // n_tokens
    if inner % head_dim:
        raise ValueError(f"a width of {inner} does not divide into attention heads of {head_dim}; see --head-dim")
    trunk = FROZEN.get(n_features, "resnet18")
    return EgnConfig(
        n_genes=len(tensors["head.bias"]), channels=channels, depth=_count(tensors, r"layers\.(\d+)\."),
        heads=inner // head_dim, head_dim=head_dim, mlp_dim=len(tensors["layers.0.mlp.1.bias"]), bridge_heads=heads,
        bridge_dim=len(tensors[f"{first}.values.1.bias"]) // heads, bridge_every=bridged[0] + 1,
        exemplar_depth=_count(tensors, r"exemplars\.layers\.(\d+)\."),
        linear_projection="exemplars.embed_expression.weight" in tensors,
        trunk=trunk, trunk_width=n_features // (32 if trunk == "resnet50" else 8), token_px=token_px,
        patch_px=token_px * math.isqrt(n_tokens), frozen_pixels="half",
    )  # fmt: skip


def give_bank(network: BankNetwork, request: BankRequest, genes: Sequence[str], mpp: float) -> list[str]:
    """Fill the bank with measured spots, at most MAX_SPOTS, drawn at random. Returns their patients.

    Afterwards EGN's head predicts ln(1 + counts). It was trained on decadic logarithms, scaled by extremes; those of
    these spots take their place. Raises UsageError for genes that were not measured, and ModelFileError if EGN's frozen
    ResNet is not given, or is another.
    """
    if isinstance(network, Egn):
        if request.frozen is None:
            raise ModelFileError(
                "an EGN finds spots by a frozen ResNet, which its checkpoint lacks; name it by --frozen."
            )
        network.frozen.load_state_dict(read_trunk(request.frozen, network.frozen, "egn"))
    network.eval()
    with TemporaryDirectory() as folder:
        tiles = measured_spots(request, network.config.patch_px, mpp, Path(folder))
        match_genes(genes, tiles.counted_genes, "measured genes")
        counts = tiles.panel_counts(genes)
        rows = np.flatnonzero(counts.sum(axis=1) > 0)  # of sections that measured all genes
        if not len(rows):
            raise UsageError(f"--bank {request.dataset.name}: no spot there has counts of all {len(genes)} genes.")
        if len(rows) > MAX_SPOTS:
            rows = np.sort(np.random.default_rng(0).choice(rows, MAX_SPOTS, replace=False))
        if isinstance(network, Bleep):
            per = NORMALISATIONS["1e4"].per
            expression = _tensor(log_cpm(counts[rows], whole_depth(tiles)[rows], per))
            network.fill(expression, expression)
        else:
            fill_egn(network, tiles, rows, counts[rows])
        return sorted(set(tiles.patient[rows].tolist()))


def measured_spots(request: BankRequest, patch_px: int, mpp: float, folder: Path) -> Tiles:
    """The spots' patches and counts. They are cut into the folder, unless the data set is already such a file."""
    if request.dataset.suffix == ".h5":
        return read_tiles(request.dataset)
    path = folder / "bank.tiles.h5"
    sections = read_dataset(request.dataset)
    write_tiles(sections, path, patch_px=patch_px, mpp=mpp, keep_table=False, report=request.report)
    return read_tiles(path)


def fill_egn(network: Egn, tiles: Tiles, rows: Int, counts: Float) -> None:
    """Give the network some spots with their `counts` (spots x genes), and fold their scale into its head."""
    labels = np.log10(1 + counts)
    low, spread = labels.min(axis=0), np.ptp(labels, axis=0)
    scaled = (labels - low) / np.where(spread > 0, spread, 1)
    with torch.no_grad():
        keys = [
            network.describe(torch.from_numpy(tiles.read_patches(part)))
            for part in np.array_split(rows, -(-len(rows) // BATCH))
        ]
        network.fill(torch.cat(keys), _tensor(scaled))
        network.head.weight.mul_(_tensor(math.log(10) * spread)[:, None])
        network.head.bias.mul_(_tensor(math.log(10) * spread)).add_(_tensor(math.log(10) * low))


def _tensor(values: Float) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)


def _renamed(name: str, names: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in names:
        name = re.sub(f"^{pattern}", replacement, name)
    return name


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})
