from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from calls import PROGRAM
from threadpoolctl import threadpool_info, threadpool_limits

from stpredict import machine
from stpredict.errors import lacks_memory


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


@pytest.mark.parametrize("limit", ["-v", "-d"])
def test_less_memory_than_libraries_take_is_refused_before_they_wait_for_it(limit: str):
    call = ["bash", "-c", f'ulimit {limit} 360000; exec "$@"', "bash", *PROGRAM, "doctor"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "may have 351 MiB of memory, and stpredict needs 512 to begin" in done.stderr


@pytest.mark.parametrize("error", [MemoryError(), ImportError("x.so: failed to map segment from shared object")])
def test_an_error_for_want_of_memory_is_called_that(error: Exception):
    assert lacks_memory(error)
    assert not lacks_memory(ImportError("No module named x"))


def test_all_libraries_of_linear_algebra_keep_to_the_threads():
    import torch

    before = torch.get_num_threads()
    with threadpool_limits(limits=None):  # what they have now comes back
        machine.limit_threads(1)
        assert {library["num_threads"] for library in threadpool_info()} == {torch.get_num_threads()} == {1}
    torch.set_num_threads(before)
