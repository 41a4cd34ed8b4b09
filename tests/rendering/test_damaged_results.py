"""Results of strangers: whatever is wrong with one, it costs only itself, and one sentence."""

from __future__ import annotations

import json
import shutil

import h5py
import numpy as np
import pytest
from calls import run
from results_to_draw import made_up

from stpredict.errors import ResultError
from stpredict.result.file import read_result
from stpredict.slides.lattice import lattice
from stpredict.slides.slide import Bounds, Mpp

SPOTS = lattice(Bounds(0, 0, 600, 400), Mpp(0.5, 0.5), 20.0)


def without(*keys):
    def change(account):
        for key in keys[:-1]:
            account = account[key]
        del account[keys[-1]]

    return change


def with_value(value, *keys):
    def change(account):
        for key in keys[:-1]:
            account = account[key]
        account[keys[-1]] = value

    return change


CHANGES = [
    *(without(*keys) for keys in (
        ("model",), ("model", "name"), ("model", "sha256"), ("expression_unit",), ("slide", "path"),
        ("slide", "fingerprint"), ("slide", "mpp"), ("lattice",), ("unusual_patches",), ("display_range",))),
    *(with_value(*change) for change in (
        ("text", "model"), (7, "expression_unit"), (7, "slide", "path"), ([1e-7, 1e-7], "slide", "mpp"),
        ([1e30, 1e30], "slide", "mpp"), ([0, 0, 0, 0], "slide", "bounds"), ([0, 0, 10**30, 10**30], "slide", "bounds"),
        (10**12, "slide", "dimensions"), ([10**9, 10**9], "slide", "dimensions"), (1e-9, "lattice", "pitch_um"),
        ("round", "lattice", "layout"), ([[-1e308], [1e308]], "display_range"), ([[5.0], [4.0]], "display_range"),
        ([[float("nan")], [1.0]], "display_range"), ("../../x", "slide", "name"), (99, "format_version"),
        (None, "unusual_patches"))),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_an_account_that_cannot_be_is_one_sentence(tmp_path, number):
    path = made_up(tmp_path / "s.h5ad", SPOTS, np.ones((len(SPOTS), 1))).path
    with h5py.File(path, "r+") as file:
        account = json.loads(file["uns/stpredict"][()])
        CHANGES[number](account)
        del file["uns/stpredict"]
        file["uns/stpredict"] = json.dumps(account)
    with pytest.raises(ResultError, match=r"s\.h5ad: "):
        read_result(path)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("obs/tissue_fraction", np.array([b"x"] * len(SPOTS))),
        ("obsm/spatial", np.full((len(SPOTS), 2), np.nan)),
        ("obsm/spatial", np.full((len(SPOTS), 2), 1e300)),
        ("obsm/spatial", np.zeros((len(SPOTS) + 1, 2))),
        ("obs/row", np.full(len(SPOTS), -1)),
        ("X", np.zeros((len(SPOTS), 2), np.float32)),
        ("X", np.zeros((len(SPOTS), 1), "S3")),
    ],
)
def test_tables_that_cannot_be_are_one_sentence(tmp_path, name, values):
    path = made_up(tmp_path / "s.h5ad", SPOTS, np.ones((len(SPOTS), 1))).path
    with h5py.File(path, "r+") as file:
        del file[name]
        file[name] = values
    with pytest.raises(ResultError, match=r"s\.h5ad: "):
        read_result(path)


def test_a_damaged_result_costs_only_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = made_up(tmp_path / "good.h5ad", SPOTS, np.ones((len(SPOTS), 1)))
    shutil.copy(good.path, "bad.h5ad")
    with h5py.File("bad.h5ad", "r+") as file:
        del file["uns/stpredict"]
        file["uns/stpredict"] = "{}"
    done = run("render", "bad.h5ad", "good.h5ad", "--style", "csv,heatmap", "--scale-from", ".")
    assert done.exit_code == 1
    assert "good.G0.heatmap.tif" in done.stdout
    assert "1 of 2 results failed" in done.stderr
    assert "--scale-from leaves out bad.h5ad" in done.stderr
