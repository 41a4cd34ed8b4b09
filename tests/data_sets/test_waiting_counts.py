"""Counts that wait in a temporary file."""

from __future__ import annotations

import gc
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from calls import run
from scipy.sparse import csr_array

from stpredict.data import counts as blocks
from stpredict.data import waiting_counts
from stpredict.data.counts import in_memory
from stpredict.data.cutting import write_tiles
from stpredict.data.dataset import read_dataset
from stpredict.data.section import Section
from stpredict.data.tiles import read_tiles
from stpredict.data.waiting_counts import Waiting, narrowed
from stpredict.errors import StpredictError
from stpredict.slides.slide import Mpp


def section(counts: np.ndarray) -> Section:
    n, genes = counts.shape
    return Section(
        "A", "P", Path("a.tif"), Mpp(0.5, 0.5), [f"{i}" for i in range(n)], np.zeros((n, 2)), [*"abcdef"[:genes]],
        in_memory(csr_array(counts)),
    )  # fmt: skip


def open_files() -> set[str]:
    """What this process holds open."""
    gc.collect()
    return {str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}


@pytest.mark.parametrize("small", [0, 1 << 20])
@pytest.mark.parametrize("counts", [
    np.array([[0, 1, 255], [7, 0, 0]], np.float32),
    np.array([[0, 1, 256], [7, 0, 65535]], np.int64),
    np.array([[0, 1, 1 << 20], [-7, 0, 0]], np.float64),
    np.array([[0, 0.5], [0.25, 0]], np.float32),
    np.zeros((3, 2), np.float32),
])  # fmt: skip
def test_counts_come_back_as_they_were(counts: np.ndarray, small: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(waiting_counts, "SMALL_BYTES", small)
    waiting, given = Waiting(), section(counts)
    first, second = waiting.take(given), waiting.take(replace(given, counts=in_memory(counts[::-1])))
    assert not first.counts.held
    assert waiting.take(first) is first  # it waits already
    for found, expected in ((first, counts), (second, counts[::-1])):
        rows = found.counts.rows()
        assert rows.dtype == found.counts.dtype == counts.dtype
        np.testing.assert_array_equal(rows.toarray(), expected)
        np.testing.assert_array_equal(found.counts.per_spot, expected.sum(axis=1))


def test_numbers_are_stored_in_no_more_bytes_than_hold_them():
    kinds = [(255, np.uint8), (256, np.uint16), (65536, np.float32), (-1, np.float32), (0.5, np.float32)]
    for largest, kind in kinds:
        assert narrowed(np.array([0, largest], np.float32)).dtype == kind


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_sections_of_a_data_set_wait_in_a_file_without_a_name_that_goes_with_them(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(waiting_counts, "SMALL_BYTES", 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = open_files()
    sections = read_dataset(dataset)
    assert not any(one.counts.held for one in sections)
    opened = [name for name in open_files() - before if name.startswith(str(tmp_path))]
    assert len(opened) == 1 and not list(tmp_path.iterdir())  # a killed call leaves nothing
    counts = sections[0].counts
    del sections
    assert counts.per_spot.sum() > 0  # they keep it
    del counts
    assert open_files() == before


def test_tiles_of_sections_that_wait_are_those_of_sections_in_memory(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(waiting_counts, "SMALL_BYTES", 1)
    monkeypatch.setattr(blocks, "BLOCK_SPOTS", 5)
    waiting = read_dataset(dataset)
    held = [replace(one, counts=in_memory(one.counts.rows())) for one in waiting]
    written = []
    for name, sections in (("waiting", waiting), ("held", held)):
        write_tiles(sections, tmp_path / name, with_patches=False, report=lambda _: None)
        tiles = read_tiles(tmp_path / name)
        written.append((tiles.genes, tiles.depth.tolist(), tiles.counts.rows().toarray().tolist()))
        for labels in (tiles.section, tiles.patient):
            assert len(set(map(id, labels))) == len(set(labels)) < len(labels)  # equal ones are one text
    assert written[0] == written[1]


def test_a_temporary_folder_without_room_is_told(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(waiting_counts, "SMALL_BYTES", 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "lost"))
    with pytest.raises(StpredictError, match=r"lost: counts of sections cannot wait there until they.*TMPDIR"):
        read_dataset(dataset)


def test_a_plan_counts_the_temporary_disk(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = ("-o", tmp_path / "m.safetensors", "--dry-run", "--min-depth", "1", "--folds", "none")
    few = run("train", dataset, *options).stdout
    monkeypatch.setattr("stpredict.training.plan.SMALL_BYTES", 0)
    many = run("train", dataset, *options).stdout
    assert "for counts until they are written" not in few
    assert f" MB of {tempfile.gettempdir()} for counts until they are written" in many
