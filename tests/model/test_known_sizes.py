"""Sizes and costs that the catalogue tells, counted anew in networks of the published widths and depths.

They are made without memory (on "meta"), from tensors of the names and shapes that are published, as is what readers
take. Multiplications are those of matrix products, convolutions and attention of one patch of 224 px.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stpredict.model.catalogue import KNOWN
from stpredict.networks.deepspot import DeepSpotConfig
from stpredict.networks.ensemble_head import EnsembleConfig
from stpredict.networks.published_head import build_head
from stpredict.networks.stpath import STPathConfig
from stpredict.networks.timm_vit import ViTReading, build_vit
from stpredict.networks.trunks.resnet import RESNET50, Bottleneck, ResNet
from stpredict.networks.trunks.swin import Swin

PX = 224
ENTRIES = {entry.name: entry for entry in KNOWN}
#: Width, depth, heads, pixels of a token, MLP's widths before and behind a gate, class token and registers.
VITS = {
    "DistillPath-IS16-HOpt0": (384, 12, 6, 16, 1536, 1536, 1),
    "DistillPath-KS16-HOpt0": (384, 12, 6, 16, 1536, 1536, 1),
    "H-optimus-0": (1536, 40, 24, 14, 8192, 4096, 5),
    "Virchow": (1280, 32, 16, 14, 6832, 3416, 1),
    "Virchow2": (1280, 32, 16, 14, 6832, 3416, 5),
    "Hibou-B": (768, 12, 12, 14, 3072, 3072, 5),
    "Hibou-L": (1024, 24, 16, 14, 4096, 4096, 5),
    "Midnight-12k": (1536, 40, 24, 14, 8192, 4096, 1),
    "UNI": (1024, 24, 16, 16, 4096, 4096, 1),
    "Prov-GigaPath": (1536, 40, 24, 16, 8192, 4096, 1),
}


def layer(name: str, inputs: int, outputs: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.empty(outputs, inputs), f"{name}.bias": torch.empty(outputs)}


def norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.empty(width), f"{name}.bias": torch.empty(width)}


def vit(width: int, depth: int, heads: int, token_px: int, first: int, second: int, prefix: int) -> nn.Module:
    with torch.device("meta"):
        tensors = {
            "cls_token": torch.empty(1, 1, width),
            "pos_embed": torch.empty(1, 1 + (PX // token_px) ** 2, width),
            "patch_embed.proj.weight": torch.empty(width, 3, token_px, token_px),
            "patch_embed.proj.bias": torch.empty(width),
            **norm("norm", width),
        }
        if prefix > 1:
            tensors["reg_token"] = torch.empty(1, prefix - 1, width)
            tensors["pos_embed"] = torch.empty(1, (PX // token_px) ** 2, width)
        for block in (f"blocks.{i}." for i in range(depth)):
            tensors |= norm(f"{block}norm1", width) | norm(f"{block}norm2", width)
            tensors |= layer(f"{block}attn.qkv", width, 3 * width) | layer(f"{block}attn.proj", width, width)
            tensors |= layer(f"{block}mlp.fc1", width, first) | layer(f"{block}mlp.fc2", second, width)
        activation = "gelu" if first == second else "silu"
        return build_vit(tensors, ViTReading(heads, "token", activation, 1e-6, "assumed"), PX)


def ctranspath() -> nn.Module:
    """Swin-T behind convolutions."""
    with torch.device("meta"):
        tensors: dict[str, Tensor] = norm("norm", 768)
        for place, shape in ((0, (12, 3, 3, 3)), (3, (24, 12, 3, 3)), (6, (96, 24, 1, 1))):
            tensors[f"patch_embed.proj.{place}.weight"] = torch.empty(shape)
        for stage, depth in enumerate((2, 2, 6, 2)):
            width, heads = 96 << stage, 3 << stage
            for block in (f"layers.{stage}.blocks.{i}." for i in range(depth)):
                tensors |= norm(f"{block}norm1", width) | norm(f"{block}norm2", width)
                tensors |= layer(f"{block}attn.qkv", width, 3 * width) | layer(f"{block}attn.proj", width, width)
                tensors |= layer(f"{block}mlp.fc1", width, 4 * width) | layer(f"{block}mlp.fc2", 4 * width, width)
                tensors[f"{block}attn.relative_position_bias_table"] = torch.empty(13**2, heads)
            if stage < 3:
                tensors |= norm(f"layers.{stage}.downsample.norm", 4 * width)
                tensors[f"layers.{stage}.downsample.reduction.weight"] = torch.empty(2 * width, 4 * width)
        return Swin(tensors, PX)


def network(name: str) -> nn.Module:
    if name in VITS:
        return vit(*VITS[name])
    if name == "CTransPath":
        return ctranspath()
    with torch.device("meta"):
        return ResNet(Bottleneck, RESNET50)


def millions(of: nn.Module) -> float:
    """Of parameters, but what windows add to attention, which is kept larger here than it is published."""
    return sum(parameter.numel() for name, parameter in of.named_parameters() if not name.endswith("attn.bias")) / 1e6


def multiplications(of: nn.Module, *inputs: int) -> float:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        of.eval()(torch.empty((1, *inputs), device="meta"))
    return counter.get_total_flops() / 2e9


ENCODERS = [entry.name for entry in KNOWN if entry.kind == "encoder" and entry.millions]


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_are_as_large_and_cost_what_is_told(name: str):
    made, told = network(name), ENTRIES[name]
    assert millions(made) == pytest.approx(told.millions["encoder"], rel=0.02)
    assert multiplications(made, 3, PX, PX) == pytest.approx(told.cost, rel=0.03)


def head(config: Any, n_features: int, n_genes: int) -> nn.Module:
    with torch.device("meta"):
        return build_head(config, n_features, n_genes)


def test_models_are_as_large_and_cost_what_is_told():
    ensemble = head(EnsembleConfig(154, 768), 768, 14_068)
    assert millions(ensemble) == pytest.approx(ENTRIES["path2space"].millions["head"], rel=0.01)
    assert ENTRIES["path2space"].millions["encoder"] == ENTRIES["CTransPath"].millions["encoder"]
    of_both = multiplications(ensemble, 768) + ENTRIES["CTransPath"].cost
    assert of_both == pytest.approx(ENTRIES["path2space"].cost, rel=0.03)
    # The published file also has a row for each gene that may be given, of which one is kept.
    stpath = millions(head(STPathConfig(512, 1024, 4, 4), 1536, 38_982)) + 512 * 38_984 / 1e6
    assert stpath == pytest.approx(ENTRIES["stpath"].millions["head"], rel=0.02)
    # It also has ten last layers, whose mean is one here.
    deepspot = millions(head(DeepSpotConfig(10, 512), 1536, 5_000)) + 9 * (1536 + 1) * 5_000 / 1e6
    assert deepspot == pytest.approx(next(iter(ENTRIES["deepspot"].millions.values())), rel=0.02)


@pytest.mark.parametrize(
    ("name", "encoder"), [("stpath", "Prov-GigaPath"), ("histoprism", "UNI"), ("SimpleP2G", "Virchow2"),
                          ("deepspot-m", "Midnight-12k")],
)  # fmt: skip
def test_the_encoder_of_a_model_is_most_of_it(name: str, encoder: str):
    made, told = vit(*VITS[encoder]), ENTRIES[name]
    assert millions(made) == pytest.approx(next(v for k, v in told.millions.items() if k != "head"), rel=0.02)
    assert multiplications(made, 3, PX, PX) == pytest.approx(told.cost, rel=0.04)
