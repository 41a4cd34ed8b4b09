from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest

from stpredict.errors import StpredictError
from stpredict.storage.rows_on_disk import rows_on_disk


def test_rows_are_read_as_from_an_array_and_the_file_has_no_name(tmp_path: Path):
    whole = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    whole[3, 2] = np.nan
    rows = rows_on_disk((part for part in np.array_split(whole, 6)), whole.shape, tmp_path)
    assert not list(tmp_path.iterdir())
    indices = np.array([[49, 0], [3, 3]])
    for index in (
        slice(None),
        slice(5, 9),
        whole[:, 0] > 0,
        indices,
        indices[0],
        np.array([4, 5, 6, 2, 3, 3]),
        np.empty(0, np.int64),
    ):
        np.testing.assert_array_equal(rows[index], whole[index])
    for wrong in (50, -1):
        with pytest.raises(IndexError):
            rows[np.array([3, wrong])]


def test_the_file_goes_with_its_last_user(tmp_path: Path):
    rows = rows_on_disk([np.zeros((2, 3), np.float32)], (2, 3), tmp_path)
    number = rows.file.fileno()
    del rows
    gc.collect()
    with pytest.raises(OSError):
        os.fstat(number)


def test_where_a_file_cannot_be_the_folder_is_named(tmp_path: Path):
    with pytest.raises(StpredictError, match=r"gone: cannot hold a temporary file of 12 MB \("):
        rows_on_disk([], (1_000_000, 3), tmp_path / "gone")
