"""TRIPLEX against what its released code computes of random weights (NEXGEM/TRIPLEX 4750051, all dropout off)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from stpredict.networks import build_network, network_parameters
from stpredict.networks.triplex import Triplex, TriplexConfig, fusion_loss

DATA = Path(__file__).parents[1] / "data"
CONFIG = TriplexConfig(
    n_genes=5, channels=32, fusion_depth=2, fusion_heads=2, fusion_mlp=2, global_depth=3, global_heads=4, global_mlp=1,
    neighbour_depth=2, neighbour_heads=4, neighbour_mlp=2, trunk_width=3,
)  # fmt: skip
NAMES = {
    r"target_linear\.(.+)": r"embed_target.\1",
    r"fc\.(.+)": r"head.\1",
    r"fc_neighbor\.(.+)": r"neighbour_head.\1",
    r"fc_(target|global)\.(.+)": r"\1_head.\2",
    r"neighbor_encoder\.norm\.(.+)": r"neighbour_norm.\1",
    r"(global|fusion)_encoder\.norm\.(.+)": r"\1_norm.\2",
    r"global_encoder\.pos_layer\.proj\.(.+)": r"position_encoding.\1",
}
BLOCK = re.compile(
    r"(?P<part>neighbor|global|fusion)_encoder\.(?P<layer>\w+)\.layers\.(?P<block>\d)\.(?P<half>[01])\.(?P<rest>.+)"
)
HALVES = {
    ("0", "norm"): "norm", ("0", "fn.to_out.0"): "attention.out", ("1", "norm"): "mlp.0", ("1", "fn.net.0"): "mlp.1",
    ("1", "fn.net.3"): "mlp.4",
}  # fmt: skip


def from_released(released: dict[str, Tensor]) -> dict[str, Tensor]:
    """A released state dict under our names; its global `to_qkv` is packed by head, dimension, and q, k, v."""
    ours: dict[str, Tensor] = {}
    biases = []
    for name, tensor in released.items():
        if not (found := BLOCK.fullmatch(name)):
            (renamed,) = {re.sub(old, new, name) for old, new in NAMES.items() if re.fullmatch(old, name)}
            ours[renamed] = tensor[:, 0] if "proj.weight" in name else tensor
            continue
        part = found["part"].replace("neighbor", "neighbour")
        number = int(found["block"]) + (found["layer"] == "layer2")
        block, inner = f"{part}_blocks.{number}", found["rest"].rpartition(".")[0]
        if "attention_biases" in name:
            biases.append(tensor)
        elif inner.startswith("fn.to_q") or inner == "fn.to_kv":
            three = tensor.reshape(4, 8, 3, 32).permute(2, 0, 1, 3).flatten(1, 2) if part == "global" else tensor
            rows = three.reshape(-1, 32, 32)
            kinds = {"fn.to_q": ("query",), "fn.to_kv": ("key", "value"), "fn.to_qkv": ("query", "key", "value")}[inner]
            ours |= {f"{block}.attention.{kind}.weight": row for kind, row in zip(kinds, rows, strict=True)}
        else:
            ours[f"{block}.{HALVES[found['half'], inner]}.{found['rest'].rpartition('.')[2]}"] = tensor
    return ours | {"position_bias": torch.stack(biases)}


@pytest.fixture(scope="module")
def released() -> dict[str, Tensor]:
    with np.load(DATA / "triplex_released_tiny.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(scope="module")
def network(released) -> Triplex:
    """Its ResNet18 is left out: the golden map stands for what that says of the patches."""
    network = Triplex(CONFIG).eval()
    network.embed_features = torch.nn.Identity()
    tensors = from_released(safetensors.torch.load_file(DATA / "triplex_released_tiny.safetensors"))
    missing, unknown = network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=False)
    assert not unknown
    assert all(name.startswith(("trunk.", "frozen.")) for name in missing)
    tokens = network.embed_target(released["target_map"].flatten(2).transpose(1, 2))
    network.target_tokens = lambda _patches: tokens  # type: ignore[method-assign]
    return network


def test_tokens_and_heads_are_the_released_codes(network, released):
    absent = ~released["mask"].bool()
    with torch.inference_mode():
        neighbours = network.neighbour_tokens(released["neighbours"], absent)
        tokens = network.global_tokens(released["features"], released["cells_row_column"].long())
        fused = network.fuse(network.views(None, released["neighbours"], absent, tokens), absent)
        outputs = network.all_outputs(None, released["neighbours"], absent, tokens)
    for found, name in (
        (network.target_tokens(None), "target_tokens"), (neighbours, "neighbour_tokens"), (tokens, "global_tokens"),
        (fused, "fused"), (outputs[0], "out_fused"), (outputs[1], "out_target"), (outputs[3], "out_global"),
    ):  # fmt: skip
        np.testing.assert_allclose(found.detach(), released[name], atol=5e-6, err_msg=name)
    with torch.inference_mode():
        of_all_places = network.neighbour_head(neighbours.mean(dim=1))
    np.testing.assert_allclose(of_all_places, released["out_neighbour"], atol=5e-6)


def test_the_neighbour_head_reads_only_neighbours_that_are_there(network, released):
    """Other than the released code, whose mean counts absent places too."""
    absent = ~released["mask"].bool()
    with torch.inference_mode():
        tokens = network.neighbour_tokens(released["neighbours"], absent)
        outputs = network.all_outputs(None, released["neighbours"], absent, torch.zeros(len(absent), 32))
        for i, (here, found) in enumerate(zip(tokens, outputs[2], strict=True)):
            np.testing.assert_allclose(found, network.neighbour_head(here[~absent[i]].mean(dim=0)), atol=1e-5)


def test_the_fusion_loss_is_the_released_codes(released):
    outputs = [released[f"out_{name}"] for name in ("fused", "target", "neighbour", "global")]
    loss = fusion_loss(outputs, lambda z: torch.nn.functional.mse_loss(z, released["label"]), detach=False)
    assert float(loss) == pytest.approx(float(released["loss_without_clamp"]), rel=1e-6)


def test_a_card_older_than_the_norm_after_the_neighbours_describes_a_network_without(network, released):
    old = {key: value for key, value in network_parameters(CONFIG).items() if key != "neighbour_norm"}
    older = build_network(old).eval()
    assert isinstance(older, Triplex)
    assert not any(name.startswith("neighbour_norm") for name in older.state_dict())
    older.embed_features = torch.nn.Identity()
    kept = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("neighbour_norm")}
    assert older.load_state_dict(kept, strict=False).unexpected_keys == []
    absent = ~released["mask"].bool()
    with torch.inference_mode():
        before = older.neighbour_tokens(released["neighbours"], absent)
        np.testing.assert_allclose(
            network.neighbour_norm(before), network.neighbour_tokens(released["neighbours"], absent), atol=1e-6
        )
        assert not torch.allclose(before, network.neighbour_norm(before), atol=0.1)
    assert isinstance(build_network(network_parameters(CONFIG)).neighbour_norm, torch.nn.LayerNorm)
