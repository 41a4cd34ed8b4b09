"""What can be said of the TensorRT engine without a GPU: what it is given, not that it works.

Tests of wiring have a stand-in for Torch-TensorRT that runs the exported program in torch. They prove that arguments,
files and errors go where they should, and nothing of TensorRT. `tests/benchmarks/tensorrt_build.py` builds engines.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import logging
import sys
import types
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

import stpredict.engines.tensorrt as tensorrt
from stpredict.engines.cache import cache_path
from stpredict.engines.check import compare
from stpredict.engines.eager import run_reference
from stpredict.engines.engine import EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.errors import EngineError


@pytest.fixture
def gpu(monkeypatch):
    """As much of a GPU as the cache looks at."""
    told = ["NVIDIA H100", "9.0", "driver 580.1"]
    monkeypatch.setattr(tensorrt, "describe_gpu", lambda _device: list(told))
    monkeypatch.setattr(
        tensorrt, "versions", lambda: {"torch": "2.13.0", "torch_tensorrt": "2.13.0", "tensorrt": "11.0"}
    )
    return told


CUDA = torch.device("cuda")


def test_the_cache_key_knows_all_that_an_engine_depends_on(quick_model, gpu, monkeypatch):
    def path(model=quick_model, precision="bf16", batch_size=256):
        return cache_path("tensorrt", tensorrt.cache_key(model, precision, batch_size, CUDA))

    paths = [path(), path(precision="fp16"), path(batch_size=128), path(replace(quick_model, sha256="0" * 64))]
    parameters = {**quick_model.card["parameters"], "heads": 2}
    paths.append(path(replace(quick_model, card={**quick_model.card, "parameters": parameters})))
    paths.append(path(replace(quick_model, card={**quick_model.card, "patch_px": 112})))
    for i in range(3):
        gpu[i] += "x"
        paths.append(path())
    for name in tensorrt.SETTINGS:
        with monkeypatch.context() as patch:
            patch.setitem(tensorrt.SETTINGS, name, "another")
            paths.append(path())
    for name in ("torch", "torch_tensorrt", "tensorrt"):
        with monkeypatch.context() as patch:
            patch.setattr(tensorrt, "versions", lambda name=name: {"torch": "2.13.0", name: "another"})
            paths.append(path())
    assert len(set(paths)) == len(paths)
    backwards = dict(reversed(list(tensorrt.cache_key(quick_model, "bf16", 256, CUDA).items())))
    assert cache_path("tensorrt", backwards) == path()


class StandIn(types.ModuleType):
    """In the place of torch_tensorrt: records what it is called with, and runs the program in torch on the CPU.

    Like the runtime of Torch-TensorRT 2.11 to 2.13 it knows no uint8, and takes what it was told of and nothing else.
    """

    def __init__(self, n_engines=1, fault=0.0):
        super().__init__("torch_tensorrt")
        self.dynamo = types.SimpleNamespace(compile=self.compile)
        self.Input = types.SimpleNamespace
        self.compiled, self.loaded, self.n_engines, self.fault = [], 0, n_engines, fault

    def compile(self, program, **settings):
        self.compiled.append(settings)
        run, fault, (told,) = program.module(), self.fault, settings["arg_inputs"]
        (expected,), _ = program.example_inputs
        if told.dtype == torch.uint8 or (told.dtype, told.shape) != (expected.dtype, tuple(expected.shape)):
            raise RuntimeError(f"Unsupported TensorRT data type {told.dtype}")

        class TensorRTModule(torch.nn.Module):
            def forward(self, patches):
                assert (patches.dtype, tuple(patches.shape)) == (told.dtype, told.shape)
                return run(patches) + fault * patches[0, 0, 0, 0].float()

        self.module = torch.nn.Sequential()
        for i in range(self.n_engines):
            self.module.add_module(f"_run_on_acc_{i}", TensorRTModule())
        return self.module

    def save(self, _module, path, arg_inputs, **_settings):
        assert Path(path).suffix == ".pt2"
        assert arg_inputs[0].dtype == torch.float16
        Path(path).write_bytes(b"an engine")

    def load(self, path):
        assert Path(path).read_bytes() == b"an engine"
        self.loaded += 1
        return types.SimpleNamespace(module=lambda: self.module)


@pytest.fixture
def wired(gpu, own_folder, monkeypatch):
    """torch_tensorrt replaced by a StandIn, and the GPU by the CPU."""

    def wire(recorder):
        monkeypatch.setitem(sys.modules, "torch_tensorrt", recorder)
        monkeypatch.setattr(tensorrt, "unavailable", lambda: None)
        monkeypatch.setattr(tensorrt, "choose_gpu", lambda _request: torch.device("cpu"))
        monkeypatch.setattr("stpredict.engines.check.N_PATCHES", 8)
        monkeypatch.setattr(torch.cuda, "device", lambda _device: contextlib.nullcontext())
        return recorder

    wire.gpu, wire.folder = gpu, own_folder
    return wire


REQUEST = EngineRequest("tensorrt", "bf16", batch_size=8)


def test_wiring_settings_are_passed_on_and_outputs_come_back(quick_model, small_patches, wired):
    recorder = wired(StandIn())
    engine = open_engine(quick_model, REQUEST, small_patches, print)
    assert (engine.name, engine.precision, engine.versions["tensorrt"]) == ("tensorrt", "bf16", "11.0")
    (settings,) = recorder.compiled
    assert {name: settings[name] for name in tensorrt.SETTINGS} == tensorrt.SETTINGS
    assert settings["require_full_compilation"] is True
    assert settings["cache_built_engines"] is settings["reuse_cached_engines"] is False
    assert Path(settings["timing_cache_path"]).parent == wired.folder
    assert (settings["arg_inputs"][0].shape, settings["arg_inputs"][0].dtype) == ((8, 32, 32, 3), torch.float16)
    output = np.concatenate(list(engine.infer(np.split(small_patches, 5))))
    assert compare(output, run_reference(quick_model, small_patches), "bf16").passed


@pytest.mark.skipif(
    importlib.util.find_spec("torch_tensorrt") is None or importlib.util.find_spec("torch_tensorrt").origin is None,
    reason="torch_tensorrt is not installed",
)
def test_torch_tensorrt_knows_every_setting_and_its_log():
    # Of its source, as importing it takes a GPU.
    folder = Path(importlib.util.find_spec("torch_tensorrt").origin).parent
    parsed = ast.parse((folder / "dynamo" / "_compiler.py").read_text())
    (compiles,) = (part for part in parsed.body if isinstance(part, ast.FunctionDef) and part.name == "compile")
    known = {argument.arg for argument in (*compiles.args.args, *compiles.args.kwonlyargs)}
    assert {*tensorrt.SETTINGS, "arg_inputs", "timing_cache_path"} <= known
    assert f'getLogger("{tensorrt.LOG}")' in (folder / "logging.py").read_text()


def test_wiring_an_engine_is_kept_with_its_verdict_and_rebuilt_when_it_no_longer_fits(
    quick_model, small_patches, wired
):
    recorder = wired(StandIn())
    lines: list[str] = []
    first = open_engine(quick_model, REQUEST, small_patches, lines.append)
    again = open_engine(quick_model, REQUEST, small_patches, lines.append)
    assert (len(recorder.compiled), recorder.loaded, len(lines)) == (1, 1, 1)
    assert again.verdict == first.verdict
    assert tensorrt.is_cached(quick_model, "bf16", REQUEST)
    assert not tensorrt.is_cached(quick_model, "fp16", REQUEST)
    (path,) = wired.folder.glob("tensorrt-*.pt2")
    path.write_bytes(b"another's")
    assert not tensorrt.is_cached(quick_model, "bf16", REQUEST)
    open_engine(quick_model, REQUEST, small_patches, lines.append)
    wired.gpu[2] = "driver 581"
    open_engine(quick_model, REQUEST, small_patches, lines.append)
    assert (len(recorder.compiled), recorder.loaded, len(lines)) == (3, 1, 3)


def test_wiring_an_engine_that_cannot_be_loaded_is_built_again(quick_model, small_patches, wired, monkeypatch):
    recorder = wired(StandIn())
    open_engine(quick_model, REQUEST, small_patches, print)

    def refuse(_path):
        raise ValueError("not an ExportedProgram")

    monkeypatch.setattr(recorder, "load", refuse)
    assert open_engine(quick_model, REQUEST, small_patches, print).verdict.passed
    assert len(recorder.compiled) == 2


@pytest.mark.parametrize(
    ("recorder", "reason"),
    [
        (StandIn(n_engines=0), "cannot build quick .*became no engine rather than one"),
        (StandIn(n_engines=2), "became TensorRTModule, TensorRTModule rather than one"),
        (StandIn(fault=0.01), "bf16 failed its numeric check"),
    ],
)
def test_wiring_several_engines_or_wrong_numbers_are_errors_and_never_kept(
    quick_model, small_patches, wired, recorder, reason
):
    wired(recorder)
    with pytest.raises(EngineError, match=reason):
        open_engine(quick_model, REQUEST, small_patches, print)
    assert not list(wired.folder.glob("*.pt2"))


class WithoutMemory(StandIn):
    """Says of more than two patches what TensorRT says where a GPU's memory is used up."""

    def __init__(self, said, error):
        super().__init__()
        self.said, self.error = said, error

    def compile(self, program, **settings):
        if settings["arg_inputs"][0].shape[0] <= 2:
            return super().compile(program, **settings)
        logging.getLogger(tensorrt.LOG).error(self.said)
        raise self.error


@pytest.mark.parametrize(
    ("said", "error"),
    [
        # TensorRT tells its log, and Torch-TensorRT that there is no engine.
        ("Error Code 2: OutOfMemory (Requested size was 16654532608 bytes.)", AssertionError()),
        ("Requested amount of GPU memory (17179869184 bytes) could not be allocated.", AssertionError()),
        ("", RuntimeError("Error Code 1: Cuda Runtime (out of memory)")),
        ("", torch.OutOfMemoryError("CUDA out of memory.")),
    ],
)
def test_wiring_a_build_that_wants_for_memory_is_tried_with_half_the_patches(
    quick_model, small_patches, wired, said, error
):
    stand_in, lines = wired(WithoutMemory(said, error)), []
    engine = open_engine(quick_model, REQUEST, small_patches, lines.append)
    assert (engine.batch_size, len(stand_in.compiled)) == (2, 1)
    assert [line.split("; ")[1] for line in lines if "no memory" in line] == ["trying 4.", "trying 2."]
    assert not logging.getLogger(tensorrt.LOG).handlers


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("no kernel image")])
def test_wiring_a_build_that_fails_otherwise_is_not_tried_again(quick_model, small_patches, wired, error):
    wired(WithoutMemory("Error Code 10: Internal Error", error))
    with pytest.raises(EngineError, match="cannot build quick"):
        open_engine(quick_model, REQUEST, small_patches, print)


def test_wiring_a_model_that_needs_fp32_gets_it(quick_model, small_patches, wired):
    wired(StandIn())
    engine = open_engine(quick_model, EngineRequest("tensorrt", "fp32", batch_size=8), small_patches, print)
    assert (engine.precision, tensorrt.SETTINGS["disable_tf32"]) == ("fp32", True)


@pytest.mark.parametrize(
    ("installed", "found"),
    [
        (["torch_tensorrt-2.13.0", "tensorrt-11.0.1", "tensorrt_cu13-11.0.1"], ["tensorrt", "tensorrt_cu13"]),
        (["torch_tensorrt-2.14.0", "tensorrt_cu13-11.1.0", "tensorrt_cu13_libs-11.1.0"], ["tensorrt_cu13"]),
        (["torch_tensorrt_rtx-2.13.0", "tensorrt_rtx-1.5.0"], ["tensorrt_rtx"]),
    ],
)
def test_tensorrt_is_found_under_each_of_its_names(tmp_path, monkeypatch, installed, found):
    for name, version in (package.rsplit("-") for package in installed):
        (tmp_path / f"{name}-{version}.dist-info").mkdir()
        written = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
        (tmp_path / f"{name}-{version}.dist-info" / "METADATA").write_text(written)
    monkeypatch.setattr(metadata, "distributions", lambda: metadata.Distribution.discover(path=[str(tmp_path)]))
    versions = tensorrt.versions()
    assert sorted(versions) == sorted(["torch", installed[0].split("-")[0], *found])
    assert all(f"{name}-{versions[name]}" in installed for name in found)


@pytest.mark.parametrize(
    "trouble", [Exception("libnvinfer.so.11"), AssertionError("no CUDA"), OSError("libtorchtrt.so")]
)
def test_whatever_the_import_raises_is_a_reason(monkeypatch, trouble):
    def fail():
        raise trouble

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: object())
    monkeypatch.setattr(tensorrt, "_import", fail)
    reason = tensorrt.unavailable()
    assert f"{type(trouble).__name__}: {trouble}" in reason
    assert "NVIDIA's own package index" in reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_tensorrt_is_an_error_that_says_so(quick_model, small_patches):
    with pytest.raises(EngineError, match=r"tensorrt: torch .* sees no GPU; TensorRT needs one from NVIDIA"):
        open_engine(quick_model, REQUEST, small_patches, print)


@pytest.mark.skipif(tensorrt.unavailable() is not None, reason=f"TensorRT: {tensorrt.unavailable()}")
def test_on_a_gpu_the_engine_agrees_with_eager(tiny_model, patches, own_folder):
    request = EngineRequest("tensorrt", batch_size=8)
    for _ in range(2):  # built, then loaded
        engine = open_engine(tiny_model, request, patches, print)
        output = np.concatenate(list(engine.infer(np.split(patches, 5))))
        assert compare(output, run_reference(tiny_model, patches), engine.precision).passed
    assert list(own_folder.glob("tensorrt-*.pt2"))
