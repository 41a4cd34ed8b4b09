"""Counts that are read by blocks of spots, against scipy."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from stpredict.data import counts as module
from stpredict.data.counts import Counts, in_memory, stored_counts
from stpredict.data.cutting import write_tiles
from stpredict.data.section import Section
from stpredict.data.tiles import columns, read_tiles
from stpredict.errors import DatasetError
from stpredict.slides.slide import Mpp

PARTS = ("data", "indices", "indptr")


def made_up(seed: int, n: int, genes: int) -> csr_array:
    rng = np.random.default_rng(seed)
    return csr_array(rng.poisson(rng.gamma(0.5, 1, (n, 1)), (n, genes)).astype(np.float32))


def stored(path: Path, counts: csr_array, **changed: np.ndarray) -> Counts:
    """The counts in a file; `changed` parts are not those of the counts."""
    with h5py.File(path, "w") as file:
        for part in PARTS:
            values = changed.get(part, getattr(counts, part))
            file.create_dataset(f"counts/{part}", data=values, maxshape=(None,), chunks=(5,), compression="gzip")
    with h5py.File(path) as file:
        return stored_counts(path, file, "counts", counts.shape)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**31), n=st.integers(0, 30), genes=st.integers(1, 6), spots=st.integers(1, 9),
    entries=st.integers(1, 40), gap=st.integers(0, 12), data=st.data(),
)  # fmt: skip
def test_blocks_hold_what_the_whole_matrix_holds(
    seed: int, n: int, genes: int, spots: int, entries: int, gap: int, data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
):  # fmt: skip
    whole = made_up(seed, n, genes)
    path = tmp_path_factory.getbasetemp() / "hypothesis.h5"
    index = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=20)) if n else [], dtype=np.int64)
    panel = data.draw(st.lists(st.sampled_from([*"abcdef", "nowhere"]), max_size=5, unique=True))
    names = [*"abcdef"[:genes]]
    expected = np.full((n, len(panel)), np.nan)
    for i, gene in enumerate(panel):
        if gene in names:
            expected[:, i] = whole.toarray()[:, names.index(gene)]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("BLOCK_SPOTS", spots), ("BLOCK_ENTRIES", entries), ("GAP_ENTRIES", gap)):
            patch.setattr(module, name, value)
        for found in (stored(path, whole), in_memory(whole)):
            assert (found.shape, found.n_entries) == (whole.shape, whole.nnz)
            np.testing.assert_array_equal(found.per_spot, whole.toarray().sum(axis=1))
            np.testing.assert_array_equal(found.per_gene, whole.toarray().sum(axis=0))
            np.testing.assert_array_equal(found.rows().toarray(), whole.toarray())
            some, same = found.rows(index), whole[index]
            for part in PARTS:
                np.testing.assert_array_equal(getattr(some, part), getattr(same, part))
            rising = np.unique(index)
            np.testing.assert_array_equal(columns(found, names, panel), expected)
            np.testing.assert_array_equal(columns(found, names, panel, rising), expected[rising])


def test_no_more_than_a_block_is_read_at_a_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "BLOCK_SPOTS", 50)
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 200)
    monkeypatch.setattr(module, "GAP_ENTRIES", 20)
    whole, read = made_up(0, 300, 8), []

    class Noted:
        def __init__(self, values: np.ndarray) -> None:
            self.values = values

        def __getitem__(self, part: slice) -> np.ndarray:
            read.append(part.stop - part.start)
            return self.values[part]

    @contextmanager
    def opened():
        yield {"data": Noted(whole.data), "indices": Noted(whole.indices)}

    counts = Counts(whole.shape, whole.indptr.astype(np.int64), opened)
    genes = [*"abcdefgh"]
    np.testing.assert_array_equal(columns(counts, genes, genes), whole.toarray())
    assert sum(read) == 2 * whole.nnz and max(read) <= 200
    assert counts.per_spot.sum() == counts.per_gene.sum() == whole.sum()
    assert sum(read) == 4 * whole.nnz  # one pass gives both sums, and keeps them
    read.clear()
    counts.rows(np.array([290, 2, 3]))
    assert max(read) <= 200 and sum(read) < whole.nnz / 5  # what lies between is left out


def test_spots_that_are_not_there_are_refused():
    for index in ([7], [-1, 0]):
        with pytest.raises(IndexError, match="there are 7 spots"):
            in_memory(made_up(0, 7, 2)).rows(np.array(index))


@pytest.mark.parametrize("changed", [
    lambda c: {"indptr": c.indptr[:-1]},
    lambda c: {"indptr": np.r_[c.indptr[:-1], c.indptr[-1] + 1]},
    lambda c: {"indptr": np.r_[1, c.indptr[1:]]},
    lambda c: {"indptr": np.r_[0, c.nnz + 7, c.indptr[2:]]},
    lambda c: {"indptr": c.indptr.astype(float)},
    lambda c: {"indices": np.r_[c.indices[:-1], 4].astype(np.int32)},
    lambda c: {"indices": np.r_[-1, c.indices[1:]].astype(np.int32)},
    lambda c: {"indices": c.indices[:-1]},
    lambda c: {"indices": c.indices.astype(float)},
    lambda c: {"data": c.data[:-1]},
    lambda c: {"data": c.data.astype("S8")},
])  # fmt: skip
def test_entries_that_do_not_fit_are_refused_when_a_file_is_opened(changed, tmp_path: Path):
    whole = made_up(1, 9, 4)
    with pytest.raises((ValueError, TypeError, DatasetError)):
        stored(tmp_path / "x.h5", whole, **changed(whole))
    assert stored(tmp_path / "x.h5", whole).n_entries == whole.nnz


def tiles_file(folder: Path) -> Path:
    counts = made_up(2, 40, 6)
    section = Section(
        "A",
        "P",
        folder / "no.tif",
        Mpp(0.5, 0.5),
        [f"{i}" for i in range(40)],
        np.zeros((40, 2)),
        [*"abcdef"],
        in_memory(counts),
    )
    write_tiles([section], folder / "x.tiles.h5", with_patches=False, report=lambda _: None)
    return folder / "x.tiles.h5"


def test_tiles_with_damaged_counts_end_in_a_sentence(tmp_path: Path):
    path = tiles_file(tmp_path)
    with h5py.File(path, "r+") as file:
        file["counts/indices"][3] = 99
    with pytest.raises(DatasetError, match=r"x\.tiles\.h5: cannot be read, or is damaged"):
        read_tiles(path)


def test_tiles_that_are_lost_replaced_or_damaged_later_end_in_a_sentence(tmp_path: Path):
    path = tiles_file(tmp_path)
    tiles = read_tiles(path)
    some = np.array([2, 0, 2, 1])
    np.testing.assert_array_equal(tiles.panel_counts(["a"], some), tiles.panel_counts(["a"])[some])
    assert tiles.panel_counts(["a"]) is tiles.panel_counts(["a"])  # kept while it is the last one
    again = replace(tiles, measured=None)
    there = path.stat()
    os.utime(path, ns=(there.st_atime_ns, there.st_mtime_ns + 10**9))
    np.testing.assert_array_equal(again.panel_counts(["a"]), tiles.panel_counts(["a"]))  # a touch changes nothing
    with h5py.File(path, "r+") as file:
        file["counts/indices"][3] = 99
    with pytest.raises(DatasetError, match=r"x\.tiles\.h5: cannot be read, or is damaged"):
        again.panel_counts(["a", "b"])
    with h5py.File(path, "r+") as file:
        file["counts/indptr"][1] -= 1
    with pytest.raises(DatasetError, match="it is not the file any more that was opened before"):
        list(tiles.counts_of(["A"]))
    path.unlink()
    with pytest.raises(DatasetError, match=r"x\.tiles\.h5: cannot be read"):
        tiles.counts.rows(np.array([3]))
