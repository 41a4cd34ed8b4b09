"""Checkpoints of HisToGene and Hist2ST, as their released code has them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from calls import run

from stpredict.engines.eager import load_network
from stpredict.errors import ModelFileError
from stpredict.model.file import load_model
from stpredict.model.published import read_checkpoint
from stpredict.model.released_sections import system_of
from stpredict.networks import architecture_config

DATA = Path(__file__).parents[1] / "data"


def test_a_histogene_says_natural_logarithms_of_what_the_released_code_says():
    network = read_checkpoint(DATA / "histogene_released_tiny.safetensors")
    assert (network.config.image_px, network.config.heads, network.config.positions) == (8, 16, 12)
    with np.load(DATA / "histogene_released_tiny.npz") as golden, torch.inference_mode():
        column, row = torch.from_numpy(golden["centers"][0]).T
        tokens = network.patch_embedding(torch.from_numpy(golden["patches"][0]))
        placed = tokens + network.places.column(column) + network.places.row(row)
        found = network.head(network.mix(placed[None])[0]) / math.log(10)
        np.testing.assert_allclose(found, golden["y"][0], atol=2e-6)


def test_a_hist2st_is_imported_and_its_model_predicts_the_same(tmp_path: Path):
    (tmp_path / "genes.txt").write_text("A\nB\nC\nD\nE\n")
    done = run("models", "import", DATA / "hist2st_released_tiny.safetensors", "--genes", tmp_path / "genes.txt",
               "--mpp", 0.67, "-o", tmp_path / "mine.safetensors")  # fmt: skip
    assert done.exit_code == 0, done.output
    model = load_model(tmp_path / "mine.safetensors")
    assert model.card["architecture"] == "hist2st-custom"
    assert model.card["expression_unit"] == "ln(1 + counts per 10,000 of the panel)"
    read = read_checkpoint(DATA / "hist2st_released_tiny.safetensors")
    patches = torch.randint(0, 256, (3, 224, 224, 3), dtype=torch.uint8)
    with torch.inference_mode():
        np.testing.assert_allclose(load_network(model)(patches), read(patches), atol=1e-5)


def test_sizes_of_systems_are_known_by_name():
    for name in ("histogene", "histogene-4", "histogene-224", "hist2st", "hist2st-224"):
        assert system_of(architecture_config(name, n_genes=7)) == name


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path):
    tensors = safetensors.torch.load_file(DATA / "hist2st_released_tiny.safetensors")
    for missing, said in (("down", "Hist2ST"), ("vit.transformer.jknet", "Hist2ST")):
        torch.save({k: v for k, v in tensors.items() if missing not in k}, tmp_path / "less.pth")
        with pytest.raises(ModelFileError, match=said):
            read_checkpoint(tmp_path / "less.pth")
    with pytest.raises(ModelFileError, match="--head-dim"):
        read_checkpoint(DATA / "histogene_released_tiny.safetensors", head_dim=48)
