"""Checkpoints of networks of one patch, under the names that torchvision and their authors give."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from calls import run
from patch_networks import PATCH_PX, TINY

from stpredict.engines.eager import load_network
from stpredict.errors import ModelFileError
from stpredict.model.file import load_model
from stpredict.model.published import read_checkpoint
from stpredict.networks.patch_level import PatchConfig, PatchNetwork

DATA = Path(__file__).parents[1] / "data"
#: From the names here to torchvision's, and to those of its oldest files of DenseNet.
TORCHVISION = {
    "vit": (
        (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."), (r"\.norm([12])\.", r".ln_\1."),
        (r"attn\.qkv\.", "self_attention.in_proj_"), (r"attn\.proj\.", "self_attention.out_proj."),
        (r"mlp\.fc1", "mlp.0"), (r"mlp\.fc2", "mlp.3"), (r"^norm\.", "encoder.ln."), (r"^cls_token", "class_token"),
        (r"^pos_embed", "encoder.pos_embedding"), (r"^patch_embed\.proj", "conv_proj"),
    ),
    "densenet": ((r"(denselayer\d+)\.(norm|conv)([12])\.", r"\1.\2.\3."),),
    "crossvit": ((r"^(cls_token|pos_embed)\.", r"\1_"),),  # timm's
}  # fmt: skip
HEADS = {"densenet": "classifier", "resnet": "fc", "vgg": "classifier.6", "vit": "heads.head"}


def test_torchvisions_densenet_computes_what_torchvision_does():
    network = read_checkpoint(DATA / "densenet_torchvision_tiny.safetensors")
    with np.load(DATA / "densenet_torchvision_tiny.npz") as golden, torch.inference_mode():
        found = network.head(network.trunk(torch.from_numpy(golden["x"])))
        np.testing.assert_allclose(found, golden["y"], atol=2e-6)


def random_network(name: str) -> PatchNetwork:
    sizes = {key: value for key, value in TINY[name].items() if key != "network"}
    torch.manual_seed(1)
    network = PatchNetwork(PatchConfig(3, patch_px=PATCH_PX, **sizes)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return network


def released(network: PatchNetwork) -> dict[str, torch.Tensor]:
    """Its state dict as its authors name it."""
    trunk, state = network.config.trunk, {}
    for name, tensor in network.trunk.state_dict().items():
        for pattern, replacement in TORCHVISION.get(trunk, ()):
            name = re.sub(pattern, replacement, name)
        state[name] = tensor
    if trunk == "crossvit":
        widths = network.config.width, 2 * network.config.width
        for i, part in enumerate(network.head.weight.detach().split(widths, dim=1)):
            state |= {f"head.{i}.weight": 2 * part, f"head.{i}.bias": network.head.bias + (-1) ** i}
    else:
        state |= {f"{HEADS[trunk]}.weight": network.head.weight, f"{HEADS[trunk]}.bias": network.head.bias}
    return {f"module.{name}": tensor.detach().contiguous() for name, tensor in state.items()}


@pytest.mark.parametrize("name", TINY)
def test_each_kind_is_found_from_names_and_shapes(name: str, tmp_path: Path):
    network = random_network(name)
    torch.save({"state_dict": released(network)}, tmp_path / "c.pth")
    found = read_checkpoint(tmp_path / "c.pth")
    assert (found.config.trunk, found.config.width, tuple(found.config.depths)) == (
        network.config.trunk, network.config.width, tuple(network.config.depths)
    )  # fmt: skip
    patches = torch.randint(0, 256, (2, PATCH_PX, PATCH_PX, 3), dtype=torch.uint8)
    with torch.inference_mode():
        np.testing.assert_allclose(found(patches), network(patches), atol=1e-6)


def test_a_checkpoint_is_imported_and_its_card_claims_no_unit(tmp_path: Path):
    safetensors.torch.save_file(released(random_network("stnet")), tmp_path / "stnet.safetensors")
    (tmp_path / "genes.txt").write_text("A\nB\nC\n")
    out = tmp_path / "mine.safetensors"
    call = ("models", "import", tmp_path / "stnet.safetensors", "--genes", tmp_path / "genes.txt", "--mpp", 0.5)
    done = run(*call, "-o", out)
    assert done.exit_code == 0, done.output
    model = load_model(out)
    assert model.card["architecture"] == "densenet-custom"
    assert model.card["expression_unit"] == "as its authors trained it"
    assert load_network(model).config.n_genes == 3


@pytest.mark.parametrize("change", ["no head", "a tensor less", "basic blocks"])
def test_what_is_no_whole_network_is_refused(change: str, tmp_path: Path):
    state = released(random_network("resnet50"))
    if change == "no head":
        del state["module.fc.weight"]
    elif change == "a tensor less":
        del state["module.layer2.0.conv2.weight"]
    else:
        state = {name: tensor for name, tensor in state.items() if "conv3" not in name}
    torch.save(state, tmp_path / "c.pth")
    with pytest.raises(ModelFileError, match="not the tensors of a network of one patch"):
        read_checkpoint(tmp_path / "c.pth")
