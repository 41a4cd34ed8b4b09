from __future__ import annotations

import itertools

import numpy as np
import torch

from stpredict.networks.trunks.pixels import ImageNetPixels
from stpredict.networks.trunks.resnet import BasicBlock, ResNet

NORMALISATION = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def test_a_resnet18s_tensors_have_torchvisions_names_and_shapes():
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
    assert {name: tuple(tensor.shape) for name, tensor in ResNet().state_dict().items()} == expected


def test_a_patch_of_224_px_has_49_tokens_and_pixels_are_normalised_as_for_imagenet():
    trunk = ResNet(width=2).eval()
    seen = {}
    trunk.conv1.register_forward_hook(lambda _m, inputs, _o: seen.update(pixels=inputs[0]))
    patch = torch.tensor([255, 0, 51], dtype=torch.uint8).expand(1, 224, 224, 3)
    assert trunk.tokens(ImageNetPixels()(patch)).shape == (1, 49, 16)
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    np.testing.assert_allclose(seen["pixels"][0, :, 3, 5], expected, rtol=1e-5)


def test_a_residual_block_by_hand():
    block = BasicBlock(1, 1, stride=1).eval()
    with torch.no_grad():
        block.conv1.weight.zero_()[0, 0, 1, 2] = 1  # the pixel to the right
        block.conv2.weight.zero_()[0, 0, 1, 1] = -2
        block.bn1.bias.fill_(-1)
        x = torch.tensor([[3.0, 4.0, 0.5]])[None, None]
        # Right: 4, .5, 0; less 1, cut: 3, 0, 0; times -2, added: -3, 4, .5; cut. Variances are 1 + 1e-5.
        np.testing.assert_allclose(block(x)[0, 0, 0], [0, 4, 0.5], atol=1e-3)
