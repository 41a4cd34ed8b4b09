from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import run
from conftest import DATA

from stpredict.engines.eager import load_network
from stpredict.errors import ModelFileError
from stpredict.model.file import load_model
from stpredict.model.published import M2ORT_NAMES, M2OST_NAMES, _renamed, read_checkpoint
from stpredict.networks import architecture_config, make_network
from stpredict.networks.m2ort import M2ORT
from stpredict.networks.m2ost import VIEWS, M2OSTConfig

GOLDEN = DATA / "m2ort_released_tiny.pth"


@pytest.fixture(scope="module")
def golden_io():
    with np.load(DATA / "m2ort_released_tiny_io.npz") as file:
        return {name: file[name] for name in file}


@pytest.mark.parametrize(("v_from", "output"), [("qkv3", "output"), ("qkv2", "output_v_from_qkv2")])
def test_a_released_checkpoint_computes_what_the_released_code_did(golden_io, v_from, output):
    network = read_checkpoint(GOLDEN, v_from, head_dim=16)
    with torch.inference_mode():
        ours = network.forward_levels(*(torch.from_numpy(golden_io[f"level{i}"]).float() for i in range(3)))
    np.testing.assert_allclose(ours, golden_io[output], atol=1e-5)


def test_import_writes_a_model_that_computes_the_same(tmp_path: Path, golden_io):
    genes = tmp_path / "genes.csv"
    genes.write_text("gene,other\n" + "\n".join(f"G{i},x" for i in range(7)))
    out = tmp_path / "mine.safetensors"
    call = ["models", "import", str(GOLDEN), "--genes", str(genes), "--mpp", "0.5", "--head-dim", "16", "-o", str(out)]
    assert run(*call).exit_code == 0
    model = load_model(out)
    assert model.panel == [f"G{i}" for i in range(7)]
    assert model.card["mpp"] == 0.5
    with torch.inference_mode():
        levels = [torch.from_numpy(golden_io[f"level{i}"]).float() for i in range(3)]
        np.testing.assert_allclose(load_network(model).forward_levels(*levels), golden_io["output"], atol=1e-5)
    again = run(*call)
    assert again.exit_code == 2
    assert "exists" in again.output


@pytest.mark.parametrize("option", [("--mpp", "100"), ("--pitch", "9000")])
def test_a_model_that_would_be_refused_is_not_written(tmp_path: Path, option):
    genes, out = tmp_path / "genes.txt", tmp_path / "mine.safetensors"
    genes.write_text("\n".join(f"G{i}" for i in range(7)))
    out.write_bytes(b"a good model")
    call = ["models", "import", GOLDEN, "--genes", genes, "--mpp", "0.5", "--head-dim", "16", "-o", out, "--overwrite"]
    done = run(*call, *option)
    assert done.exit_code == 2
    assert "a model file cannot hold this" in done.stderr
    assert out.read_bytes() == b"a good model"


@pytest.mark.parametrize("architecture", ["m2ort-small", "m2ort-small-cross", "m2ort-base-cross"])
def test_variant_and_mixing_are_found_from_the_shapes(tmp_path: Path, architecture):
    network = M2ORT(architecture_config(architecture, n_genes=9))
    torch.save(released_state_dict(network), tmp_path / "checkpoint.pth")
    found = read_checkpoint(tmp_path / "checkpoint.pth").config
    assert found == architecture_config(architecture, n_genes=9, mlp_dim=2 * network.config.channels)


def released_state_dict(network: M2ORT) -> dict[str, torch.Tensor]:
    """The tensors of a network under the released names, as DataParallel saves them."""
    sizes = network.config
    names = ["pos_embedding", "cls_token", "mlp_head.weight", "mlp_head.bias"]
    names += [f"transformer.norm.{kind}" for kind in ("weight", "bias")]
    for level in (1, 2, 3):
        names += [f"to_patch_embedding{level}.{i}.{k}" for i in (1, 2, 4, 5) for k in ("weight", "bias")]
    outs = ["to_out.0"] if sizes.mixing == "cross_level" else [f"to_out{level}.0" for level in (1, 2, 3)]
    for layer in range(sizes.depth):
        attention = f"transformer.layers.{layer}.0"
        names += [f"{attention}.norm.weight", f"{attention}.norm.bias"]
        names += [f"{attention}.to_qkv{level}.weight" for level in (1, 2, 3)]
        names += [f"{attention}.{out}.{k}" for out in outs for k in ("weight", "bias")]
        names += [f"transformer.layers.{layer}.1.net.{i}.{k}" for i in (0, 1, 4) for k in ("weight", "bias")]
    state = network.state_dict()
    assert len(names) == len(state)
    return {f"module.{name}": state[_renamed(name, M2ORT_NAMES, Path())] for name in names}


#: Tensors of a released M2OST of width 192 and depth 4, as its code makes them; {i} is 0 to 3.
RELEASED_M2OST = """
pos_embedding1 1x197x192, pos_embedding2 1x393x192, pos_embedding3 1x589x192, cls_token 1x1x192,
to_patch_embedding1.1.weight 768, to_patch_embedding1.1.bias 768, to_patch_embedding1.2.weight 576x768,
to_patch_embedding1.2.bias 576, to_patch_embedding1.4.weight 192x576, to_patch_embedding1.4.bias 192,
to_patch_embedding1.5.weight 192, to_patch_embedding1.5.bias 192,
to_patch_embedding2.1.weight 192, to_patch_embedding2.1.bias 192, to_patch_embedding2.2.weight 288x192,
to_patch_embedding2.2.bias 288, to_patch_embedding2.4.weight 192x288, to_patch_embedding2.4.bias 192,
to_patch_embedding2.5.weight 192, to_patch_embedding2.5.bias 192,
to_patch_embedding3.1.weight 48, to_patch_embedding3.1.bias 48, to_patch_embedding3.2.weight 144x48,
to_patch_embedding3.2.bias 144, to_patch_embedding3.4.weight 192x144, to_patch_embedding3.4.bias 192,
to_patch_embedding3.5.weight 192, to_patch_embedding3.5.bias 192,
transformer.norm.weight 192, transformer.norm.bias 192,
transformer.layers.{i}.0.norm.weight 576, transformer.layers.{i}.0.norm.bias 576,
transformer.layers.{i}.0.to_qkv1.weight 576x192, transformer.layers.{i}.0.to_qkv2.weight 576x192,
transformer.layers.{i}.0.to_qkv3.weight 576x192,
transformer.layers.{i}.0.to_out1.0.weight 192x192, transformer.layers.{i}.0.to_out1.0.bias 192,
transformer.layers.{i}.0.to_out2.0.weight 192x192, transformer.layers.{i}.0.to_out2.0.bias 192,
transformer.layers.{i}.0.to_out3.0.weight 192x192, transformer.layers.{i}.0.to_out3.0.bias 192,
transformer.layers.{i}.1.split_mlp.0.weight 192, transformer.layers.{i}.1.split_mlp.0.bias 192,
transformer.layers.{i}.1.split_mlp.1.weight 128x192, transformer.layers.{i}.1.split_mlp.1.bias 128,
transformer.layers.{i}.1.split_mlp.4.weight 192x128, transformer.layers.{i}.1.split_mlp.4.bias 192,
transformer.layers.{i}.2.norm.weight 192, transformer.layers.{i}.2.norm.bias 192,
transformer.layers.{i}.2.to_q0.weight 192x192, transformer.layers.{i}.2.to_k0.weight 192x192,
transformer.layers.{i}.2.to_v0.weight 192x192, transformer.layers.{i}.2.to_q1.weight 192x192,
transformer.layers.{i}.2.to_k1.weight 192x192, transformer.layers.{i}.2.to_v1.weight 192x192,
transformer.layers.{i}.2.to_q2.weight 192x192, transformer.layers.{i}.2.to_k2.weight 192x192,
transformer.layers.{i}.2.to_v2.weight 192x192,
transformer.layers.{i}.2.to_out0.0.weight 192x384, transformer.layers.{i}.2.to_out0.0.bias 192,
transformer.layers.{i}.2.to_out1.0.weight 192x384, transformer.layers.{i}.2.to_out1.0.bias 192,
transformer.layers.{i}.2.to_out2.0.weight 192x384, transformer.layers.{i}.2.to_out2.0.bias 192,
transformer.layers.{i}.3.net.0.weight 576, transformer.layers.{i}.3.net.0.bias 576,
transformer.layers.{i}.3.net.1.weight 384x576, transformer.layers.{i}.3.net.1.bias 384,
transformer.layers.{i}.3.net.4.weight 576x384, transformer.layers.{i}.3.net.4.bias 576,
mlp_head.weight 250x576, mlp_head.bias 250
"""


@pytest.fixture(scope="module")
def released_m2ost(tmp_path_factory) -> Path:
    """A checkpoint of random numbers in the released layout."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    for entry in RELEASED_M2OST.replace("\n", " ").split(","):
        name, shape = entry.split()
        for i in range(4 if "{i}" in name else 1):
            size = [int(n) for n in shape.split("x")]
            tensors[f"module.{name.format(i=i)}"] = 0.1 * torch.randn(size, generator=generator)
    path = tmp_path_factory.mktemp("checkpoints") / "m2ost.pth"
    torch.save({"state_dict": tensors}, path)
    return path


def test_a_released_m2ost_has_all_its_tensors_in_their_places(released_m2ost: Path):
    network = read_checkpoint(released_m2ost)
    assert network.config == architecture_config("m2ost", n_genes=250)
    released = torch.load(released_m2ost, weights_only=True)["state_dict"]
    places = {
        "pos_embedding3": network.position_embeddings[2],
        "to_patch_embedding2.4.weight": network.patch_embeddings[1].project.weight,
        "transformer.layers.1.0.norm.bias": network.encoders[1].unused_norm.bias,
        "transformer.layers.2.0.to_qkv1.weight": network.encoders[2].token_mixing.qkv[0].weight,
        "transformer.layers.2.0.to_out3.0.bias": network.encoders[2].token_mixing.out[2].bias,
        "transformer.layers.3.1.split_mlp.4.weight": network.encoders[3].level_mlp.expand.weight,
        "transformer.layers.0.2.to_k0.weight": network.encoders[0].cross_level_mixing.k[0].weight,
        "transformer.layers.0.2.to_v2.weight": network.encoders[0].cross_level_mixing.v[2].weight,
        "transformer.layers.0.2.to_out1.0.weight": network.encoders[0].cross_level_mixing.out[1].weight,
        "transformer.layers.3.3.net.1.bias": network.encoders[3].channel_mixing.squeeze.bias,
        "transformer.norm.weight": network.norm.weight,
    }
    for name, tensor in places.items():
        torch.testing.assert_close(released[f"module.{name}"], tensor.detach())
    assert len({_renamed(name.removeprefix("module."), M2OST_NAMES, Path()) for name in released}) == 192
    assert sum(tensor.numel() for tensor in released.values()) == 7_043_466


def test_an_imported_m2ost_predicts_from_three_views(released_m2ost: Path, tmp_path: Path):
    (tmp_path / "genes.txt").write_text("\n".join(f"G{i}" for i in range(250)))
    out = tmp_path / "mine.safetensors"
    call = ["models", "import", str(released_m2ost), "--genes", str(tmp_path / "genes.txt"), "--mpp", "0.5"]
    done = run(*call, "-o", str(out))
    assert done.exit_code == 0, done.output
    model = load_model(out)
    assert model.card["architecture"] == "m2ost"
    assert model.patch_shape == (3, 224, 224, 3)
    views = torch.randint(0, 256, (2, *model.patch_shape), dtype=torch.uint8)
    with torch.inference_mode():
        np.testing.assert_array_equal(load_network(model)(views), read_checkpoint(released_m2ost)(views))
    shown = run("models", "show", str(out))
    assert "input: 224 px patches at 0.5 um/px, and fields 2 and 4 times as wide; spots" in shown.output
    refused = run(*call, "--v-from-qkv2", "-o", str(tmp_path / "other.safetensors"))
    assert refused.exit_code == 2
    assert "for M2ORT, but m2ost.pth is of M2OST" in refused.output


def test_sizes_of_an_m2ost_are_found_from_the_shapes(tmp_path: Path):
    config = M2OSTConfig(n_genes=3, views=VIEWS, channels=24, depth=2, heads=3, head_dim=8, cross_heads=2, patch_px=32)
    here = make_network(config).state_dict()
    released = {name: here[_renamed(name, M2OST_NAMES, Path())] for name in released_m2ost_names(config.depth)}
    torch.save(released, tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth", head_dim=8).config == config
    with pytest.raises(ModelFileError, match="do not divide into attention heads of 64"):
        read_checkpoint(tmp_path / "x.pth")
    del released["transformer.layers.1.2.to_q0.weight"]
    torch.save(released, tmp_path / "x.pth")
    with pytest.raises(ModelFileError, match="not the tensors of an M2OST"):
        read_checkpoint(tmp_path / "x.pth", head_dim=8)


def released_m2ost_names(depth: int) -> list[str]:
    names = [entry.split()[0] for entry in RELEASED_M2OST.replace("\n", " ").split(",")]
    return list(dict.fromkeys(name.format(i=i) for name in names for i in range(depth)))


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_pickled_code_is_not_executed(tmp_path: Path, capsys):
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"weight": Evil()}))
    with pytest.raises(ModelFileError, match="not a checkpoint of plain tensors"):
        read_checkpoint(path)
    torch.save({"weight": Evil()}, path)
    with pytest.raises(ModelFileError, match="not a checkpoint of plain tensors"):
        read_checkpoint(path)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("change", ["other key", "missing key", "wrong shape", "no tensors", "half a file"])
def test_other_files_get_one_clear_error(tmp_path: Path, change):
    state = torch.load(GOLDEN, weights_only=True)
    path = tmp_path / "checkpoint.pth"
    if change == "other key":
        state["module.conv1.weight"] = torch.zeros(3)
    elif change == "missing key":
        del state["module.transformer.layers.1.1.net.4.bias"]
    elif change == "wrong shape":
        state["module.transformer.layers.0.1.net.1.weight"] = torch.zeros(3, 3)
    elif change == "no tensors":
        state = {"epoch": 3}
    torch.save(state, path)
    if change == "half a file":
        path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(ModelFileError, match="checkpoint"):
        read_checkpoint(path, head_dim=16)


def test_head_width_that_does_not_divide_is_refused():
    with pytest.raises(ModelFileError, match="head-dim"):
        read_checkpoint(GOLDEN)


@pytest.mark.parametrize(("names", "says"), [(["A", "B"], "predicts 7 genes, but 2"), (["A"] * 7, "more than once")])
def test_gene_lists_that_do_not_fit_are_refused(tmp_path: Path, names, says):
    np.save(tmp_path / "genes.npy", np.array(names))
    call = ["models", "import", str(GOLDEN), "--genes", str(tmp_path / "genes.npy"), "--mpp", "0.5", "--head-dim", "16"]
    result = run(*call, "-o", str(tmp_path / "out.safetensors"))
    assert result.exit_code == 2
    assert says in result.output
    assert not (tmp_path / "out.safetensors").exists()


def test_card_of_an_imported_model_says_it_was_never_tested(tmp_path: Path):
    (tmp_path / "genes.txt").write_text("\n".join(json.dumps(f"G{i}") for i in range(7)))
    out = tmp_path / "mine.safetensors"
    call = ["models", "import", str(GOLDEN), "--genes", str(tmp_path / "genes.txt"), "--mpp", "0.5", "--head-dim", "16"]
    run(*call, "-o", str(out))
    shown = run("models", "show", str(out))
    assert shown.exit_code == 0
    assert "never tested on held-out tissue" in shown.output
