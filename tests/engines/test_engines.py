from __future__ import annotations

import numpy as np
import pytest
import torch

from stpredict.engines import EngineRequest, open_engine
from stpredict.engines.check import check_patches, compare
from stpredict.engines.eager import run_reference
from stpredict.errors import EngineError, UsageError
from stpredict.machine import cache_folder


@pytest.fixture(scope="module")
def patches(region):
    rng = np.random.default_rng(0)
    corners = zip(rng.integers(0, 2700, 40), rng.integers(0, 1900, 40), strict=True)
    return np.stack([region[y : y + 224, x : x + 224] for y, x in corners])


def infer(engine, patches):
    batches = np.split(patches, len(patches) // engine.batch_size)
    return np.concatenate(list(engine.infer(batches)))


@pytest.mark.parametrize(("name", "precision"), [("eager", "fp32"), ("eager", "bf16"), ("openvino", "fp32")])
def test_engines_agree_with_the_network(tiny_model, patches, name, precision):
    engine = open_engine(tiny_model, EngineRequest(name, precision, batch_size=8), patches, print)
    assert (engine.name, engine.precision) == (name, precision)
    output, reference = infer(engine, patches), run_reference(tiny_model, patches)
    assert output.dtype == np.float32
    tolerance = 1e-3 if precision == "fp32" else 0.1  # grey levels on the edge may round either way
    assert np.sqrt(((output - reference) ** 2).mean(axis=0)).max() < tolerance * reference.std(axis=0).max()
    assert engine.verdict.passed


def test_results_come_in_the_order_of_the_batches(tiny_model, patches):
    engine = open_engine(tiny_model, EngineRequest("openvino", "fp32", batch_size=1, threads=2), patches, print)
    np.testing.assert_allclose(infer(engine, patches), run_reference(tiny_model, patches), atol=1e-3)


def test_a_row_does_not_depend_on_the_rest_of_its_batch(tiny_model, patches):
    engine = open_engine(tiny_model, EngineRequest("openvino", batch_size=8), patches, print)
    (whole,) = engine.infer([patches[:8]])
    padded = np.full_like(patches[:8], 255)
    padded[0] = patches[0]
    (alone,) = engine.infer([padded])
    np.testing.assert_array_equal(whole[0], alone[0])


def test_the_compiled_model_and_its_verdict_are_kept(tiny_model, patches, monkeypatch):
    request = EngineRequest("openvino", "fp32", batch_size=4)
    first = open_engine(tiny_model, request, patches, print)
    assert list(cache_folder().glob("openvino-*.blob"))
    monkeypatch.setattr("stpredict.engines.openvino._compile", None)  # must not be needed
    second = open_engine(tiny_model, request, patches[:2], print)
    assert second.verdict == first.verdict
    np.testing.assert_array_equal(infer(first, patches), infer(second, patches))


def test_a_damaged_cache_is_built_again(tiny_model, patches):
    request = EngineRequest("openvino", "fp32", batch_size=2)
    open_engine(tiny_model, request, patches, print)
    for blob in cache_folder().glob("openvino-*.blob"):
        blob.write_bytes(blob.read_bytes()[:1000])
    assert open_engine(tiny_model, request, patches, print).verdict.passed


def test_a_wrong_engine_fails_its_check_and_auto_falls_back_aloud(tiny_model, patches, monkeypatch):
    import stpredict.engines.openvino as room

    true = room._compile

    def shifted(core, model, config, batch_size):
        class Shifted:
            def __init__(self):
                self.real = true(core, model, config, batch_size)

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


def test_a_processor_without_bf16_runs_fp32_without_a_word(tiny_model, patches, monkeypatch):
    import openvino

    real = openvino.Core.get_property

    def old_processor(self, device, name, *more):
        return ["FP32", "INT8"] if name == "OPTIMIZATION_CAPABILITIES" else real(self, device, name, *more)

    monkeypatch.setattr(openvino.Core, "get_property", old_processor)
    lines: list[str] = []
    for name in ("openvino", "auto"):
        engine = open_engine(tiny_model, EngineRequest(name, batch_size=8), patches, lines.append)
        assert (engine.name, engine.precision) == ("openvino", "fp32")
    assert all(line.startswith("compiling") for line in lines)
    with pytest.raises(EngineError, match="has no bf16"):
        open_engine(tiny_model, EngineRequest("openvino", "bf16"), patches, lines.append)


def test_the_check_sees_nan_scale_and_shuffled_genes():
    reference = np.random.default_rng(0).normal(size=(32, 20)).astype(np.float32)
    assert compare(reference, reference, "fp32").passed
    assert compare(reference + 1e-6, reference, "fp32").passed
    assert not compare(reference * 1.2, reference, "bf16").passed
    assert not compare(np.roll(reference, 1, axis=1), reference, "bf16").passed
    flat = np.ones((32, 20), np.float32)
    assert compare(flat + 1e-4, flat, "fp32").passed
    assert not compare(flat + 100, flat, "bf16").passed
    broken = reference.copy()
    broken[3, 3] = np.nan
    assert not compare(broken, reference, "bf16").passed


@pytest.mark.parametrize("n", [1, 5, 32, 100])
def test_check_patches_are_enough_for_any_sample(n):
    assert check_patches(np.zeros((n, 8, 8, 3), np.uint8)).shape == (32, 8, 8, 3)


def test_requests_that_cannot_be_met(tiny_model, patches):
    with pytest.raises(UsageError, match="--engine tensorflow: choose one of auto, openvino, eager"):
        EngineRequest("tensorflow")
    with pytest.raises(UsageError, match="--precision int4"):
        EngineRequest(precision="int4")
    with pytest.raises(EngineError, match="runs on the CPU"):
        open_engine(tiny_model, EngineRequest("openvino", device="cuda"), patches, print)
    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match="sees no GPU"):
            open_engine(tiny_model, EngineRequest("eager", device="cuda"), patches, print)
