from __future__ import annotations

import os
from pathlib import Path

import pytest

from stpredict.storage.files import atomic_path


def test_a_file_is_whole_or_not_there(tmp_path: Path):
    path = tmp_path / "a.csv"
    with pytest.raises(ValueError, match="half"), atomic_path(path) as temporary:
        temporary.write_text("1,")
        raise ValueError("half")
    assert list(tmp_path.iterdir()) == []
    with atomic_path(path) as temporary:
        temporary.write_text("1,2")
        assert list(tmp_path.glob(".*.tmp*")) == [temporary]
        assert temporary.suffix == ".csv"
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.csv", "1,2")]


def test_the_temporary_name_is_another_each_time_and_fits(tmp_path: Path):
    path = tmp_path / ("\N{DNA DOUBLE HELIX}" * 60 + ".csv")
    names = set()
    for _ in range(3):
        with atomic_path(path) as temporary:
            temporary.write_text("1")
            names.add(temporary.name)
    assert len(names) == 3


def test_what_is_synced_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As Windows demands."""
    fcntl = pytest.importorskip("fcntl")
    modes = []
    monkeypatch.setattr(os, "fsync", lambda file: modes.append(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE))
    with atomic_path(tmp_path / "a.csv") as temporary:
        temporary.write_text("1")
    assert modes == [os.O_RDWR]
