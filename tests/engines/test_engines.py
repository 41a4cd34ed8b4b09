from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import openvino
import pytest
import torch
from conftest import NO_AVX2
from coordinates import assert_coordinates

from stpredict.engines.cache import engine_folder
from stpredict.engines.check import check_patches, compare
from stpredict.engines.eager import run_reference
from stpredict.engines.engine import PRECISIONS, EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.errors import EngineError


def infer(engine, patches):
    batches = np.split(patches, len(patches) // engine.batch_size)
    return np.concatenate(list(engine.infer(batches)))


def rmsd(output, reference):
    """Of the worst gene."""
    return np.sqrt(((output - reference) ** 2).mean(axis=0)).max()


no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
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
        pytest.param("eager", "fp32", "cuda", marks=no_gpu),
        pytest.param("eager", "bf16", "cuda", marks=no_gpu),
        pytest.param("compile", "bf16", "cuda", marks=no_gpu),
    ],
)
def test_engines_agree_with_the_network(tiny_model, patches, name, precision, device):
    engine = open_engine(tiny_model, EngineRequest(name, precision, device, batch_size=8), patches, print)
    assert (engine.name, engine.precision) == (name, precision)
    output, reference = infer(engine, patches), run_reference(tiny_model, patches)
    assert output.dtype == np.float32
    assert engine.verdict.passed
    assert compare(output, reference, precision).relative_deviation < engine.verdict.tolerance
    assert rmsd(output, reference) < (1e-3 if precision == "fp32" else 0.1) * reference.std(axis=0).max()


@pytest.mark.processor
def test_results_come_in_the_order_of_the_batches(tiny_model, patches):
    engine = open_engine(tiny_model, EngineRequest("openvino", "fp32", batch_size=1, threads=2), patches, print)
    np.testing.assert_allclose(infer(engine, patches), run_reference(tiny_model, patches), atol=1e-3)


def test_no_product_is_cut_by_copying(tiny_model):
    from stpredict.engines.openvino import convert

    operations = convert(tiny_model, 2).get_ordered_ops()
    cut = [node for node in operations if node.get_type_name() == "VariadicSplit"]
    assert cut  # of the levels
    assert not [node for node in cut if node.input_value(0).get_node().get_type_name() == "MatMul"]


@pytest.mark.processor
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
    assert list(engine_folder().glob("openvino-*.bin"))
    monkeypatch.setattr("stpredict.engines.openvino._compile", None)  # must not be needed
    second = open_engine(tiny_model, request, patches[:2], print)
    assert second.verdict == first.verdict
    np.testing.assert_array_equal(infer(first, patches), infer(second, patches))


def damage_file(path):
    path.write_bytes(path.read_bytes()[:1000])


def damage_one_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def forge_verdict(path):
    sidecar = path.with_suffix(".json")
    sidecar.write_text(sidecar.read_text().replace("relative_deviation", "deviation"))


def swap_weights(path):
    sidecar = path.with_suffix(".json")
    content = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({**content, "key": {**content["key"], "weights": "0" * 64}}))


@pytest.mark.parametrize("harm", [damage_file, damage_one_byte, forge_verdict, swap_weights])
def test_a_damaged_or_foreign_cache_is_built_again(quick_model, small_patches, own_folder, harm):
    request = EngineRequest("openvino", "fp32", batch_size=2)
    lines: list[str] = []
    open_engine(quick_model, request, small_patches, lines.append)
    open_engine(quick_model, request, small_patches, lines.append)
    assert len(lines) == 1
    (path,) = own_folder.glob("openvino-*.bin")
    harm(path)
    assert open_engine(quick_model, request, small_patches, lines.append).verdict.passed
    assert len(lines) == 2


def test_what_is_kept_is_private_and_for_one_model_and_setting(quick_model, small_patches, own_folder):
    request = EngineRequest("openvino", "fp32", batch_size=2)
    lines: list[str] = []
    other = replace(quick_model, sha256="1" * 64)
    for model, wanted in ((quick_model, request), (quick_model, replace(request, threads=1)), (other, request)):
        open_engine(model, wanted, small_patches, lines.append)
    assert len(lines) == len(list(own_folder.glob("*.bin"))) == 3
    assert own_folder.stat().st_mode & 0o777 == 0o700
    open_engine(quick_model, replace(request, batch_size=3), small_patches, lines.append, keep=False)
    assert len(list(own_folder.glob("*.bin"))) == 3


def test_what_cannot_be_kept_is_said(quick_model, small_patches, own_folder):
    own_folder.write_text("in the way")
    lines: list[str] = []
    for _ in range(2):
        assert open_engine(quick_model, EngineRequest("openvino", "fp32", batch_size=2), small_patches, lines.append)
    assert [line.startswith("compiling") for line in lines] == [True, False] * 2
    assert "cannot be kept, so that it is compiled each time" in lines[1]


@pytest.mark.skipif(NO_AVX2, reason="OpenVINO may not run here")
def test_a_cached_engine_runs_without_torch_and_nothing_is_reported_home(tiny_model_path, patches, tmp_path):
    np.save(tmp_path / "patches.npy", patches[:8])
    program = """
import sys
import numpy as np
from pathlib import Path
from stpredict.engines.engine import PRECISIONS, EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.model.file import load_model
patches = np.load(sys.argv[2])
engine = open_engine(load_model(Path(sys.argv[1])), EngineRequest(batch_size=8), patches, print)
(expression,) = engine.infer([patches])
assert np.isfinite(expression).all()
print(engine.name, engine.precision, "torch" in sys.modules)
"""
    command = [sys.executable, "-c", program, str(tiny_model_path), str(tmp_path / "patches.npy")]
    environment = {**os.environ, "HOME": str(tmp_path), "STPREDICT_CACHE": str(tmp_path / "cache"), "CI": ""}
    said = [
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
        for _ in range(2)
    ]
    assert said[0][0].startswith("compiling")
    assert said[1] == [f"{said[0][-1].rsplit(' ', 1)[0]} False"]
    # OpenVINO's converter would make a folder for an identity to report under.
    assert not (tmp_path / "intel").exists()


@pytest.mark.processor
@pytest.mark.parametrize("cap", ["AVX2", "SSE41"])
def test_auto_is_right_whatever_the_kernels_are_told_to_do_without(tiny_model_path, patches, tmp_path, cap):
    np.save(tmp_path / "patches.npy", patches)
    program = """
import sys
import numpy as np
from pathlib import Path
from stpredict.engines.engine import EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.model.file import load_model
model, patches = load_model(Path(sys.argv[1])), np.load(sys.argv[2])
engine = open_engine(model, EngineRequest(precision="fp32", batch_size=8), patches, print, keep=False)
print(engine.name, engine.verdict.passed)
"""
    command = [sys.executable, "-c", program, str(tiny_model_path), str(tmp_path / "patches.npy")]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": cap, "OV_CPU_MAX_ISA": cap}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[-1] in ("openvino True", "eager True")
    assert (said[-1] == "eager True") == any(line.endswith("Using eager fp32.") for line in said)


def test_each_precision_is_asked_of_openvino():
    from stpredict.engines.openvino import _config

    hints = {p: [_config(p, 2, has)["INFERENCE_PRECISION_HINT"] for has in (False, True)] for p in PRECISIONS}
    assert hints == {"fp32": ["f32", "f32"], "bf16": ["bf16", "bf16"], "fp16": ["f16", "f16"], "int8": ["f32", "bf16"]}


def test_a_processor_without_bf16_runs_fp32_without_a_word(tiny_model, patches, monkeypatch):
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
    engine = open_engine(tiny_model, EngineRequest(precision="bf16", batch_size=8), patches, lines.append)
    assert (engine.name, engine.precision) == ("eager", "bf16")
    assert "has no bf16" in lines[-1]
    assert lines[-1].endswith("Using eager bf16.")


def test_the_check_sees_nan_scale_and_shuffled_genes():
    reference = np.random.default_rng(0).normal(size=(32, 20)).astype(np.float32)
    assert compare(reference, reference, "fp32").passed
    assert compare(reference + 1e-6, reference, "fp32").passed
    assert not compare(reference * 1.2, reference, "bf16").passed
    assert not compare(np.roll(reference, 1, axis=1), reference, "bf16").passed
    swapped = reference.copy()
    swapped[:, [3, 4]] = reference[:, [4, 3]]
    assert not compare(swapped, reference, "int8").passed
    flat = np.ones((32, 20), np.float32)
    assert compare(flat + 1e-4, flat, "fp32").passed
    assert not compare(flat + 100, flat, "bf16").passed
    few = np.where(np.arange(reference.shape[1]) < 3, reference, 1)  # a model that knows of three genes
    assert compare(few, few, "fp32").passed
    assert not compare(np.roll(few, 1, axis=0), few, "fp32").passed
    broken = reference.copy()
    broken[3, 3] = np.nan
    assert not compare(broken, reference, "bf16").passed


def test_an_engine_may_deviate_twice_as_far_as_eager_in_its_precision():
    rng = np.random.default_rng(0)
    reference, noise = rng.normal(size=(2, 32, 20)).astype(np.float32)
    eager = reference + 0.02 * noise
    verdict = compare(reference + 0.035 * noise, reference, "bf16", eager)
    assert verdict.passed
    assert verdict.tolerance == pytest.approx(2 * verdict.eager_deviation)
    assert not compare(reference + 0.06 * noise, reference, "bf16", eager).passed
    assert compare(reference + 0.06 * noise, reference, "bf16").passed
    far = reference + 0.3 * noise
    assert not compare(far, reference, "bf16", far).passed  # however far eager itself is


@pytest.mark.parametrize("n", [1, 5, 32, 100])
def test_check_patches_are_enough_for_any_sample(n):
    assert check_patches(np.zeros((n, 8, 8, 3), np.uint8)).shape == (32, 8, 8, 3)


@pytest.mark.processor
@pytest.mark.parametrize("name", ["eager", "openvino"])  # compile: in test_compile.py
def test_coordinates_among_the_training_patches_stand_behind_the_genes(name, quick_model, referenced, small_patches):
    engine = open_engine(referenced, EngineRequest(name, "fp32", batch_size=8), small_patches, print)
    assert_coordinates(infer(engine, small_patches[:8]), referenced, quick_model, small_patches[:8])
