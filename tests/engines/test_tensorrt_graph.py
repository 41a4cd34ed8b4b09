"""The exported program that TensorRT is given of every architecture, looked at on a CPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

import stpredict.engines.tensorrt as tensorrt
from stpredict.engines.check import compare
from stpredict.engines.eager import load_network, run_reference
from stpredict.networks import (
    ARCHITECTURES,
    DICTIONARY,
    ENCODER,
    architecture_config,
    architecture_views,
    make_network,
)
from stpredict.networks.dictionary import DictionaryConfig
from stpredict.networks.encoder import EncoderConfig
from stpredict.networks.encoder_files import open_encoder
from stpredict.slides.views import patch_shape

#: Operators that Torch-TensorRT 2.13 converts.
ALLOWED = {
    "_assert_tensor_metadata", "add", "alias", "cat", "chunk", "clamp", "conv2d", "div", "dropout", "expand", "flatten",
    "gelu", "getitem", "layer_norm", "linear", "log", "matmul", "mean", "mul", "neg", "permute", "pow", "reshape",
    "round", "scaled_dot_product_attention", "select", "sigmoid", "silu", "slice", "softplus", "sqrt", "std", "sub",
    "sum", "to", "transpose", "unsqueeze",
}  # fmt: skip
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TRAINED = sorted(name for name in ARCHITECTURES if name.startswith(("m2ort", "m2ost")))
VIT = Path(__file__).parents[1] / "data" / "timm_vit_giant" / "model.safetensors"


@cache
def exported(architecture):
    """The program, in bf16, of a network of this architecture."""
    if architecture == DICTIONARY:
        network, shape = make_network(DictionaryConfig(5, spot_px=100.0, components=12, centres=20)), (224, 224, 3)
    elif architecture == ENCODER:
        network, shape = make_network(EncoderConfig(5, 16, "", "", (0.5,) * 3, (0.5,) * 3, patch_px=56)), (56, 56, 3)
        network.encoder = open_encoder(VIT, 56)
    else:
        network = make_network(architecture_config(architecture, n_genes=5, depth=1))
        shape = patch_shape(224, architecture_views(architecture))
    return tensorrt.export_network(network.eval(), "bf16", torch.zeros((2, *shape), dtype=torch.uint8))


def calls(program):
    """Name of the operator and node, of each call in an exported program."""
    found = [(str(node.target), node) for node in program.graph.nodes if node.op == "call_function"]
    return [("getitem" if "getitem" in name else name.split(".")[1], node) for name, node in found]


def given(program):
    """Where the patches come in."""
    (node,) = (node for node in program.graph.nodes if node.op == "placeholder" and node.name == "patches")
    return node


@pytest.mark.parametrize("architecture", [*TRAINED, DICTIONARY, ENCODER])
def test_every_architecture_is_one_graph_of_known_operators(architecture):
    program = exported(architecture)
    assert {node.op for node in program.graph.nodes} == {"placeholder", "call_function", "output"}
    assert {name for name, _ in calls(program)} <= ALLOWED


@pytest.mark.parametrize("architecture", TRAINED)
def test_attention_is_one_operator_without_a_mask(architecture):
    attentions = [node for name, node in calls(exported(architecture)) if name == "scaled_dot_product_attention"]
    per_encoder = 9 if architecture == "m2ost" else 1 if architecture.endswith("cross") else 3
    assert len(attentions) == per_encoder
    assert all(len(node.args) == 3 for node in attentions)


@pytest.mark.parametrize("architecture", [*TRAINED, DICTIONARY, ENCODER])
def test_patches_are_read_by_casts_alone(architecture):
    # TensorRT takes some types, uint8 for one, into casts and into nothing else.
    read = {name for name, node in calls(exported(architecture)) if given(exported(architecture)) in node.args}
    assert read <= {"to", "_assert_tensor_metadata"}
    assert "to" in read


@pytest.mark.parametrize("architecture", [*TRAINED, DICTIONARY, ENCODER])
def test_attention_with_fewer_queries_than_keys_is_taken_apart(architecture):
    # Torch-TensorRT 2.11 converts no other attention but of q, k and v of one shape.
    shapes = [
        {tuple(tensor.meta["val"].shape) for tensor in node.args[:3]}
        for name, node in calls(exported(architecture))
        if name == "scaled_dot_product_attention"
    ]
    assert all(len(of_one) == 1 for of_one in shapes) or tensorrt.SETTINGS["decompose_attention"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_graph_computes_in_its_precision_from_fp16_to_float32(tiny_model, patches, precision):
    batch = torch.from_numpy(patches[:8])
    program = tensorrt.export_network(load_network(tiny_model), precision, batch)
    assert given(program).meta["val"].dtype == torch.float16
    (result,) = next(node for node in program.graph.nodes if node.op == "output").args[0]
    assert result.meta["val"].dtype == torch.float32
    typed = [
        node.meta["val"].dtype for name, node in calls(program) if name in ("linear", "scaled_dot_product_attention")
    ]
    assert set(typed[:-1]) == {DTYPES[precision]}
    assert typed[-1] == torch.float32  # the head
    assert all(node.meta["val"].dtype == torch.float32 for name, node in calls(program) if name == "conv2d")
    output = program.module()(batch.half()).detach().numpy()
    assert compare(output, run_reference(tiny_model, patches[:8]), precision).passed


def test_patches_lose_nothing_in_fp16():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(values.half().float(), values.float())
