from __future__ import annotations

import numpy as np
import pytest
import torch

import stpredict.engines.compile as compiling
from stpredict.engines.eager import run_reference
from stpredict.engines.engine import EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.errors import EngineError

needs_compiler = pytest.mark.skipif(compiling.unavailable("cpu") is not None, reason=str(compiling.unavailable("cpu")))


@needs_compiler
def test_one_graph_whose_outputs_are_the_caller_s(tiny_model, patches):
    torch.compiler.reset()
    engine = open_engine(tiny_model, EngineRequest("compile", batch_size=4), patches, print)
    assert (engine.name, engine.precision, engine.device) == ("compile", "fp32", "cpu")
    assert engine.verdict.passed
    outputs = list(engine.infer([patches[:4], patches[4:8]]))
    np.testing.assert_allclose(np.concatenate(outputs), run_reference(tiny_model, patches[:8]), atol=1e-3)
    padded = np.concatenate([patches[:1], np.full_like(patches[:3], 255)])
    (tail,) = engine.infer([padded])
    np.testing.assert_array_equal(tail[0], outputs[0][0])
    from torch._dynamo.utils import counters

    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_a_compiler_that_fails_is_an_error_that_says_so(tiny_model, patches, monkeypatch):
    def broken(*_args):
        def run(_patches):
            raise torch._dynamo.exc.InternalTorchDynamoError("no such kernel\nand much more")

        return run

    monkeypatch.setattr(compiling, "compile_network", broken)
    monkeypatch.setattr(compiling, "unavailable", lambda _: None)
    with pytest.raises(EngineError, match=r"compile: torch cannot compile tiny \(.*: no such kernel\)\."):
        open_engine(tiny_model, EngineRequest("compile"), patches, print)


def test_what_is_missing_is_named(tiny_model, patches, monkeypatch):
    monkeypatch.setattr(compiling.shutil, "which", lambda _: None)
    with pytest.raises(EngineError, match="no C\\+\\+ compiler is installed; install g\\+\\+"):
        open_engine(tiny_model, EngineRequest("compile"), patches, print)
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda _: None)
    assert compiling.unavailable("cuda") == "Triton is not installed; pip install triton"
