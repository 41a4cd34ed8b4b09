from __future__ import annotations

import itertools

import numpy as np
import pytest
import safetensors.torch
import torch

from stpredict.errors import ModelFileError
from stpredict.networks import triplex
from stpredict.networks.triplex import Trunk
from stpredict.networks.trunk_files import read_trunk

#: The blocks of torchvision's resnet18, each with the tensors of its convolutions and normalisations.
NORMALISATION = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def test_the_trunks_tensors_have_torchvisions_names_and_shapes():
    shapes = {"conv1.weight": (64, 3, 7, 7), "bn1": 64}
    for layer, channels in enumerate([64, 128, 256, 512], start=1):
        for block, conv in itertools.product((0, 1), (1, 2)):
            inputs = channels // 2 if layer > 1 and block == 0 and conv == 1 else channels
            shapes[f"layer{layer}.{block}.conv{conv}.weight"] = (channels, inputs, 3, 3)
            shapes[f"layer{layer}.{block}.bn{conv}"] = channels
        if layer > 1:
            shapes[f"layer{layer}.0.downsample.0.weight"] = (channels, channels // 2, 1, 1)
            shapes[f"layer{layer}.0.downsample.1"] = channels
    expected = {}
    for name, shape in shapes.items():
        if isinstance(shape, int):
            expected |= {f"{name}.{key}": () if key == "num_batches_tracked" else (shape,) for key in NORMALISATION}
        else:
            expected[name] = shape
    assert len(expected) == 120
    assert {name: tuple(tensor.shape) for name, tensor in Trunk().state_dict().items()} == expected


def test_a_patch_of_224_px_has_49_tokens_and_pixels_are_normalised_as_for_imagenet():
    trunk = Trunk(2).eval()
    seen = {}
    trunk.conv1.register_forward_hook(lambda _m, inputs, _o: seen.update(pixels=inputs[0]))
    patch = torch.tensor([255, 0, 51], dtype=torch.uint8).expand(1, 224, 224, 3)
    assert trunk(patch).shape == (1, 49, 16)
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    np.testing.assert_allclose(seen["pixels"][0, :, 3, 5], expected, rtol=1e-5)


def test_a_residual_block_by_hand():
    block = triplex.BasicBlock(1, 1, stride=1).eval()
    with torch.no_grad():
        block.conv1.weight.zero_()[0, 0, 1, 2] = 1  # the pixel to the right
        block.conv2.weight.zero_()[0, 0, 1, 1] = -2
        block.bn1.bias.fill_(-1)
        x = torch.tensor([[3.0, 4.0, 0.5]])[None, None]
        # Right: 4, .5, 0; less 1, cut: 3, 0, 0; times -2, added: -3, 4, .5; cut. Variances are 1 + 1e-5.
        np.testing.assert_allclose(block(x)[0, 0, 0], [0, 4, 0.5], atol=1e-3)


@pytest.mark.parametrize(
    "wrap", [lambda t: t, lambda t: {"state_dict": {f"model.resnet.{k}": v for k, v in t.items()}}]
)
def test_weights_of_others_load(tmp_path, wrap):
    torch.manual_seed(3)
    theirs = Trunk().state_dict() | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    path = tmp_path / "resnet18.pth"
    torch.save(wrap(theirs), path)
    found = read_trunk(path)
    assert len(found) == 120
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in found.items())


def test_older_weights_without_batch_counts_load_from_safetensors(tmp_path):
    theirs = {name: tensor for name, tensor in Trunk().state_dict().items() if "num_batches" not in name}
    safetensors.torch.save_file(theirs, tmp_path / "old.safetensors")
    assert len(read_trunk(tmp_path / "old.safetensors")) == 120


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"conv1.weight": torch.zeros(1)}, "no ResNet18"),
        ({"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}, "not the tensors of a ResNet18"),
        (Trunk().state_dict() | {"bn1.running_var": torch.full((64,), torch.nan)}, "not finite"),
        ({"layer1.0.conv1.weight": Trunk}, "not a file of plain tensors"),
        ([1, 2], "no ResNet18"),
    ],
)
def test_other_files_are_refused(tmp_path, content, said):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(ModelFileError, match=said):
        read_trunk(path)
