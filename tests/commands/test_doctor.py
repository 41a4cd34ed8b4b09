from __future__ import annotations

import itertools
import json
import os
import re

import numpy as np
import pytest
import torch
from conftest import NO_AVX2

import stpredict.commands.doctor as doctor
import stpredict.engines.compile as compiling
from stpredict.engines.int8 import sums_overflow
from stpredict.engines.openvino import open_core
from stpredict.machine import cpuinfo, usable_cores


@pytest.fixture
def quick_default(quick_model_path, monkeypatch):
    monkeypatch.setenv("STPREDICT_MODELS", str(quick_model_path.parent))
    monkeypatch.setattr(doctor, "DEFAULT_MODEL", "quick")
    monkeypatch.setattr(doctor, "SECONDS", 0.05)


def lines(start):
    return [line for line in doctor.examine() if line.startswith(start)]


@pytest.mark.usefixtures("quick_default")
def test_doctor_times_the_engines_and_keeps_nothing_of_what_it_compiles(own_folder):
    told = list(doctor.examine())
    compiles = compiling.unavailable("cuda" if torch.cuda.is_available() else "cpu") is None
    for name in ("eager", *(["compile"] if compiles else []), *([] if NO_AVX2 else ["openvino"])):
        (line,) = (line for line in told if line.startswith(f"engine {name}: available, "))
        assert re.search(r"[1-9]\d* spots per second of quick in (fp32|bf16|fp16) on ", line)
    assert not [path for path in own_folder.glob("*") if path.suffix in (".bin", ".pt2")]
    (line,) = (line for line in told if line.startswith("compiled models are kept in"))
    assert str(own_folder) in line


@pytest.mark.processor
@pytest.mark.skipif(not cpuinfo("flags"), reason="the processor's flags are told by Linux on x86-64")
def test_doctor_tells_the_instruction_sets_and_what_they_mean_for_each_engine():
    flags = set(cpuinfo("flags").split())
    names = {
        "AVX2": "avx2", "AVX-512": "avx512f", "AVX-512 VNNI": "avx512_vnni", "AVX-VNNI": "avx_vnni",
        "AVX-512 bf16": "avx512_bf16", "AMX": "amx_tile",
    }  # fmt: skip
    report = list(itertools.takewhile(lambda line: not line.startswith("engine "), doctor.examine()))
    (told,) = (line for line in report if line.startswith("processor: "))
    has, lacks = re.search(r" it has (.*); lacks (.*)", told).groups()
    assert set(has.split(", ")) - {"none"} == {name for name, flag in names.items() if flag in flags}
    assert set(lacks.split(", ")) - {"none"} == {name for name, flag in names.items() if flag not in flags}
    (told,) = (line for line in report if line.startswith("precisions "))
    assert ("openvino runs bf16" in told) == ("BF16" in open_core()[1])
    avx512 = "avx512f" in flags and os.environ.get("OV_CPU_MAX_ISA") not in ("AVX2", "AVX", "SSE41")
    assert ("int8 is likely slower" in told) == (sums_overflow() and not avx512)
    assert ("which bf16 is imitated" in told) == (not flags & {"avx512_bf16", "amx_tile"})


@pytest.mark.usefixtures("quick_default")
def test_doctor_tells_programs_what_it_tells_people(capsys, monkeypatch):
    monkeypatch.setattr(compiling, "unavailable", lambda _device: "left out")  # as it was compiled above
    doctor.doctor_command(as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told.keys() == {
        "stpredict", "python", "platform", "cores", "processor", "gpus", "precisions", "engines", "int8", "cache",
        "models", "libraries", "training",
    }  # fmt: skip
    assert told["cores"] == usable_cores()
    eager = told["engines"]["eager"]
    assert (eager["available"], eager["reason"], eager["model"]) == (True, None, "quick")
    assert eager["spots_per_second"] > 0
    compiled = told["engines"]["compile"]
    assert (compiled["available"], compiled["reason"], compiled["model"]) == (False, "left out", None)
    assert told["libraries"]["numpy"] == np.__version__
    assert "quick" in told["models"]["installed"]


@pytest.mark.usefixtures("quick_default")
def test_doctor_survives_whatever_is_wrong(monkeypatch):
    def broken(*_args, **_keywords):
        raise SystemError("illegal instruction")

    monkeypatch.setattr(doctor, "open_engine", broken)
    assert "engine eager: not available: SystemError: illegal instruction" in lines("engine ")
    monkeypatch.setattr(doctor, "DEFAULT_MODEL", "no such model")
    assert any("no model is called" in line for line in lines("engine "))
