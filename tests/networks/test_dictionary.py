from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from stpredict.engines.check import check_patches
from stpredict.engines.eager import run_reference
from stpredict.engines.engine import EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.errors import EngineError, ModelFileError
from stpredict.model.file import Model, load_model, save_model
from stpredict.networks import build_network, network_parameters
from stpredict.networks.dictionary import Dictionary, DictionaryConfig

PATCH_PX, SPOT_PX = 29, 12.0


def make_network(n_genes: int = 3) -> Dictionary:
    torch.manual_seed(0)
    network = Dictionary(DictionaryConfig(n_genes, SPOT_PX, components=5, centres=7, patch_px=PATCH_PX))
    with torch.no_grad():
        network.whiten.weight.mul_(5)
        network.feature_mean.uniform_()
        network.feature_scale.uniform_(1, 5)
    return network


def make_patches(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, PATCH_PX, PATCH_PX, 3), dtype=np.uint8)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    network = make_network()
    genes = ["GNAS", "DDX5", "ERBB2"]
    card = {
        "name": "words", "architecture": "dictionary", "parameters": network_parameters(network.config), "panel": genes,
        "patch_px": PATCH_PX, "mpp": 0.69, "spot_diameter_um": 100.0, "pitch_um": 200.0,
        "expression_unit": "ln(1 + CPM) of the expected share", "training": {}, "held_out": [],
        "genes": {"training_mean": None, "training_spread": None, "display_range": None},
        "intended_use": "Tests.",
    }  # fmt: skip
    save_model(tmp_path / "words.safetensors", {k: v.numpy() for k, v in network.state_dict().items()}, card)
    return load_model(tmp_path / "words.safetensors")


def slow_features(network: Dictionary, patch: np.ndarray) -> np.ndarray:
    """The definition, window by window."""
    density = -np.log((patch.astype(float) + 1) / 256)
    kernel, bias = (x.detach().double().numpy() for x in (network.whiten.weight, network.whiten.bias))
    starts = range(0, PATCH_PX - 8 + 1, 3)
    windows, in_spot = [], []
    for i, y in enumerate(starts):
        for j, x in enumerate(starts):
            window = density[y : y + 8, x : x + 8].transpose(2, 0, 1)
            windows.append([(k * window).sum() for k in kernel] + bias)
            off = (np.array([i, j]) + 0.5) / len(starts) - 0.5
            in_spot.append(np.hypot(*off) < SPOT_PX / PATCH_PX / 2)
    distance = cdist(np.array(windows), network.centres.double().numpy())
    near = np.maximum(distance.mean(axis=1, keepdims=True) - distance, 0)
    return np.concatenate([near.mean(axis=0), near.std(axis=0, ddof=1), near[np.array(in_spot)].mean(axis=0)])


def test_features_are_those_of_the_definition():
    network, patches = make_network(), make_patches(4)
    with torch.inference_mode():
        features = network.features(torch.from_numpy(patches)).numpy()
        output = network(torch.from_numpy(patches)).numpy()
    expected = np.array([slow_features(network, patch) for patch in patches])
    np.testing.assert_allclose(features, expected, atol=1e-4)
    standardised = (expected - network.feature_mean.numpy()) * network.feature_scale.numpy()
    weight, bias = (x.detach().numpy() for x in (network.head.weight, network.head.bias))
    np.testing.assert_allclose(output, standardised @ weight.T + bias, atol=1e-3)


def test_the_card_describes_it():
    network = make_network()
    again = build_network(network_parameters(network.config))
    assert isinstance(again, Dictionary)
    assert again.config == network.config
    with pytest.raises(ModelFileError, match="does not describe"):
        build_network({"network": "dictionary", "n_genes": 3})


@pytest.mark.parametrize("name", ["eager", "openvino"])
def test_engines_agree_in_fp32_and_refuse_less(model: Model, name: str):
    patches = make_patches(40)
    engine = open_engine(model, EngineRequest(name, batch_size=8), patches, print)
    assert engine.precision == "fp32"
    found = np.concatenate(list(engine.infer(patches[i : i + 8] for i in range(0, 40, 8))))
    np.testing.assert_allclose(found, run_reference(model, patches), atol=1e-3)
    assert engine.verdict.relative_deviation < 1e-3
    assert len(check_patches(patches)) == engine.verdict.patches
    for precision in ("bf16", "int8"):
        with pytest.raises(EngineError, match=r"needs fp32|for M2ORT alone"):
            open_engine(model, EngineRequest(name, precision), patches, print)


def test_autocast_leaves_it_alone():
    network, patches = make_network(), torch.from_numpy(make_patches(2))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        cast = network(patches)
    with torch.inference_mode():
        torch.testing.assert_close(cast, network(patches))
