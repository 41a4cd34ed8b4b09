"""What can be said of the TensorRT engine without a GPU: what it is given, not that it works."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import stpredict.engines.tensorrt as tensorrt
from stpredict.engines.cache import cache_path
from stpredict.engines.check import compare
from stpredict.engines.eager import load_network, run_reference
from stpredict.engines.engine import EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.errors import EngineError
from stpredict.networks import (
    ARCHITECTURES,
    architecture_config,
    architecture_views,
    make_network,
    reads_slides,
)
from stpredict.slides.views import patch_shape

#: Operators that Torch-TensorRT 2.13 converts.
ALLOWED = {
    "_assert_tensor_metadata", "add", "alias", "cat", "chunk", "conv2d", "div", "dropout", "expand", "flatten", "gelu",
    "getitem", "layer_norm", "linear", "mean", "mul", "permute", "reshape", "round", "scaled_dot_product_attention",
    "select", "sigmoid", "slice", "softplus", "sub", "to", "transpose", "unsqueeze",
}  # fmt: skip
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def calls(program):
    """Name of the operator and node, of each call in an exported program."""
    found = [(str(node.target), node) for node in program.graph.nodes if node.op == "call_function"]
    return [("getitem" if "getitem" in name else name.split(".")[1], node) for name, node in found]


@pytest.mark.parametrize("architecture", sorted(name for name in ARCHITECTURES if not reads_slides(name)))
def test_every_architecture_is_one_graph_of_known_operators_in_the_precision_asked_for(architecture):
    config = architecture_config(architecture, n_genes=5, depth=2)
    patches = torch.zeros((2, *patch_shape(224, architecture_views(architecture))), dtype=torch.uint8)
    program = tensorrt.export_network(make_network(config).eval(), "bf16", patches)
    assert {node.op for node in program.graph.nodes} == {"placeholder", "call_function", "output"}
    names = [name for name, _ in calls(program)]
    assert set(names) <= ALLOWED
    attentions = 2 * (9 if architecture == "m2ost" else 1 if config.mixing == "cross_level" else 3)
    assert names.count("scaled_dot_product_attention") == attentions
    assert all(len(node.args) == 3 for name, node in calls(program) if name == "scaled_dot_product_attention")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_graph_computes_in_its_precision_from_uint8_to_float32(tiny_model, patches, precision):
    batch = torch.from_numpy(patches[:8])
    program = tensorrt.export_network(load_network(tiny_model), precision, batch)
    (given,) = (node for node in program.graph.nodes if node.op == "placeholder" and node.name == "patches")
    assert given.meta["val"].dtype == torch.uint8
    (result,) = next(node for node in program.graph.nodes if node.op == "output").args[0]
    assert result.meta["val"].dtype == torch.float32
    typed = [
        node.meta["val"].dtype for name, node in calls(program) if name in ("linear", "scaled_dot_product_attention")
    ]
    assert set(typed[:-1]) == {DTYPES[precision]}
    assert typed[-1] == torch.float32  # the head
    assert all(node.meta["val"].dtype == torch.float32 for name, node in calls(program) if name == "conv2d")
    output = program.module()(batch).detach().numpy()
    assert compare(output, run_reference(tiny_model, patches[:8]), precision).passed


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


def test_the_cache_key_knows_all_that_an_engine_depends_on(tiny_model, gpu, monkeypatch):
    def path(model=tiny_model, precision="bf16", batch_size=256):
        return cache_path("tensorrt", tensorrt.cache_key(model, precision, batch_size, CUDA))

    paths = [path(), path(precision="fp16"), path(batch_size=128), path(replace(tiny_model, sha256="0" * 64))]
    parameters = {**tiny_model.card["parameters"], "heads": 2}
    paths.append(path(replace(tiny_model, card={**tiny_model.card, "parameters": parameters})))
    paths.append(path(replace(tiny_model, card={**tiny_model.card, "patch_px": 112})))
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
    backwards = dict(reversed(list(tensorrt.cache_key(tiny_model, "bf16", 256, CUDA).items())))
    assert cache_path("tensorrt", backwards) == path()


class Recorder(types.ModuleType):
    """Stands in for torch_tensorrt: records what it is called with, and runs the graph in torch on the CPU."""

    def __init__(self, n_engines=1, fault=0.0):
        super().__init__("torch_tensorrt")
        self.dynamo = types.SimpleNamespace(compile=self.compile)
        self.Input = types.SimpleNamespace
        self.compiled, self.loaded, self.n_engines, self.fault = [], 0, n_engines, fault

    def compile(self, program, **settings):
        self.compiled.append(settings)
        run, fault = program.module(), self.fault

        class TensorRTModule(torch.nn.Module):
            def forward(self, patches):
                return run(patches) + fault * patches[0, 0, 0, 0]

        self.module = torch.nn.Sequential()
        for i in range(self.n_engines):
            self.module.add_module(f"_run_on_acc_{i}", TensorRTModule())
        return self.module

    def save(self, _module, path, **_settings):
        Path(path).write_bytes(b"an engine")

    def load(self, path):
        assert Path(path).read_bytes() == b"an engine"
        self.loaded += 1
        return types.SimpleNamespace(module=lambda: self.module)


@pytest.fixture
def wired(gpu, own_folder, monkeypatch):
    """torch_tensorrt replaced by a Recorder, and the GPU by the CPU."""

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


def test_wiring_settings_are_passed_on_and_outputs_come_back(tiny_model, patches, wired):
    recorder = wired(Recorder())
    engine = open_engine(tiny_model, REQUEST, patches, print)
    assert (engine.name, engine.precision, engine.versions["tensorrt"]) == ("tensorrt", "bf16", "11.0")
    (settings,) = recorder.compiled
    assert {name: settings[name] for name in tensorrt.SETTINGS} == tensorrt.SETTINGS
    assert settings["require_full_compilation"] is True
    assert settings["cache_built_engines"] is settings["reuse_cached_engines"] is False
    assert Path(settings["timing_cache_path"]).parent == wired.folder
    assert (settings["arg_inputs"][0].shape, settings["arg_inputs"][0].dtype) == ((8, 224, 224, 3), torch.uint8)
    output = np.concatenate(list(engine.infer(np.split(patches, 5))))
    assert compare(output, run_reference(tiny_model, patches), "bf16").passed


@pytest.mark.skipif(tensorrt.unavailable() is not None, reason=f"TensorRT: {tensorrt.unavailable()}")
def test_torch_tensorrt_knows_every_setting():
    known = inspect.signature(importlib.import_module("torch_tensorrt").dynamo.compile).parameters
    assert {*tensorrt.SETTINGS, "arg_inputs", "timing_cache_path"} <= set(known)


def test_wiring_an_engine_is_kept_with_its_verdict_and_rebuilt_when_it_no_longer_fits(tiny_model, patches, wired):
    recorder = wired(Recorder())
    lines: list[str] = []
    first = open_engine(tiny_model, REQUEST, patches, lines.append)
    again = open_engine(tiny_model, REQUEST, patches, lines.append)
    assert (len(recorder.compiled), recorder.loaded, len(lines)) == (1, 1, 1)
    assert again.verdict == first.verdict
    assert tensorrt.is_cached(tiny_model, "bf16", REQUEST)
    assert not tensorrt.is_cached(tiny_model, "fp16", REQUEST)
    (path,) = wired.folder.glob("tensorrt-*.bin")
    path.write_bytes(b"another's")
    assert not tensorrt.is_cached(tiny_model, "bf16", REQUEST)
    open_engine(tiny_model, REQUEST, patches, lines.append)
    wired.gpu[2] = "driver 581"
    open_engine(tiny_model, REQUEST, patches, lines.append)
    assert (len(recorder.compiled), recorder.loaded, len(lines)) == (3, 1, 3)


def test_wiring_an_engine_that_cannot_be_loaded_is_built_again(tiny_model, patches, wired, monkeypatch):
    recorder = wired(Recorder())
    open_engine(tiny_model, REQUEST, patches, print)

    def refuse(_path):
        raise ValueError("not an ExportedProgram")

    monkeypatch.setattr(recorder, "load", refuse)
    assert open_engine(tiny_model, REQUEST, patches, print).verdict.passed
    assert len(recorder.compiled) == 2


@pytest.mark.parametrize(
    ("recorder", "reason"),
    [
        (Recorder(n_engines=0), "cannot build tiny .*became no engine rather than one"),
        (Recorder(n_engines=2), "became TensorRTModule, TensorRTModule rather than one"),
        (Recorder(fault=0.01), "bf16 failed its numeric check"),
    ],
)
def test_wiring_several_engines_or_wrong_numbers_are_errors_and_never_kept(
    tiny_model, patches, wired, recorder, reason
):
    wired(recorder)
    with pytest.raises(EngineError, match=reason):
        open_engine(tiny_model, REQUEST, patches, print)
    assert not list(wired.folder.glob("*.bin"))


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
def test_without_a_gpu_tensorrt_is_an_error_that_says_so(tiny_model, patches):
    with pytest.raises(EngineError, match=r"tensorrt: torch .* sees no GPU; TensorRT needs one from NVIDIA"):
        open_engine(tiny_model, REQUEST, patches, print)


@pytest.mark.skipif(tensorrt.unavailable() is not None, reason=f"TensorRT: {tensorrt.unavailable()}")
def test_on_a_gpu_the_engine_agrees_with_eager(tiny_model, patches, own_folder):
    request = EngineRequest("tensorrt", batch_size=8)
    for _ in range(2):  # built, then loaded
        engine = open_engine(tiny_model, request, patches, print)
        output = np.concatenate(list(engine.infer(np.split(patches, 5))))
        assert compare(output, run_reference(tiny_model, patches), engine.precision).passed
    assert list(own_folder.glob("tensorrt-*.bin"))
