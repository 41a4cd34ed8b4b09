"""Encoders under others' names. The golden files are of tiny networks of random weights, in fp16.

They hold what timm's Swin (1.0.31) makes behind CTransPath's stem, what Dinov2 of `transformers` (5.24) makes with and
without registers, and what torchvision's DenseNet does.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import DATA

from stpredict.errors import ModelFileError
from stpredict.networks.encoder import Encoded, EncoderConfig
from stpredict.networks.encoder_files import count_features, open_encoder
from stpredict.networks.encoder_weights import describe_weights
from stpredict.networks.timm_vit import ViTReading
from stpredict.networks.trunks.pixels import IMAGENET_MEAN, IMAGENET_STD, ImageNetPixels
from stpredict.networks.trunks.resnet import RESNET18, BasicBlock, Bottleneck, ResNet

CTRANSPATH = DATA / "ctranspath_tiny.safetensors"
MIDNIGHT, HIBOU = DATA / "dinov2_midnight" / "model.safetensors", DATA / "dinov2_hibou" / "model.safetensors"
DENSENET = DATA / "densenet_torchvision_tiny.safetensors"


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"{name}.npz") as file:
        return dict(file)


def features(path: Path, patches: np.ndarray, n_features: int) -> np.ndarray:
    """Of uint8 patches, as a model has them."""
    known = describe_weights(path)
    mean, std = (known.mean or IMAGENET_MEAN), (known.std or IMAGENET_STD)
    px = patches.shape[1]
    network = Encoded(EncoderConfig(1, n_features, path.name, "", mean, std, px, vit=known.reading))
    network.encoder = open_encoder(path, px, known.reading)
    assert count_features(network.encoder, px, path.name) == n_features
    with torch.inference_mode():
        return network.features(torch.from_numpy(patches)).numpy()


def saved(folder: Path, tensors: dict[str, torch.Tensor], name: str = "model.safetensors") -> Path:
    safetensors.torch.save_file(tensors, folder / name)
    return folder / name


def test_ctranspath_is_the_swin_of_timm_behind_convolutions():
    known = golden("ctranspath_tiny")
    np.testing.assert_allclose(features(CTRANSPATH, known["patches"], 32), known["features"], atol=1e-4)


def test_ctranspaths_own_file_nests_its_tensors_and_names_windows(tmp_path: Path):
    """As torch saved it, with what windows are; newer files have what makes the map smaller in the next stage."""
    known, tensors = golden("ctranspath_tiny"), safetensors.torch.load_file(CTRANSPATH)
    more = {"layers.0.blocks.1.attn_mask": torch.zeros(4, 49, 49)}
    more |= {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49, dtype=torch.int64)}
    torch.save({"model": tensors | more}, tmp_path / "ctranspath.pth")
    newer = {name.replace("layers.0.downsample", "layers.1.downsample"): x for name, x in tensors.items()}
    for path in (tmp_path / "ctranspath.pth", saved(tmp_path, newer)):
        np.testing.assert_allclose(features(path, known["patches"], 32), known["features"], atol=1e-4)


@pytest.mark.parametrize(("path", "name", "n_features"), [(MIDNIGHT, "midnight", 32), (HIBOU, "hibou", 16)])
def test_dinov2_is_read_under_the_names_of_transformers(path: Path, name: str, n_features: int, tmp_path: Path):
    """A gated MLP, read by both; registers, read by the class token; positions of another grid."""
    known = golden("dinov2_io")
    pixels = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(pixels))
    (tmp_path / "config.json").write_text(path.with_name("config.json").read_text())
    tensors = {f"dinov2.{name}": tensor for name, tensor in safetensors.torch.load_file(path).items()}
    np.testing.assert_allclose(features(saved(tmp_path, tensors), known["patches"], n_features), known[name], atol=1e-4)


def test_what_is_told_of_a_dinov2():
    known = describe_weights(HIBOU)
    assert known.reading == ViTReading(4, "token", "gelu", 1e-6, "config.json", "antialiased")
    assert describe_weights(MIDNIGHT).reading == ViTReading(2, "token_and_mean", "silu", 1e-6, "config.json", "plain")
    assert (known.kind, known.mean) == ("a Dinov2 of `transformers`", None)


def test_a_densenet_of_torchvision_is_read():
    known = golden("densenet_torchvision_tiny")
    network = open_encoder(DENSENET, 64)
    head = {
        name: x.float() for name, x in safetensors.torch.load_file(DENSENET).items() if name.startswith("classifier")
    }
    with torch.inference_mode():
        found = network(torch.from_numpy(known["x"])) @ head["classifier.weight"].T + head["classifier.bias"]
    np.testing.assert_allclose(found, known["y"], atol=1e-4)


@pytest.mark.parametrize(("block", "depths"), [(BasicBlock, RESNET18), (Bottleneck, (1, 2, 1, 1))])
def test_resnets_of_both_blocks_are_read_with_whatever_stands_before_their_names(block, depths, tmp_path: Path):
    """Against the trunk of the papers' systems, which tests/networks/trunks compares with torchvision."""
    torch.manual_seed(0)
    trunk = ResNet(block, depths, 8).eval()
    tensors = {f"encoder.{name}": tensor for name, tensor in trunk.state_dict().items()}
    path = saved(tmp_path, {**tensors, "encoder.fc.weight": torch.zeros(3, 9), "head.weight": torch.zeros(2, 3)})
    patches = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = trunk(ImageNetPixels()(patches))
    np.testing.assert_allclose(features(path, patches.numpy(), trunk.n_features), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("source", "changes", "px", "said"),
    [
        (CTRANSPATH, {"layers.0.blocks.0.attn.qkv.weight": None}, 56, "Missing key"),
        (CTRANSPATH, {"layers.0.blocks.0.attn.k_norm.weight": torch.zeros(8)}, 56, "Unexpected key"),
        (CTRANSPATH, {"patch_embed.proj.3.weight": None}, 56, r"no tensor 'patch_embed\.proj\.3"),
        (CTRANSPATH, {}, 64, "windows of 7 tokens do not fill its maps of 16"),
        (CTRANSPATH, {"norm.weight": torch.full((32,), torch.nan)}, 56, "not finite"),
        (DENSENET, {"features.denseblock2.denselayer1.se.weight": torch.zeros(8)}, 64, "Unexpected key"),
        (MIDNIGHT, {"encoder.layer.1.attention.attention.key.weight": None}, 56, "no tensor 'blocks.1.attn.key"),
        (MIDNIGHT, {"encoder.layer.0.adapter.weight": torch.zeros(8)}, 56, "tensor 'encoder.layer.0.adapter.weight'"),
        (MIDNIGHT, {"embeddings.position_embeddings": None}, 56, "no positions"),
    ],
)
def test_other_networks_are_refused_in_a_sentence(tmp_path: Path, source: Path, changes: dict, px: int, said: str):
    tensors = safetensors.torch.load_file(source) | changes
    path = saved(tmp_path, {name: tensor for name, tensor in tensors.items() if tensor is not None})
    with pytest.raises(ModelFileError, match=said) as refused:
        open_encoder(path, px, ViTReading(2, "token_and_mean", "silu", 1e-6, "assumed", "plain"))
    assert str(refused.value).startswith("model.safetensors: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"hidden_size": 384}, "384 wide, and it is 16"),
        ({"hidden_act": "relu"}, "hidden_act relu"),
        ({"num_attention_heads": 3}, "does not divide into 3 heads"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps small"),
    ],
)
def test_what_its_config_asks_for_and_is_not_here_is_refused(tmp_path: Path, config: dict, said: str):
    path = saved(tmp_path, safetensors.torch.load_file(MIDNIGHT))
    (tmp_path / "config.json").write_text(
        json.dumps(json.loads(MIDNIGHT.with_name("config.json").read_text()) | config)
    )
    with pytest.raises(ModelFileError, match=said):
        describe_weights(path)
