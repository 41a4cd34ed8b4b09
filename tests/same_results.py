"""Whether two results are the same."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from stpredict.result.file import read_provenance


def assert_same(first: Path, second: Path) -> None:
    """All data sets and attributes agree, but for the timings and the way to the slide."""
    with h5py.File(first) as a, h5py.File(second) as b:
        names: list[str] = []
        a.visit(names.append)
        other_names: list[str] = []
        b.visit(other_names.append)
        assert names == other_names
        for name in names:
            assert a[name].attrs.keys() == b[name].attrs.keys()
            for key, value in a[name].attrs.items():
                np.testing.assert_array_equal(value, b[name].attrs[key])
            if isinstance(a[name], h5py.Dataset) and name not in ("uns/stpredict_timings", "uns/stpredict"):
                np.testing.assert_array_equal(a[name][()], b[name][()])
    one, other = read_provenance(first), read_provenance(second)
    one["slide"]["path"] = other["slide"]["path"] = None
    assert one == other
