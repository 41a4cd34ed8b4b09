"""Trunks against what torchvision and the released code of CrossViT compute of random weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from stpredict.networks import architecture_config, make_network
from stpredict.networks.patch_level import PatchNetwork
from stpredict.networks.timm_vit import ViTReading, build_vit
from stpredict.networks.trunk_files import LAYOUTS, rename
from stpredict.networks.trunks.crossvit import CrossViT
from stpredict.networks.trunks.densenet import DenseNet
from stpredict.networks.trunks.pixels import ImageNetPixels
from stpredict.networks.trunks.resnet import ResNet
from stpredict.networks.trunks.vit import random_vit

DATA = Path(__file__).parents[2] / "data"
GOLDEN = Path(__file__).parents[4] / "shared" / "golden" / "systems"
full_size = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="needs ../shared/golden: what full-size networks of recipe weights compute"
)
#: Of each full-size network: the architecture here, and what its classifier is called there.
FULL_SIZE = {
    "densenet121": ("stnet", "classifier"),
    "resnet50": ("resnet50", "fc"),
    "vgg16": ("deepspace", "classifier.6"),
    "vit_b_16": ("vit-b16", "heads.head"),
}


def released(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a tiny network, and the arrays that it was given and gave."""
    with np.load(DATA / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    tensors = safetensors.torch.load_file(DATA / f"{name}.safetensors")
    return {key: tensor.float() for key, tensor in tensors.items()}, arrays


def test_a_tiny_densenet_is_torchvisions():
    tensors, arrays = released("densenet_torchvision_tiny")
    trunk = DenseNet(4, (2, 3, 2, 2)).eval()
    head = {name: tensors.pop(f"classifier.{name}") for name in ("weight", "bias")}
    trunk.load_state_dict(tensors)
    with torch.inference_mode():
        found = nn.functional.linear(trunk(arrays["x"]), **head)
    np.testing.assert_allclose(found, arrays["y"], atol=2e-6)


def test_a_tiny_vit_is_torchvisions():
    tensors, arrays = released("vit_torchvision_tiny")
    head = {name: tensors.pop(f"heads.head.{name}") for name in ("weight", "bias")}
    layout = LAYOUTS[type(random_vit(64, (1,), 64))]
    renamed = {rename(name, layout): tensor for name, tensor in tensors.items()}
    trunk = build_vit(renamed, ViTReading(2, "token", "gelu", 1e-6, "assumed"), 32)
    with torch.inference_mode():
        found = nn.functional.linear(trunk(arrays["x"]), **head)
    np.testing.assert_allclose(found, arrays["y"], atol=2e-6)


@pytest.mark.parametrize("names", ["released", "timm"])
def test_a_tiny_crossvit_is_the_released_ones(names):
    tensors, arrays = released("crossvit_released_tiny")
    heads = [[tensors.pop(f"head.{d}.{name}") for name in ("weight", "bias")] for d in (0, 1)]
    trunk = CrossViT((16, 32), (1, 2, 1, 2), (2, 4), (4, 2), (60, 64)).eval()
    if names == "timm":
        tensors = {
            name.replace("cls_token.", "cls_token_").replace("pos_embed.", "pos_embed_"): tensor
            for name, tensor in tensors.items()
        }
    trunk.load_state_dict({rename(name, LAYOUTS[CrossViT]): tensor for name, tensor in tensors.items()})
    with torch.inference_mode():
        joined = trunk(arrays["x"])
        np.testing.assert_allclose(joined[:, :16], arrays["cls_0"], atol=2e-6)
        np.testing.assert_allclose(joined[:, 16:], arrays["cls_1"], atol=2e-6)
        # The mean of the released two heads is one linear map of both class tokens.
        weight = torch.cat([weight for weight, _ in heads], dim=1) / 2
        found = nn.functional.linear(joined, weight, sum(bias for _, bias in heads) / 2)
    np.testing.assert_allclose(found, arrays["y"], atol=2e-6)


@pytest.mark.parametrize(
    ("architecture", "count"),
    [
        ("stnet", 7_210_106), ("resnet50", 24_020_282), ("vit-b16", 85_990_906), ("deepspace", 135_284_794),
        ("crossvit-small", 26_422_772), ("crossvit-base", 104_159_732),
    ],
)  # fmt: skip
def test_parameter_counts_are_the_published_networks(architecture, count):
    with torch.device("meta"):
        network = make_network(architecture_config(architecture, n_genes=250))
    # CrossViT has two heads, which add up to ours but for one bias.
    second_bias = 250 if architecture.startswith("crossvit") else 0
    assert sum(p.numel() for p in network.parameters()) + second_bias == count


def recipe():
    spec = importlib.util.spec_from_file_location("recipe", GOLDEN / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recipe_weights(name: str) -> dict[str, Tensor]:
    """Under torchvision's names; counts of batches are 0."""
    tensors = {}
    for line in (GOLDEN / f"{name}.keys.txt").read_text().splitlines():
        key, shape = line.split()
        if shape == "scalar":
            tensors[key] = torch.zeros((), dtype=torch.int64)
        else:
            tensors[key] = torch.from_numpy(recipe().tensor(key, tuple(map(int, shape.split("x")))))
    return tensors


def close(found: Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=1e-5 * abs(expected).max())


@full_size
@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_networks_are_torchvisions(name):
    architecture, classifier = FULL_SIZE[name]
    with torch.device("meta"):
        network = make_network(architecture_config(architecture, n_genes=250))
    assert isinstance(network, PatchNetwork)
    tensors = recipe_weights(name)
    head = {part: tensors.pop(f"{classifier}.{part}") for part in ("weight", "bias")}
    layout = next(layout for kind, layout in LAYOUTS.items() if isinstance(network.trunk, kind))
    network.trunk.load_state_dict({rename(key, layout): t for key, t in tensors.items()}, assign=True)
    network.head.load_state_dict(head, assign=True)
    network.pixels = ImageNetPixels()
    network.eval()
    patches = torch.from_numpy(recipe().images())
    with np.load(GOLDEN / f"{name}.npz") as golden, torch.inference_mode():
        close(network.features(patches), golden["features"])
        close(network(patches), golden["output"])


@full_size
def test_the_full_size_resnet18_is_torchvisions():
    trunk = ResNet().eval()
    tensors = recipe_weights("resnet18")
    trunk.load_state_dict({name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")})
    with np.load(GOLDEN / "resnet18.npz") as golden, torch.inference_mode():
        pixels = ImageNetPixels()(torch.from_numpy(recipe().images()))
        close(trunk.tokens(pixels), golden["tokens"])
        close(trunk(pixels), golden["features"])
