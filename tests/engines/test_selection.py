from __future__ import annotations

import ctypes.util
import importlib.util
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import stpredict.engines.opening as opening
import stpredict.engines.selection as selection
import stpredict.engines.tensorrt as tensorrt
from stpredict.engines.check import compare
from stpredict.engines.engine import Engine, EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.engines.selection import COMPILE_FROM, TENSORRT_FROM, candidates
from stpredict.errors import EngineError, PrecisionError

SMALL, MIDDLING, LARGE = 80_000, COMPILE_FROM, TENSORRT_FROM
EAGER = [("eager", "bf16"), ("eager", "fp16"), ("eager", "fp32")]
COMPILE = [("compile", "bf16"), ("compile", "fp16"), ("compile", "fp32")]
TENSORRT = [("tensorrt", "bf16"), ("tensorrt", "fp16"), ("tensorrt", "fp32")]
CPU = [("openvino", "bf16"), ("openvino", "fp32"), ("eager", "fp32")]


@pytest.fixture
def machine(monkeypatch):
    """Pretend a machine: with a GPU or not, with torch_tensorrt or not, with engines of some precisions cached."""
    real = importlib.util.find_spec

    def pretend(gpu, installed=False, cached=()):
        monkeypatch.setattr(selection, "_nvidia_driver", lambda: gpu)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: installed or None if name == "torch_tensorrt" else real(name)
        )
        monkeypatch.setattr(tensorrt, "is_cached", lambda _model, precision, _request: precision in cached)

    return pretend


@pytest.mark.parametrize(
    ("gpu", "installed", "cached", "n_spots", "wanted"),
    [
        (False, False, (), SMALL, CPU),
        (False, True, (), LARGE, CPU),
        (True, False, (), 0, EAGER),
        (True, False, (), SMALL, EAGER),
        (True, False, (), MIDDLING, COMPILE + EAGER),
        (True, False, (), LARGE, COMPILE + EAGER),
        (True, True, (), SMALL, EAGER),
        (True, True, (), LARGE, TENSORRT + COMPILE + EAGER),
        (True, True, ("fp16",), SMALL, [("tensorrt", "fp16"), *EAGER]),
        (True, True, ("bf16", "fp16"), 0, TENSORRT[:2] + EAGER),
    ],
)
def test_auto_weighs_device_and_cost_of_building(tiny_model, machine, gpu, installed, cached, n_spots, wanted):
    machine(gpu, installed, cached)
    assert candidates(tiny_model, EngineRequest(), n_spots) == wanted


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        (EngineRequest(precision="int8"), [("openvino", "int8")]),
        (EngineRequest(device="cpu"), CPU),
        (EngineRequest(precision="fp32"), [("eager", "fp32")]),
        (EngineRequest("compile"), COMPILE),
        (EngineRequest("compile", device="cpu"), [("compile", "fp32")]),
        (EngineRequest("tensorrt"), TENSORRT),
        (EngineRequest("tensorrt", "fp16"), [("tensorrt", "fp16")]),
        (EngineRequest("openvino"), [("openvino", "bf16"), ("openvino", "fp32")]),
    ],
)
def test_what_is_asked_for_is_all_that_is_tried(tiny_model, machine, request_, wanted):
    machine(gpu=True, installed=True)
    assert candidates(tiny_model, request_, 0) == wanted
    assert "int8" not in {p for _, p in candidates(tiny_model, replace(request_, precision="auto"), LARGE)}


def an_engine(name, precision, passed=True):
    reference = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    verdict = compare(reference if passed else -reference, reference, precision)
    return Engine(name, precision, "cuda", 1, {}, verdict, iter)


@pytest.mark.parametrize(
    ("trouble", "used", "said"),
    [
        (
            EngineError("tensorrt: torch_tensorrt cannot be imported (OSError: libtorchtrt.so)."),
            "compile",
            "libtorchtrt",
        ),
        (EngineError("tensorrt: cannot build tiny (RuntimeError: no kernel)."), "compile", "no kernel"),
        (PrecisionError("this GPU has no bf16."), "compile", None),
        ("fails its check", "compile", "tensorrt bf16 failed its numeric check"),
        (None, "tensorrt", None),
    ],
)
def test_auto_falls_to_the_next_aloud_and_a_named_engine_is_an_error(
    tiny_model, patches, machine, monkeypatch, trouble, used, said
):
    def pretend(name, _model, precision, *_more):
        if name == "tensorrt" and isinstance(trouble, Exception):
            raise trouble
        return an_engine(name, precision, passed=name != "tensorrt" or trouble is None)

    machine(gpu=True, installed=True)
    monkeypatch.setattr(opening, "_open", pretend)
    lines: list[str] = []
    engine = open_engine(tiny_model, EngineRequest(), patches, lines.append, n_spots=LARGE)
    assert engine.name == used
    if said is None:
        assert lines == []
    else:
        assert said in lines[0]
        assert lines[0].endswith(f"Using {used} bf16.")
    if trouble is not None:
        with pytest.raises(EngineError):
            open_engine(tiny_model, EngineRequest("tensorrt", "bf16"), patches, lines.append)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_a_gpu_that_is_not_there_is_an_error_that_says_so(tiny_model, patches, machine, monkeypatch, precision):
    real = tensorrt.is_cached
    machine(gpu=False, installed=True)
    monkeypatch.setattr(tensorrt, "is_cached", real)
    with pytest.raises(EngineError, match=r"--device cuda: torch .* sees no GPU"):
        open_engine(tiny_model, EngineRequest(precision=precision, device="cuda"), patches, print)


@pytest.mark.parametrize("found", [None, "C:/Windows/System32/nvcuda.dll"])
def test_on_windows_a_driver_is_a_library(monkeypatch, found):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: found if name == "nvcuda" else None)
    assert selection._nvidia_driver() == (found is not None)
