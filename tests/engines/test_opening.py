from __future__ import annotations

import numpy as np
import pytest
import torch

from stpredict.engines.eager import run_reference
from stpredict.engines.engine import EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.errors import EngineError, UsageError


def test_requests_that_cannot_be_met(tiny_model, patches):
    with pytest.raises(UsageError, match="--engine tensorflow: choose one of auto, tensorrt, compile, openvino, eager"):
        EngineRequest("tensorflow")
    with pytest.raises(UsageError, match="--precision int4"):
        EngineRequest(precision="int4")
    for name in ("eager", "compile", "tensorrt"):
        with pytest.raises(EngineError, match=f"{name}: runs in .*; for int8 there is openvino"):
            open_engine(tiny_model, EngineRequest(name, "int8"), patches, print)
    with pytest.raises(EngineError, match="runs on the CPU"):
        open_engine(tiny_model, EngineRequest("openvino", device="cuda"), patches, print)
    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match="sees no GPU"):
            open_engine(tiny_model, EngineRequest("eager", device="cuda"), patches, print)


def test_a_gpu_without_memory_gets_smaller_batches(monkeypatch, tiny_model, patches):
    import stpredict.engines.eager as room

    real, room_for, said = room.infer_batches, 5, []

    def small(run, device, batches):
        for batch in batches:
            if len(batch) > room_for:
                raise torch.OutOfMemoryError("CUDA out of memory")
            yield from real(run, device, [batch])

    monkeypatch.setattr(room, "infer_batches", small)
    engine = open_engine(tiny_model, EngineRequest("eager", batch_size=16), patches, said.append)
    assert engine.batch_size == 4
    assert [line.split("; ")[1] for line in said] == ["trying 8.", "trying 4."]
    np.testing.assert_allclose(
        np.concatenate(list(engine.infer(np.split(patches[:8], 2)))), run_reference(tiny_model, patches[:8]), atol=1e-4
    )
    room_for = 0
    with pytest.raises(EngineError, match="no memory for even one patch"):
        open_engine(tiny_model, EngineRequest("eager", batch_size=2), patches, said.append)


def test_a_wrong_engine_fails_its_check_and_auto_falls_back_aloud(tiny_model, patches, tmp_path, monkeypatch):
    import stpredict.engines.openvino as room

    monkeypatch.setenv("STPREDICT_CACHE", str(tmp_path))  # an engine that another test kept would not be compiled anew
    true = room._compile

    def shifted(core, graph, config):
        class Shifted:
            def __init__(self):
                self.real = true(core, graph, config)

            def create_infer_request(self):
                return Request(self.real.create_infer_request())

            def export_model(self, _stream):
                raise AssertionError("a model that failed its check must not be kept")

        class Request:
            def __init__(self, real):
                self.real = real

            def __getattr__(self, name):
                return getattr(self.real, name)

            def get_output_tensor(self):
                class Tensor:
                    data = self.real.get_output_tensor().data[:, ::-1]

                return Tensor

        return Shifted()

    monkeypatch.setattr(room, "_compile", shifted)
    lines: list[str] = []
    engine = open_engine(tiny_model, EngineRequest(batch_size=16), patches, lines.append)
    assert engine.name == "eager"
    assert any("failed its numeric check" in line for line in lines)
    with pytest.raises(EngineError, match="failed its numeric check"):
        open_engine(tiny_model, EngineRequest("openvino", "fp32", batch_size=16), patches, lines.append)
