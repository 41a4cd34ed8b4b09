"""Dinov2 as Hugging Face's `transformers` names it, read as a Vision Transformer of timm's.

Midnight, Hibou and Phikon-v2 are published so. After Oquab et al. 2023 (arXiv 2304.07193); the layers are timm's, and
names, three tensors of each attention, and, of those without registers, how positions are resampled are others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from stpredict.networks.timm_vit import ViTReading

Tensors = Mapping[str, Tensor]
#: A tensor that no other network here has, behind whatever stands before all names.
KNOWN = "encoder.layer.0.attention.attention.query.weight"
#: In names of tensors that low-rank ones tune (LoRA, Hu et al. 2021, arXiv 2106.09685), and in those of the latter.
TUNED, LOW, HIGH = ".base_layer", ".lora_A.default", ".lora_B.default"
#: How much the low-rank product counts; DeepSpot-M's is twice its rank over its rank.
LORA_SCALE = 2.0
NAMES = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (r"encoder\.layer\.(\d+)\.norm([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(\w+)", r"blocks.\1.attn.\2.\3"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"encoder\.layer\.(\d+)\.mlp\.(?:fc1|weights_in)\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layer\.(\d+)\.mlp\.(?:fc2|weights_out)\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"layernorm\.(\w+)", r"norm.\1"),
)
#: Of training alone.
UNUSED = "embeddings.mask_token"
HEAD_WIDTH = 64
EPSILON = 1e-6


def timm_names(tensors: Tensors) -> dict[str, Tensor]:
    """The same network under timm's names: one tensor for queries, keys and values, positions of the patches alone.

    What stands before `embeddings.` and `encoder.` is left out. Raises ValueError, in words, for other tensors.
    """
    tensors = merge_lora(tensors)
    prefix = next((name.removesuffix(KNOWN) for name in tensors if name.endswith(KNOWN)), None)
    if prefix is None:
        raise ValueError(f"it has no tensor {KNOWN}")
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    named = {_renamed(name): tensor for name, tensor in own.items() if name != UNUSED}
    for name in [name for name in named if ".attn.query." in name]:
        try:
            parts = [named.pop(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
        except KeyError as error:
            raise ValueError(f"it has no tensor {error}") from error
        named[name.replace(".query.", ".qkv.")] = torch.cat(parts)
    if not {"cls_token", "pos_embed"} <= set(named):
        raise ValueError("it has no class token, or no positions")
    # The class token's position belongs to no other token, so that registers, which have none, may follow it.
    positions = named["pos_embed"]
    named["cls_token"] = named["cls_token"].float() + positions[:, :1].float()
    named["pos_embed"] = positions[:, 1:]
    return named


def is_dinov2(tensors: Tensors) -> bool:
    return any(name.replace(TUNED, "").endswith(KNOWN) for name in tensors)


def merge_lora(tensors: Tensors) -> dict[str, Tensor]:
    """The tensors with low-rank ones, under the names of `peft`, added to those that they tune."""
    merged = {
        name.replace(TUNED, ""): tensor for name, tensor in tensors.items() if LOW not in name and HIGH not in name
    }
    for name, low in tensors.items():
        if LOW in name:
            tuned = name.replace(LOW, "")
            try:
                merged[tuned] = (
                    merged[tuned].float() + LORA_SCALE * tensors[name.replace(LOW, HIGH)].float() @ low.float()
                )
            except KeyError as error:
                raise ValueError(f"it has no tensor {error}") from error
    return merged


def describe_dinov2(tensors: Tensors, config: Mapping[str, Any] | None) -> ViTReading:
    """How tensors under timm's names are read, from what `transformers` saves beside weights, or what is usual.

    A giant, whose MLP has a gate, is read by the class token and the mean of the patch's tokens, as Midnight's authors
    do; others by the class token. Raises ValueError, in words, for what is not computed here.
    """
    said = config or {}
    width = tensors["patch_embed.proj.weight"].shape[0]
    if said.get("hidden_size", width) != width:
        raise ValueError(f"its config.json is of a network that is {said['hidden_size']} wide, and it is {width}")
    if said.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f"its config.json asks for hidden_act {said['hidden_act']}")
    heads = said.get("num_attention_heads", width // HEAD_WIDTH)
    epsilon = said.get("layer_norm_eps", EPSILON)
    if not isinstance(heads, int) or not 0 < heads <= width or width % heads:
        raise ValueError(f"its width of {width} does not divide into {heads} heads")
    if not isinstance(epsilon, float) or not 0 < epsilon < 0.1:
        raise ValueError(f"its config.json asks for layer_norm_eps {epsilon}")
    gated = tensors["blocks.0.mlp.fc1.weight"].shape[0] != tensors["blocks.0.mlp.fc2.weight"].shape[1]
    pooling: Literal["token", "token_and_mean"] = "token"
    if gated and "reg_token" not in tensors:
        pooling = "token_and_mean"
    told_by: Literal["config.json", "assumed"] = "assumed" if config is None else "config.json"
    resampling: Literal["antialiased", "plain"] = "antialiased" if "reg_token" in tensors else "plain"
    return ViTReading(heads, pooling, "silu" if gated else "gelu", epsilon, told_by, resampling)


def _renamed(name: str) -> str:
    for pattern, replacement in NAMES:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    raise ValueError(f"it has a tensor {name[:60]!r}")
