from __future__ import annotations

import re

import pytest
import torch

import stpredict.commands.doctor as doctor
from stpredict.engines.compile import unavailable


@pytest.fixture
def tiny_default(tiny_model_path, monkeypatch):
    monkeypatch.setenv("STPREDICT_MODELS", str(tiny_model_path.parent))
    monkeypatch.setattr(doctor, "DEFAULT_MODEL", "tiny")
    monkeypatch.setattr(doctor, "SECONDS", 0.05)


def lines(start):
    return [line for line in doctor.examine() if line.startswith(start)]


@pytest.mark.usefixtures("tiny_default")
def test_doctor_times_the_engines_and_keeps_nothing_of_what_it_compiles(own_folder):
    told = lines("engine ")
    compiles = unavailable("cuda" if torch.cuda.is_available() else "cpu") is None
    for name in ("openvino", "eager", *(["compile"] if compiles else [])):
        (line,) = (line for line in told if line.startswith(f"engine {name}: available, "))
        assert re.search(r"[1-9]\d* spots per second of tiny in (fp32|bf16|fp16) on ", line)
    assert not list(own_folder.glob("*.bin"))
    assert str(own_folder) in lines("compiled models are kept in")[0]


@pytest.mark.usefixtures("tiny_default")
def test_doctor_survives_whatever_is_wrong(monkeypatch):
    def broken(*_args, **_keywords):
        raise SystemError("illegal instruction")

    monkeypatch.setattr(doctor, "open_engine", broken)
    assert "engine eager: not available: SystemError: illegal instruction" in lines("engine ")
    monkeypatch.setattr(doctor, "DEFAULT_MODEL", "no such model")
    assert any("no model is called" in line for line in lines("engine "))
