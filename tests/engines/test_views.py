"""Engines run networks that look at several views of a spot."""

from __future__ import annotations

import numpy as np
import openvino
import pytest
import torch

import stpredict.engines.compile as compiling
from stpredict.engines.check import check_patches, compare
from stpredict.engines.eager import run_reference
from stpredict.engines.engine import EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.errors import EngineError

no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
needs_compiler = pytest.mark.skipif(compiling.unavailable("cpu") is not None, reason="there is no compiler")
no_bf16 = pytest.mark.skipif(
    "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"), reason="this processor has no bf16"
)


@pytest.mark.processor
@pytest.mark.parametrize(
    ("name", "precision", "device"),
    [
        ("eager", "fp32", "cpu"),
        ("eager", "bf16", "cpu"),
        ("eager", "fp16", "cpu"),
        ("openvino", "fp32", "cpu"),
        pytest.param("openvino", "bf16", "cpu", marks=no_bf16),
        pytest.param("compile", "fp32", "cpu", marks=needs_compiler),
        pytest.param("eager", "fp32", "cuda", marks=no_gpu),
        pytest.param("eager", "bf16", "cuda", marks=no_gpu),
        pytest.param("compile", "bf16", "cuda", marks=no_gpu),
    ],
)
def test_engines_agree_with_the_network(tiny_m2ost, stacks, name, precision, device):
    engine = open_engine(tiny_m2ost, EngineRequest(name, precision, device, batch_size=8), stacks, print)
    assert (engine.name, engine.precision) == (name, precision)
    output = np.concatenate(list(engine.infer(np.split(stacks, 5))))
    reference = run_reference(tiny_m2ost, stacks)
    assert output.dtype == np.float32
    assert compare(output, reference, precision).relative_deviation < engine.verdict.tolerance


def test_int8_is_refused(tiny_m2ost, stacks):
    with pytest.raises(EngineError, match="int8: for M2ORT alone, which m2ost is not"):
        open_engine(tiny_m2ost, EngineRequest("openvino", "int8"), stacks, print)


def test_too_few_spots_to_check_on_are_turned_with_all_their_views(stacks):
    chosen = check_patches(stacks[:2])
    assert chosen.shape == (32, *stacks.shape[1:])
    np.testing.assert_array_equal(chosen[1], np.rot90(stacks[0], axes=(1, 2)))
