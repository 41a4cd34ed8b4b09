"""Networks that torch saved as a whole, and what strangers make of such files."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stpredict.errors import ModelFileError
from stpredict.networks.inert_pickle import read_pickled


class Scaler:
    """As scikit-learn's."""


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.phi = nn.ModuleList([nn.Sequential(nn.Linear(3, 2), nn.ReLU()) for _ in range(2)])
        self.norm = nn.BatchNorm1d(2)
        self.scaler = Scaler()
        self.scaler.mean_, self.scaler.scale_ = np.arange(4.0), np.ones((2, 3), np.float32, order="F")
        self.scaler.names = np.array(["a", "b"], object)
        self.scaler.of = self.scaler  # it holds itself


class Marked:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


class ByState:
    """Does so by what unpickling gives its state to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",), {"a": 1}, iter([1]), iter([("key", 2)]))


def saved(folder: Path, whole: object) -> Path:
    torch.save(whole, folder / "final_model.pkl")
    return folder / "final_model.pkl"


def with_program(source: Path, program: bytes) -> Path:
    """The file with another pickle in it."""
    changed = source.with_name("changed.pkl")
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            new.writestr(name, program if name.endswith("data.pkl") else old.read(name))
    return changed


def test_tensors_and_arrays_are_found_by_what_they_hang_on(tmp_path: Path):
    network = Whole()
    found = read_pickled(saved(tmp_path, network))
    assert set(found.tensors) == set(network.state_dict())
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(found.tensors[name], tensor)
    assert set(found.arrays) == {"scaler.mean_", "scaler.scale_"}
    np.testing.assert_array_equal(found.arrays["scaler.mean_"], np.arange(4.0))
    assert found.arrays["scaler.scale_"].shape == (2, 3)


@pytest.mark.parametrize("kind", [Marked, ByState])
@pytest.mark.parametrize("inside", [True, False])
def test_nothing_in_a_pickle_is_called(tmp_path: Path, kind: type, inside: bool):
    mark, network = tmp_path / "it-ran", Whole()
    network.hook = kind(mark)
    path = saved(tmp_path, network)
    if inside:
        assert set(read_pickled(path).tensors) == set(network.state_dict())
    else:
        assert read_pickled(with_program(path, pickle.dumps(kind(mark)))).tensors == {}
    assert not mark.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'touch it-ran'\ntR.",
        b"(S'touch it-ran'\nios\nsystem\n.",
        b'c__builtin__\neval\n(S\'__import__("os").system("touch it-ran")\'\ntR.',
        b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c\x01x\x85R.",
        b"c__builtin__\ngetattr\n(c__builtin__\n__import__\n(S'os'\ntRS'system'\ntR(S'touch it-ran'\ntR.",
        b"\x80\x02\x82\x01.",
        b"S'text'\n(S'x'\ntR.",
        b"cos\nsystem\n}(S'__setstate__'\ncos\nsystem\nsb.",
        b"\x80\x02]q\x00(" + b"h\x00" * 9 + b"e.",
        b"(" * 100_000 + b"l" * 100_000 + b".",
        b"not a pickle",
        b"",
    ],
)
def test_hostile_programs_build_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: bytes):
    """They are refused, or give no numbers."""
    monkeypatch.chdir(tmp_path)
    path = with_program(saved(tmp_path, Whole()), program)
    before = set(tmp_path.iterdir())
    try:
        assert read_pickled(path).tensors == {}
    except ModelFileError as error:
        assert str(error).startswith("changed.pkl: cannot be read as a network that torch saved")
        assert "\n" not in str(error)
    assert set(tmp_path.iterdir()) == before


class Rebuilt:
    """A tensor of other sizes than its numbers have."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __reduce__(self):
        return (torch._utils._rebuild_tensor_v2, self.arguments)


class Pickler(pickle.Pickler):
    def persistent_id(self, thing: object) -> object:
        return ("storage", torch.FloatStorage, "0", "cpu", 6) if isinstance(thing, type(...)) else None


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [(0, (10**12,), (0,)), (0, (4, 4), (4, 1)), (5, (2,), (1,)), (-1, (2,), (1,)), (0, (2,), (-1,)), (0, (2, 3), (1,))],
)
def test_tensors_larger_than_their_numbers_are_refused(tmp_path: Path, offset: int, shape: tuple, stride: tuple):
    program = io.BytesIO()
    Pickler(program, protocol=2).dump({"x": Rebuilt(..., offset, shape, stride, False, {})})
    with pytest.raises(ModelFileError, match="tensor"):
        read_pickled(with_program(saved(tmp_path, Whole()), program.getvalue()))


def test_damaged_and_other_files_are_refused(tmp_path: Path):
    whole = saved(tmp_path, Whole())
    (tmp_path / "cut.pkl").write_bytes(whole.read_bytes()[:1500])
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"a": 1}))
    for name in ("cut.pkl", "plain.pkl"):
        with pytest.raises(ModelFileError, match="cannot be read as a network that torch saved"):
            read_pickled(tmp_path / name)
    with pytest.raises(ModelFileError, match="no such file"):
        read_pickled(tmp_path / "missing.pkl")
