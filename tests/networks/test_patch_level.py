from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from patch_networks import PATCH_PX, TINY
from torch import nn

from stpredict.errors import ModelFileError
from stpredict.networks import TRUNK_FIRST, architecture_config, build_network, has_trunk, network_parameters
from stpredict.networks.patch_level import SYSTEMS, PatchConfig, PatchNetwork


def config(name: str) -> PatchConfig:
    return PatchConfig(3, patch_px=PATCH_PX, **{key: value for key, value in TINY[name].items() if key != "network"})


@pytest.fixture
def some_patches() -> torch.Tensor:
    return torch.randint(
        0, 256, (4, PATCH_PX, PATCH_PX, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("name", TINY)
def test_a_spots_expression_is_of_its_own_patch(name, some_patches):
    torch.manual_seed(0)
    network = PatchNetwork(config(name)).eval()
    nn.init.normal_(network.head.weight)
    with torch.inference_mode():
        found = network(some_patches)
        assert found.shape == (4, 3)
        assert found.dtype == torch.float32
        assert found.std(dim=0).min() > 1e-4
        torch.testing.assert_close(network(some_patches.flip(0)), found.flip(0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(network.head(network.features(some_patches)), found)


@pytest.mark.parametrize("name", TINY)
def test_all_of_a_network_is_trained(name, some_patches):
    torch.manual_seed(0)
    network = PatchNetwork(config(name)).train()
    nn.init.normal_(network.head.weight)
    (network(some_patches) ** 2).mean().backward()
    assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", ["stnet", "vit-b16"])
def test_an_untrained_network_predicts_what_an_objectives_zero_is(name, some_patches):
    assert torch.count_nonzero(PatchNetwork(config(name)).eval()(some_patches)) == 0


@pytest.mark.parametrize("name", TINY)
def test_batch_norms_and_the_head_keep_single_precision(name, some_patches):
    network = PatchNetwork(config(name)).eval().cast(torch.bfloat16)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var.dtype == torch.float32
        if isinstance(module, nn.Conv2d):
            assert module.weight.dtype == torch.bfloat16
    with torch.inference_mode():
        assert network(some_patches).dtype == torch.float32


def test_dropout_is_deepspaces_and_only_in_training(some_patches):
    network = PatchNetwork(config("deepspace"))
    nn.init.normal_(network.head.weight)
    with torch.inference_mode():
        assert torch.equal(network.eval()(some_patches), network(some_patches))
        assert not torch.allclose(network.train()(some_patches), network(some_patches))


def test_cards_describe_them_and_sizes_that_are_none_are_refused():
    for name in TINY:
        parameters = network_parameters(config(name))
        listed = {key: list(value) if isinstance(value, tuple) else value for key, value in parameters.items()}
        assert isinstance(build_network(listed), PatchNetwork)
    for name, wrong in (
        ("stnet", {"trunk": "alexnet"}), ("stnet", {"patch_px": 32}), ("vit-b16", {"patch_px": 72}),
        ("crossvit", {"patch_px": 72}), ("vit-b16", {"depths": (1, 1)}), ("crossvit", {"depths": (1,)}),
    ):  # fmt: skip
        with pytest.raises(ModelFileError, match="does not describe a network"):
            build_network(network_parameters(replace(config(name), **wrong)))


def test_each_system_is_an_architecture_with_a_trunk():
    for name in SYSTEMS:
        assert has_trunk(name)
        assert name in TRUNK_FIRST
        assert architecture_config(name, n_genes=7).n_genes == 7
    assert not has_trunk("m2ort-small")
    assert not has_trunk("dictionary")
