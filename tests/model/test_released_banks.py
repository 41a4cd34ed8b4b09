"""Checkpoints of BLEEP and EGN, and the bank of measured spots that they are given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from calls import run

from stpredict.data.cutting import write_tiles
from stpredict.data.dataset import read_dataset
from stpredict.data.tiles import read_tiles
from stpredict.engines.eager import load_network
from stpredict.errors import ModelFileError
from stpredict.model.file import load_model
from stpredict.model.published import read_checkpoint
from stpredict.model.released_banks import BankRequest, give_bank
from stpredict.networks.bleep import Bleep, BleepConfig
from stpredict.networks.egn import Egn
from stpredict.networks.trunks.resnet import make_resnet
from stpredict.statistics.metrics import log_cpm

DATA = Path(__file__).parents[1] / "data"
GENES = ["GNAS", "DDX5", "ERBB2", "CD74", "COL1A1", "KRT19", "ONLY_A1"]


@pytest.fixture(scope="module")
def tiles(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bank") / "measured.tiles.h5"
    write_tiles(read_dataset(dataset)[:1], path, patch_px=224, mpp=2, threads=1, report=print)
    return path


def bleep_checkpoint(path: Path) -> Bleep:
    """A random one under the released names, as DataParallel saves it, its projections those of the golden file."""
    torch.manual_seed(0)
    golden = safetensors.torch.load_file(DATA / "bleep_released_tiny.safetensors")
    network = Bleep(BleepConfig(n_genes=7, projection=6, trunk="resnet50", trunk_width=2, colours="bgr")).eval()
    state = {f"image_encoder.model.{name}": tensor for name, tensor in network.trunk.state_dict().items()}
    for part in ("image_projection", "spot_projection"):
        own = getattr(network, part)
        if part == "spot_projection":
            own.load_state_dict({
                name.removeprefix(f"{part}."): tensor.float() for name, tensor in golden.items() if part in name
            })  # fmt: skip
        state |= {f"{part.replace('spot', 'well')}.{name}": tensor for name, tensor in own.state_dict().items()}
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    return network


def test_a_bleep_is_imported_with_a_bank_and_says_whose_measurements_it_holds(tiles: Path, tmp_path: Path):
    network = bleep_checkpoint(tmp_path / "bleep.pt")
    (tmp_path / "genes.txt").write_text("\n".join(GENES))
    out = tmp_path / "mine.safetensors"
    call = ("models", "import", tmp_path / "bleep.pt", "--genes", tmp_path / "genes.txt", "--mpp", 2, "-o", out)
    without = run(*call)
    assert (without.exit_code, "name some by --bank" in without.stderr) == (2, True)
    done = run(*call, "--bank", tiles, "--licence", "CC-BY-4.0")
    assert done.exit_code == 0, done.output
    shown = run("models", "show", out).stdout
    assert "holds measurements of patients (A): the embedding and expression of 7 genes" in shown
    assert "licence of the data: CC-BY-4.0" in shown
    measured = read_tiles(tiles)
    counts = measured.panel_counts(GENES)
    kept = counts.sum(axis=1) > 0
    expression = torch.as_tensor(log_cpm(counts, measured.depth, 1e4)[kept], dtype=torch.float32)
    network.fill(expression, expression)
    patches = torch.from_numpy(measured.read_patches([0, 1]))
    with torch.inference_mode():
        found = load_network(load_model(out))(patches)
        np.testing.assert_allclose(found, network(patches), atol=2e-2)  # weights are kept in fp16
        assert network.features(patches).equal(network.image_projection(network.trunk(network.pixels(patches.flip(3)))))


def test_an_egn_needs_its_frozen_resnet_and_says_natural_logarithms(tiles: Path, tmp_path: Path):
    golden = DATA / "egn_released_tiny.safetensors"
    read = read_checkpoint(golden)
    assert isinstance(read, Egn)
    assert (read.config.n_genes, read.config.depth, read.config.patch_px, read.config.exemplar_depth) == (
        250,
        4,
        256,
        1,
    )
    torch.manual_seed(1)
    network = Egn(replace(read.config, n_genes=5, patch_px=224, exemplars=3)).eval()
    request = BankRequest(tiles, "CC-BY-4.0", None, print)
    with pytest.raises(ModelFileError, match="name it by --frozen"):
        give_bank(network, request, GENES[:5], 2.0)
    trunk = make_resnet("resnet18", 1).eval()
    safetensors.torch.save_file(trunk.state_dict(), tmp_path / "resnet.safetensors")
    before = {name: tensor.clone() for name, tensor in network.head.state_dict().items()}
    assert give_bank(network, replace(request, frozen=tmp_path / "resnet.safetensors"), GENES[:5], 2.0) == ["A"]
    measured = read_tiles(tiles)
    counts = measured.panel_counts(GENES[:5])
    labels = np.log10(1 + counts[counts.sum(axis=1) > 0])
    assert network.config.bank == len(labels)
    np.testing.assert_allclose(network.bank.expression.amin(dim=0), 0)
    np.testing.assert_allclose(network.bank.expression.amax(dim=0), 1)
    patches = torch.from_numpy(measured.read_patches([0, 1]))
    with torch.inference_mode():
        pixels = (patches.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        np.testing.assert_allclose(network.describe(patches), trunk(pixels), atol=1e-5)
        scaled = network.features(patches) @ before["weight"].T + before["bias"]
        expected = np.log(10) * (labels.min(axis=0) + np.ptp(labels, axis=0) * scaled.numpy())
        np.testing.assert_allclose(network(patches), expected, atol=1e-4)


def test_what_has_no_bank_or_predicts_nothing_is_refused(tiles: Path, tmp_path: Path):
    (tmp_path / "genes.txt").write_text("\n".join(GENES))
    options = ("--genes", tmp_path / "genes.txt", "--mpp", 2, "-o", tmp_path / "mine.safetensors")
    for checkpoint, more, said in (
        ("hipt_vit4k_released_tiny", (), "train --arch hipt or istar reads it"),
        ("egn_port_tiny", ("--bank", tiles), "TRIPLEX's authors' version"),
    ):
        refused = run("models", "import", DATA / f"{checkpoint}.safetensors", *options, *more)
        assert refused.exit_code == 2, refused.output
        assert said in refused.stderr
