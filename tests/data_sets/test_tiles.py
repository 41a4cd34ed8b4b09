from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import GENES
from scipy.sparse import csr_array

from stpredict.data import cutting
from stpredict.data.counts import in_memory
from stpredict.data.cutting import write_tiles
from stpredict.data.dataset import read_dataset
from stpredict.data.section import Section
from stpredict.data.stored_patches import StoredPatches
from stpredict.data.stored_rows import StoredRows, stored_rows
from stpredict.data.tiles import check_views, read_outline, read_tiles
from stpredict.errors import DatasetError
from stpredict.slides.raster import make_raster, read_patches
from stpredict.slides.slide import Mpp, open_slide


@pytest.fixture(scope="module")
def tiles(dataset: Path, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("tiles") / "mine.tiles.h5"
    lines: list[str] = []
    write_tiles(read_dataset(dataset), path, unlabelled=30, report=lines.append)
    assert len(lines) == 3
    return read_tiles(path)


def test_tiles_hold_what_the_sections_held(tiles, dataset: Path):
    sections = read_dataset(dataset)
    assert tiles.mpp == 0.5
    assert list(np.unique(tiles.patient)) == ["A", "B"]
    assert sorted(set(tiles.section)) == ["A1", "A2", "B1"]
    np.testing.assert_allclose(tiles.depth, np.concatenate([s.counts.per_spot for s in sections]))
    rows = tiles.section == "B1"
    np.testing.assert_array_equal(tiles.panel_counts(GENES)[rows], sections[2].counts.rows().toarray()[:, : len(GENES)])
    assert (tiles.panel_counts(["ONLY_A1"])[rows] == 0).all()  # not counted there, as its table lists what was
    assert np.isnan(tiles.panel_counts(["NOWHERE"])).all()


def test_patches_are_those_of_the_images(tiles, dataset: Path):
    section = read_dataset(dataset)[1]
    rows = np.flatnonzero(tiles.section == "A2")
    with open_slide(section.image) as slide:
        raster = make_raster(slide, section.mpp, tiles.mpp)
        for index, patches in read_patches(raster, section.centres, tiles.patch_px):
            np.testing.assert_array_equal(tiles.read_patches(rows[index]), patches)


def test_unlabelled_patches_are_of_tissue(tiles):
    patches = tiles.read_patches(range(len(tiles.unlabelled_section)), unlabelled=True)
    assert 25 <= len(patches) <= 30
    assert (patches[:, 80:144, 80:144].mean(axis=(1, 2, 3)) < 235).mean() > 0.8


def test_tiles_hold_every_view_and_tell_the_narrowest(tiles, dataset: Path, tmp_path: Path):
    sections, path = read_dataset(dataset)[:1], tmp_path / "views.tiles.h5"
    write_tiles(sections, path, views=(1, 2, 4), unlabelled=5, report=print)
    wide = read_tiles(path)
    assert wide.views == (1, 2, 4)
    rows = np.flatnonzero(tiles.section == sections[0].name)
    stacks = wide.read_patches(range(len(rows)))
    assert stacks.shape == (len(rows), 3, 224, 224, 3)
    np.testing.assert_array_equal(stacks[:, 0], tiles.read_patches(rows))
    for i in (0, 3):
        np.testing.assert_array_equal(wide.read_patch(i), tiles.read_patch(rows[i]))
        np.testing.assert_array_equal(
            wide.read_patch(i, unlabelled=True), wide.read_patches([i], unlabelled=True)[0, 0]
        )
    # The middle of each wider view shows what the patch does.
    patch = stacks[:, 0].reshape(-1, 112, 2, 112, 2, 3).mean(axis=(2, 4))
    assert abs(stacks[:, 1, 56:168, 56:168] - patch).max() <= 0.5


def test_tiles_of_other_views_than_the_network_looks_at_are_refused(tiles):
    check_views(tiles, (1,))
    with pytest.raises(DatasetError, match=r"patches of 1 times the field, the network looks at 1 and 2 and 4"):
        check_views(tiles, (1, 2, 4))


def test_notes_are_reported(dataset: Path, tmp_path: Path):
    sections = read_dataset(dataset)[:2]
    sections[1] = replace(sections[1], notes=("something to know",), pitch_um=150.0)
    lines: list[str] = []
    write_tiles(sections, tmp_path / "x.tiles.h5", patch_px=16, report=lines.append)
    assert lines[0].startswith("sections differ in spot diameter and pitch (100/200, 100/150 um)")
    assert lines[-1] == "A2: something to know"


def test_other_files_are_refused(tmp_path: Path):
    (tmp_path / "x.h5").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match=r"x\.h5: cannot be read"):
        read_tiles(tmp_path / "x.h5")


def test_rows_are_read_past_the_library_as_it_reads_them(tmp_path: Path):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["plain"] = rows
        file.create_dataset("packed", data=rows, chunks=(2, 4, 4, 3), compression="gzip")
        file.create_dataset("a chunk each", data=rows, chunks=(1, 4, 4, 3), maxshape=(None, 4, 4, 3))
        file.create_dataset("never written", rows.shape, np.uint8)
        file.create_dataset("no chunk each", rows.shape, np.uint8, chunks=(1, 4, 4, 3))
    nothing = np.zeros_like(rows)
    of_all = {"plain": rows, "packed": rows, "a chunk each": rows, "never written": nothing, "no chunk each": nothing}
    assert stored_rows(path, "a chunk each").offsets is not None
    for name, expected in of_all.items():
        found = stored_rows(path, name)
        np.testing.assert_array_equal(found.read([3, 0, 3, 8]), expected[[3, 0, 3, 8]])
        assert found.read([]).shape == (0, 4, 4, 3)
        for outside in (-1, 9):
            with pytest.raises(IndexError):
                found.read([outside])
    plain = stored_rows(path, "plain")
    assert isinstance(plain, StoredRows) and plain.offset is not None
    os.truncate(path, plain.offset + 3 * rows[0].nbytes)
    with pytest.raises(DatasetError, match="ends within its patches"):
        plain.read([8])


def test_counts_are_written_section_by_section_in_any_order_of_genes(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(cutting, "COUNTS_CHUNK", 7)
    rng = np.random.default_rng(1)
    images = tmp_path / "a.h5"
    with h5py.File(images, "w") as file:
        file["img"] = np.zeros((2, 8, 8, 3), np.uint8)

    def section(name: str, genes: list[str], patches: StoredPatches | None = None) -> Section:
        n = 2 if patches else 5
        counts = csr_array(rng.integers(0, 3, (n, len(genes))).astype(np.float32))
        centres = rng.uniform(0, 99, (n, 2))
        names = [f"{name}{i}" for i in range(n)]
        return Section(name, name, images, Mpp(0.5, 0.5), names, centres, genes, in_memory(counts), patches=patches)

    first = section("A", ["c", "a", "b"], StoredPatches(images, 8, 0.5, (0, 1)))
    more = [section("B", ["b", "x", "a", "c"]), section("C", ["a", "b"])]
    write_tiles([first], tmp_path / "x.tiles.h5", counts_only=more, patch_px=8, report=print)
    tiles = read_tiles(tmp_path / "x.tiles.h5")
    assert tiles.genes == ["a", "b", "c", "x"]
    np.testing.assert_array_equal(tiles.counts.rows().toarray()[:, :3], first.counts.rows().toarray()[:, [1, 2, 0]])
    found = tiles.counts_only.counts.rows().toarray()
    np.testing.assert_array_equal(found[:5], more[0].counts.rows().toarray()[:, [2, 0, 3, 1]])
    np.testing.assert_array_equal(found[5:, :2], more[1].counts.rows().toarray())
    assert not found[5:, 2:].any()
    outline = read_outline(tmp_path / "x.tiles.h5")
    assert (outline.patch_px, outline.mpp, outline.section.tolist()) == (8, tiles.mpp, ["A", "A"])
