from __future__ import annotations

import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from stpredict.errors import ModelFileError
from stpredict.networks.timm_vit import resample_positions
from stpredict.networks.trunk_files import read_trunk
from stpredict.networks.trunks import TRUNKS
from stpredict.networks.trunks.resnet import ResNet

DATA = Path(__file__).parents[1] / "data"
#: A small trunk of each kind.
SMALL = {
    "densenet": (2, (1, 1)),
    "resnet": (2, (1, 1)),
    "vgg": (1, (1, 1)),
    "vit": (16, (2,)),
    "crossvit": (32, (1, 1)),
}


def small(kind: str, patch_px: int = 64, device: str = "cpu") -> nn.Module:
    width, depths = SMALL[kind]
    with torch.device(device):
        return TRUNKS[kind](width, depths, patch_px)


def shaken(kind: str) -> dict[str, torch.Tensor]:
    """The tensors of a small trunk, none of which is what another begins with."""
    torch.manual_seed(3)
    tensors = small(kind).state_dict()
    return {name: t + torch.rand_like(t) if t.is_floating_point() else t for name, t in tensors.items()}


@pytest.mark.parametrize("kind", SMALL)
def test_weights_of_each_trunk_load_with_whatever_stands_before_their_names(tmp_path, kind):
    theirs = shaken(kind)
    wrapped = {"state_dict": {f"module.model.{name}": tensor for name, tensor in theirs.items()}}
    torch.save({**wrapped, "epoch": 3}, tmp_path / "trunk.pth")
    safetensors.torch.save_file({**theirs, "head.weight": torch.zeros(9, 9)}, tmp_path / "trunk.safetensors")
    for file in ("trunk.pth", "trunk.safetensors"):
        trunk = small(kind, device="meta")
        found = read_trunk(tmp_path / file, trunk, "any")
        assert found.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in found.items())
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in trunk.state_dict().items())


def test_the_names_of_the_oldest_densenet_files_are_known(tmp_path):
    theirs = shaken("densenet")
    old = {
        name.replace("norm1.", "norm.1.").replace("norm2.", "norm.2.").replace("conv1.", "conv.1.").replace(
            "conv2.", "conv.2."
        ): tensor
        for name, tensor in theirs.items()
        if "num_batches" not in name
    }  # fmt: skip
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "densenet121-a639ec97.pth")
    found = read_trunk(tmp_path / "densenet121-a639ec97.pth", small("densenet"), "stnet")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in found.items())


@pytest.mark.parametrize("mlp", [("0", "3"), ("linear_1", "linear_2")])
def test_torchvisions_names_of_a_vit_are_known(tmp_path, mlp):
    theirs = safetensors.torch.load_file(DATA / "vit_torchvision_tiny.safetensors")
    renamed = {
        name.replace(".mlp.0.", f".mlp.{mlp[0]}.").replace(".mlp.3.", f".mlp.{mlp[1]}."): tensor
        for name, tensor in theirs.items()
    }
    wider = {"conv_proj.weight": torch.ones(32, 3, 16, 16)}  # its tokens are of 8 px, ours of 16
    torch.save({**renamed, **wider}, tmp_path / "vit.pth")
    trunk = TRUNKS["vit"](32, (2,), 64)
    with pytest.raises(ModelFileError, match="size mismatch"):
        read_trunk(tmp_path / "vit.pth", TRUNKS["vit"](64, (2,), 64), "vit-b16")
    found = {}
    for block in (0, 1):
        prefix = f"encoder.layers.encoder_layer_{block}.mlp."
        for name in ("0.weight", "0.bias", "3.weight", "3.bias"):  # which are twice as wide as a token, ours four times
            part = mlp[0] if name.startswith("0") else mlp[1]
            shape = trunk.state_dict()[f"blocks.{block}.mlp.fc{'1' if name.startswith('0') else '2'}.{name[2:]}"].shape
            found[f"{prefix}{part}.{name[2:]}"] = torch.ones(shape)
    torch.save({**renamed, **wider, **found}, tmp_path / "vit.pth")
    read = read_trunk(tmp_path / "vit.pth", trunk, "vit-b16")
    attention = "encoder.layers.encoder_layer_1.self_attention"
    for ours, name in (
        ("cls_token", "class_token"), ("pos_embed", "encoder.pos_embedding"), ("norm.weight", "encoder.ln.weight"),
        ("blocks.1.attn.qkv.weight", f"{attention}.in_proj_weight"), ("blocks.1.norm2.bias",
        "encoder.layers.encoder_layer_1.ln_2.bias"), ("blocks.1.attn.proj.bias", f"{attention}.out_proj.bias"),
    ):  # fmt: skip
        assert torch.equal(read[ours], theirs[name].float())
    assert float(read["blocks.0.mlp.fc2.weight"].mean()) == 1


@pytest.mark.parametrize(("kind", "names"), [("vit", ["pos_embed"]), ("crossvit", ["pos_embed.0", "pos_embed.1"])])
def test_positions_are_resampled_to_the_patch(tmp_path, kind, names):
    theirs = shaken(kind)
    torch.save(theirs, tmp_path / "trunk.pth")
    wider = small(kind, patch_px=112)
    found = read_trunk(tmp_path / "trunk.pth", wider, kind)
    for name in names:
        side = math.isqrt(found[name].shape[1])
        assert side > math.isqrt(theirs[name].shape[1])
        assert torch.equal(found[name], resample_positions(theirs[name], side))
    wider(torch.zeros(1, 3, 112, 112))


def test_half_precision_is_read_as_single(tmp_path):
    theirs = {name: t.half() if t.is_floating_point() else t for name, t in shaken("resnet").items()}
    safetensors.torch.save_file(theirs, tmp_path / "half.safetensors")
    found = read_trunk(tmp_path / "half.safetensors", small("resnet"), "resnet50")
    assert found["conv1.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"conv1.weight": torch.zeros(1)}, "no trunk of --arch triplex"),
        ({"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}, "not the trunk of --arch triplex"),
        (ResNet(width=2).state_dict() | {"bn1.running_var": torch.full((2,), torch.nan)}, "not finite"),
        ({"layer1.0.conv1.weight": ResNet}, "not a file of plain tensors"),
        ([1, 2], "no trunk of --arch triplex"),
    ],
)
def test_other_files_are_refused(tmp_path, content, said):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(ModelFileError, match=said):
        read_trunk(path, ResNet(width=2), "triplex")


@pytest.mark.parametrize("shape", [(5,), (1, 0, 16), (1, 1, 16), (1, 17, 3, 3), (2, 17, 16)])
def test_positions_that_are_no_grid_are_refused(tmp_path, shape):
    torch.save(shaken("vit") | {"pos_embed": torch.zeros(shape)}, tmp_path / "odd.pth")
    with pytest.raises(ModelFileError, match=r"odd.pth: not the trunk of --arch vit-b16"):
        read_trunk(tmp_path / "odd.pth", small("vit", patch_px=112), "vit-b16")
