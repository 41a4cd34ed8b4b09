"""An evaluation cuts patches where it reads them, a section at a time, and scores as on a file of all patches."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import make_quick_model
from test_assessment import assess_quietly

from stpredict.data import section_patches
from stpredict.data.cutting import Cut, write_tiles
from stpredict.data.dataset import read_dataset
from stpredict.data.section_patches import SectionPatches
from stpredict.data.tiles import read_tiles
from stpredict.model.file import load_model
from stpredict.slides.views import ONE_VIEW

PATCH_PX, MPP = 32, 2.0


@pytest.fixture(scope="module")
def tiles(coarse_dataset: Path, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("tiles") / "coarse.tiles.h5"
    write_tiles(read_dataset(coarse_dataset), path, patch_px=PATCH_PX, mpp=MPP, threads=1, report=lambda _: None)
    return read_tiles(path)


@pytest.mark.parametrize("views", [ONE_VIEW, (1, 2)])
def test_patches_are_the_same_in_any_order_and_one_section_is_on_the_disk(coarse_dataset, tmp_path, monkeypatch, views):
    sections, how = read_dataset(coarse_dataset), Cut(PATCH_PX, views, MPP, 1)
    write_tiles(sections, tmp_path / "all.tiles.h5", patch_px=PATCH_PX, mpp=MPP, views=views, report=lambda _: None)
    tiles, folder = read_tiles(tmp_path / "all.tiles.h5"), tmp_path / "cut"
    folder.mkdir()
    n, cut = len(tiles.spot), []
    monkeypatch.setattr(
        section_patches, "cut_patches", lambda slide, one, *rest: cut.append(one.name) or CUT(slide, one, *rest)
    )
    source = SectionPatches(sections, how, folder, print)
    for i in range(n):
        np.testing.assert_array_equal(source.read([i])[0], tiles.read_patches([i])[0])
        assert len(list(folder.iterdir())) == 1
    assert cut == ["A1", "A2", "B1"]
    mixed = np.random.default_rng(0).permutation(n)[:9]
    np.testing.assert_array_equal(source.read(mixed), tiles.read_patches(mixed))
    np.testing.assert_array_equal(source.read([n - 1]), tiles.read_patches([n - 1]))
    assert source.read([]).shape == (0, *tiles.read_patches([0]).shape[1:])


CUT = section_patches.cut_patches


def test_a_folder_scores_as_its_tiles_do(tiles, coarse_dataset: Path, tmp_path: Path):
    model = load_model(make_quick_model(tmp_path / "m.safetensors", mpp=MPP))
    folder = shutil.copytree(coarse_dataset, tmp_path / "coarse")
    from_folder, from_tiles = (assess_quietly(model, path) for path in (folder, tiles.path))
    assert from_folder.rows == from_tiles.rows
    assert from_folder.sections == from_tiles.sections
    assert from_folder.whole == from_tiles.whole
    assert from_folder.pictures == from_tiles.pictures
    for name, values in from_folder.per_gene.items():
        np.testing.assert_array_equal(values, from_tiles.per_gene[name], err_msg=name)
