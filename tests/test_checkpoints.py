from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA
from typer.testing import CliRunner

from stpredict.checkpoints import read_checkpoint
from stpredict.cli import app
from stpredict.engines.eager import load_network
from stpredict.errors import ModelFileError
from stpredict.networks import architecture_config
from stpredict.networks.m2ort import M2ORT
from stpredict.weights import load_model

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
    assert CliRunner().invoke(app, call).exit_code == 0
    model = load_model(out)
    assert model.panel == [f"G{i}" for i in range(7)]
    assert model.card["mpp"] == 0.5
    with torch.inference_mode():
        levels = [torch.from_numpy(golden_io[f"level{i}"]).float() for i in range(3)]
        np.testing.assert_allclose(load_network(model).forward_levels(*levels), golden_io["output"], atol=1e-5)
    again = CliRunner().invoke(app, call)
    assert again.exit_code == 2
    assert "exists" in again.output


@pytest.mark.parametrize("architecture", ["m2ort-small", "m2ort-small-cross", "m2ort-base-cross"])
def test_variant_and_mixing_are_found_from_the_shapes(tmp_path: Path, architecture):
    network = M2ORT(architecture_config(architecture, n_genes=9))
    torch.save(released_state_dict(network), tmp_path / "checkpoint.pth")
    found = read_checkpoint(tmp_path / "checkpoint.pth").config
    assert found == architecture_config(architecture, n_genes=9, mlp_dim=2 * network.config.channels)


def released_state_dict(network: M2ORT) -> dict[str, torch.Tensor]:
    """The tensors of a network under the released names, as DataParallel saves them."""
    from stpredict.checkpoints import _renamed

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
    return {f"module.{name}": state[_renamed(name, Path())] for name in names}


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
    result = CliRunner().invoke(app, [*call, "-o", str(tmp_path / "out.safetensors")])
    assert result.exit_code == 2
    assert says in result.output
    assert not (tmp_path / "out.safetensors").exists()


def test_card_of_an_imported_model_says_it_was_never_tested(tmp_path: Path):
    (tmp_path / "genes.txt").write_text("\n".join(json.dumps(f"G{i}") for i in range(7)))
    out = tmp_path / "mine.safetensors"
    call = ["models", "import", str(GOLDEN), "--genes", str(tmp_path / "genes.txt"), "--mpp", "0.5", "--head-dim", "16"]
    CliRunner().invoke(app, [*call, "-o", str(out)])
    shown = CliRunner().invoke(app, ["models", "show", str(out)])
    assert shown.exit_code == 0
    assert "never tested on held-out tissue" in shown.output
