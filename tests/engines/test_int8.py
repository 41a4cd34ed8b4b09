from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys

import numpy as np
import pytest

import stpredict.engines.int8 as int8
from stpredict.engines.cache import cache_path
from stpredict.engines.check import check_index, compare
from stpredict.engines.eager import run_reference
from stpredict.engines.engine import EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.engines.openvino import cache_key, convert
from stpredict.errors import EngineError
from stpredict.machine import instruction_sets

x86_64 = pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="not an x86-64")
needs_nncf = pytest.mark.skipif(importlib.util.find_spec("nncf") is None, reason="nncf is not installed")
pytestmark = pytest.mark.processor
#: Whether the kernels of these tests are told to do without VNNI.
WITHOUT_VNNI = ("AVX512_CORE", "AVX2", "SSE41")
capped = os.environ.get("ONEDNN_MAX_CPU_ISA") in WITHOUT_VNNI


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
    assert int8.calibration_digest(patches, True) == int8.calibration_digest(patches.copy(), True)
    assert int8.calibration_digest(patches, True) != int8.calibration_digest(patches[::-1], True)
    assert int8.calibration_digest(patches, True) != int8.calibration_digest(patches, False)


@x86_64
def test_sums_overflow_where_the_processor_has_no_vnni():
    sets = instruction_sets()
    assert int8.sums_overflow() == (capped or not (sets["AVX-512 VNNI"] or sets["AVX-VNNI"]))


@x86_64
@pytest.mark.parametrize("cap", WITHOUT_VNNI)
def test_sums_overflow_where_the_kernels_are_told_to_do_without_vnni(cap):
    program = "from stpredict.engines.int8 import sums_overflow; print(sums_overflow())"
    caps = {"ONEDNN_MAX_CPU_ISA": cap, "OV_CPU_MAX_ISA": cap}
    command, environment = [sys.executable, "-c", program], {**os.environ, **caps}
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == "True\n"


@pytest.mark.parametrize("other", [{"narrow": True}, {"cap": "AVX2"}, {"own_cap": "AVX2"}])
def test_what_is_kept_is_for_kernels_of_one_kind(tiny_model, monkeypatch, other):
    def path(narrow=False, cap="AVX512_CORE_AMX", own_cap="AVX512_CORE_AMX"):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
        monkeypatch.setenv("OV_CPU_MAX_ISA", own_cap)
        return cache_path("openvino", cache_key(tiny_model, "int8", {}, {}, 8, narrow))

    assert path() == path() != path(**other)


@needs_nncf
@pytest.mark.parametrize("narrow", [True, False])
def test_narrow_weights_have_7_bits_and_attention_is_left_alone(tiny_model, patches, narrow):
    graph = int8.quantise(convert(tiny_model, 8), patches[:16], 8, narrow)
    operations = graph.get_ordered_ops()
    weights = [node.data for node in operations if node.get_type_name() == "Constant" and node.data.dtype == np.int8]
    assert len(weights) > 20
    assert max(int(np.abs(weight.astype(int)).max()) for weight in weights) == (64 if narrow else 127)
    attention = [node for node in operations if node.get_type_name() == "ScaledDotProductAttention"]
    read = {node.input_value(0).get_node().get_type_name() for node in attention}
    assert attention
    assert ("FakeQuantize" in read) == (not narrow)


@needs_nncf
def test_int8_is_int8_close_and_says_how_close(tiny_model, patches, own_folder, capsys):
    from openvino import Core

    lines: list[str] = []
    request = EngineRequest(precision="int8", batch_size=8)
    engine = open_engine(tiny_model, request, patches, lines.append)
    assert (engine.name, engine.precision) == ("openvino", "int8")
    assert "nncf" in engine.versions
    assert engine.verdict.passed
    assert 0 < engine.verdict.relative_deviation < engine.verdict.tolerance
    narrow = int8.sums_overflow()
    assert lines[-1] == f"int8: {engine.verdict.summary()}."
    assert (f"int8: {int8.NARROW}." in lines) == narrow
    assert capsys.readouterr().out == ""
    output = np.concatenate(list(engine.infer(np.split(patches, 5))))
    assert compare(output, run_reference(tiny_model, patches), "int8").passed
    open_engine(tiny_model, request, patches, lines.append)
    assert sum(line.startswith("compiling") for line in lines) == 1
    assert lines[-1] == f"int8: {engine.verdict.summary()}."
    other = open_engine(tiny_model, request, patches[::-1], lines.append)  # from the cache, so calibrated on the first
    assert other.description()["calibration"] == engine.calibration == int8.calibration_digest(patches, narrow)
    (path,) = own_folder.glob("openvino-*.bin")
    products = {
        layer.get_friendly_name(): layer.get_rt_info()["runtimePrecision"].astype(str)
        for layer in Core().import_model(path.read_bytes(), "CPU").get_runtime_model().get_ops()
        if layer.get_rt_info()["layerType"].astype(str) == "FullyConnected"
    }
    kept = {precision for name, precision in products.items() if "head" in name or "patch_embeddings" in name}
    assert not kept & {"i8", "u8"}
    assert any(precision in ("i8", "u8") for name, precision in products.items() if "token_mixing" in name)
