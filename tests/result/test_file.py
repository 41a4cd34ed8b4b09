"""Results that are damaged, or made to mislead, are refused."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from results_to_draw import made_up

from stpredict.errors import ResultError
from stpredict.result.file import read_result
from stpredict.slides.lattice import lattice
from stpredict.slides.slide import Bounds, Mpp


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    spots = lattice(Bounds(0, 0, 600, 400), Mpp(0.5, 0.5), 50.0, "square")
    return made_up(tmp_path_factory.mktemp("results") / "slide.h5ad", spots, np.ones((len(spots), 2))).path


def test_links_out_of_a_result_are_not_followed(result, tmp_path):
    copy = tmp_path / "copy.h5ad"
    copy.write_bytes(result.read_bytes())
    with h5py.File(copy, "a") as file:
        del file["obs/row"]
        file["obs/row"] = h5py.ExternalLink(str(result), "obs/row")
    with pytest.raises(ResultError, match="link"):
        read_result(copy)


@pytest.mark.parametrize("damage", ["half", "text", "other hdf5"])
def test_damaged_results_get_one_clear_error(result, tmp_path, damage):
    path = tmp_path / "damaged.h5ad"
    path.write_bytes(result.read_bytes()[:3000] if damage == "half" else b"hello")
    if damage == "other hdf5":
        path.unlink()
        with h5py.File(path, "w") as file:
            file["X"] = np.zeros((2, 2))
    with pytest.raises(ResultError, match=r"damaged.h5ad"):
        read_result(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("obs/row", None), ("obs/col", None), ("obsm/spatial", np.zeros((3, 2))), ("obs/tissue_fraction", np.zeros(2))],
)
def test_results_whose_parts_do_not_fit_are_refused(result, tmp_path, name, content):
    copy = tmp_path / "copy.h5ad"
    copy.write_bytes(result.read_bytes())
    with h5py.File(copy, "a") as file:
        changed = file[name][:] + 10_000 if content is None else content
        del file[name]
        file[name] = changed
    with pytest.raises(ResultError, match=r"copy.h5ad"):
        read_result(copy)


@pytest.mark.parametrize("name", ["../evil", "a/b", ".."])
def test_a_slides_name_in_a_result_is_never_a_path(result, tmp_path, name):
    copy = tmp_path / "copy.h5ad"
    copy.write_bytes(result.read_bytes())
    with h5py.File(copy, "a") as file:
        text = json.loads(file["uns/stpredict"][()])
        text["slide"]["name"] = name
        del file["uns/stpredict"]
        file["uns/stpredict"] = json.dumps(text)
    with pytest.raises(ResultError, match="cannot be called"):
        read_result(copy)
