from __future__ import annotations

import importlib.util

import numpy as np
import pytest

import stpredict.engines.int8 as int8
from stpredict.engines.check import check_index, compare
from stpredict.engines.eager import run_reference
from stpredict.engines.engine import EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.errors import EngineError


def test_without_nncf_the_error_says_how_to_get_it(tiny_model, patches, monkeypatch):
    def missing(_name):
        raise int8.metadata.PackageNotFoundError

    monkeypatch.setattr(int8.metadata, "version", missing)
    for name in ("auto", "openvino"):
        with pytest.raises(EngineError, match=r'needs nncf; pip install "\.\[int8\]"'):
            open_engine(tiny_model, EngineRequest(name, "int8"), patches, print)


@pytest.mark.parametrize("n", [1, 31, 40, 64, 500])
def test_calibration_looks_at_other_patches_than_the_check_where_it_can(n):
    sample = np.arange(n, dtype=np.uint8 if n < 256 else np.uint16)[:, None, None, None]
    calibrated = set(int8.calibration_patches(sample).ravel().tolist())
    assert calibrated
    if n >= 64:
        assert not calibrated & set(check_index(n).tolist())


def test_the_digest_tells_calibrations_apart(patches):
    assert int8.calibration_digest(patches) == int8.calibration_digest(patches.copy())
    assert int8.calibration_digest(patches) != int8.calibration_digest(patches[::-1])


@pytest.mark.skipif(importlib.util.find_spec("nncf") is None, reason="nncf is not installed")
def test_int8_is_int8_close_and_says_how_close(tiny_model, patches, own_folder, capsys):
    from openvino import Core

    lines: list[str] = []
    request = EngineRequest(precision="int8", batch_size=8)
    engine = open_engine(tiny_model, request, patches, lines.append)
    assert (engine.name, engine.precision) == ("openvino", "int8")
    assert "nncf" in engine.versions
    assert engine.verdict.passed
    assert 0 < engine.verdict.relative_deviation < engine.verdict.tolerance
    assert lines[-1] == f"int8: {engine.verdict.summary()}."
    assert capsys.readouterr().out == ""
    output = np.concatenate(list(engine.infer(np.split(patches, 5))))
    assert compare(output, run_reference(tiny_model, patches), "int8").passed
    open_engine(tiny_model, request, patches, lines.append)
    assert sum(line.startswith("compiling") for line in lines) == 1
    assert lines[-1] == f"int8: {engine.verdict.summary()}."
    other = open_engine(tiny_model, request, patches[::-1], lines.append)  # from the cache, so calibrated on the first
    assert other.description()["calibration"] == engine.calibration == int8.calibration_digest(patches)
    (path,) = own_folder.glob("openvino-*.bin")
    products = {
        layer.get_friendly_name(): layer.get_rt_info()["runtimePrecision"].astype(str)
        for layer in Core().import_model(path.read_bytes(), "CPU").get_runtime_model().get_ops()
        if layer.get_rt_info()["layerType"].astype(str) == "FullyConnected"
    }
    kept = {precision for name, precision in products.items() if "head" in name or "patch_embeddings" in name}
    assert not kept & {"i8", "u8"}
    assert any(precision in ("i8", "u8") for name, precision in products.items() if "token_mixing" in name)
