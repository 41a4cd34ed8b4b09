"""Engines run networks of a trunk and a head."""

from __future__ import annotations

import numpy as np
import openvino
import pytest
import torch
from conftest import GENES, make_model
from patch_networks import PATCH_PX, TINY

import stpredict.engines.compile as compiling
from stpredict.engines.check import compare
from stpredict.engines.eager import run_reference
from stpredict.engines.engine import EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.errors import EngineError
from stpredict.model.file import Model, load_model, save_model
from stpredict.networks.patch_level import PatchConfig

no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
needs_compiler = pytest.mark.skipif(compiling.unavailable("cpu") is not None, reason="there is no compiler")
no_bf16 = pytest.mark.skipif(
    "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"), reason="this processor has no bf16"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Model]:
    """Of random weights, their heads too, which may begin at zero, and their batch norms' statistics."""
    folder, rng, found = tmp_path_factory.mktemp("models"), np.random.default_rng(0), {}
    for name, sizes in TINY.items():
        sizes = {key: value for key, value in sizes.items() if key != "network"}
        path = make_model(
            folder / f"{name}.safetensors", config=PatchConfig(len(GENES), patch_px=PATCH_PX, **sizes),
            patch_px=PATCH_PX, architecture=name,
        )  # fmt: skip
        model = load_model(path)
        tensors = dict(model.tensors)
        tensors["head.weight"] = rng.normal(0, 1, tensors["head.weight"].shape).astype(np.float32)
        for key in tensors:
            if key.endswith("running_mean"):
                tensors[key] = rng.normal(0, 0.1, tensors[key].shape).astype(np.float32)
        save_model(path, tensors, model.card)
        found[name] = load_model(path)
    return found


@pytest.fixture(scope="module")
def small_patches(patches):
    return np.ascontiguousarray(patches[:, 80 : 80 + PATCH_PX, 80 : 80 + PATCH_PX])


@pytest.mark.processor
@pytest.mark.parametrize(
    ("name", "precision", "device"),
    [
        ("eager", "bf16", "cpu"),
        ("openvino", "fp32", "cpu"),
        pytest.param("openvino", "bf16", "cpu", marks=no_bf16),
        pytest.param("eager", "fp32", "cuda", marks=no_gpu),
        pytest.param("eager", "bf16", "cuda", marks=no_gpu),
        pytest.param("compile", "bf16", "cuda", marks=no_gpu),
    ],
)
@pytest.mark.parametrize("architecture", TINY)
def test_engines_agree_with_the_network(models, small_patches, architecture, name, precision, device):
    agree(models[architecture], small_patches, EngineRequest(name, precision, device, batch_size=8))


@needs_compiler
def test_torch_compiles_what_is_enlarged_convolved_and_attended_to(models, small_patches):
    agree(models["crossvit"], small_patches, EngineRequest("compile", "fp32", "cpu", batch_size=8))


def agree(model: Model, patches, request: EngineRequest) -> None:
    engine = open_engine(model, request, patches, print)
    assert (engine.name, engine.precision) == (request.name, request.precision)
    output = np.concatenate(list(engine.infer(np.split(patches, 5))))
    reference = run_reference(model, patches)
    assert reference.std(axis=0).min() > 1e-3
    assert compare(output, reference, request.precision).relative_deviation < engine.verdict.tolerance


def test_int8_is_refused(models, small_patches):
    with pytest.raises(EngineError, match="int8: for M2ORT alone, which stnet is not"):
        open_engine(models["stnet"], EngineRequest("openvino", "int8"), small_patches, print)
