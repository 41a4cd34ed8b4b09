from __future__ import annotations

import os
from pathlib import Path

import pytest

from stpredict import machine


@pytest.mark.parametrize(("says", "cores"), [("150000 100000", 2), ("50000 100000", 1), ("9900000 100000", 8)])
def test_cores_are_those_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, cores: int):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr(machine, "CPU_LIMIT", tmp_path / "cpu.max")
    assert machine.usable_cores() == 8
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.usable_cores() == 8
    (tmp_path / "cpu.max").write_text(f"{says}\n")
    assert machine.usable_cores() == cores


def test_without_a_home_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch):
    def homeless(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("STPREDICT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(OSError, match="home directory"):
        machine.cache_folder()
