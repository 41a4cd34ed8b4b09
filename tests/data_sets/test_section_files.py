"""The files that sections' patches are cut into."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from killer_slide import write_killer_slide

from stpredict.data import section_files
from stpredict.data.cutting import write_tiles
from stpredict.data.dataset import read_dataset
from stpredict.data.patches_elsewhere import patches_folder
from stpredict.data.section import Section
from stpredict.data.tiles import Tiles, read_tiles
from stpredict.errors import StpredictError
from stpredict.slides.slide import Slide

HOW = {"patch_px": 32, "unlabelled": 9, "report": lambda _: None}


def files_of(tiles: Path) -> dict[str, tuple[int, int]]:
    """Of each section's file by its section: what changes if it is written anew."""
    found = ((path.name.split("-")[0], path.stat()) for path in patches_folder(tiles).iterdir())
    return {section: (stat.st_ino, stat.st_mtime_ns) for section, stat in found}


def assert_equal_patches(tiles: Tiles, other: Tiles) -> None:
    for unlabelled, n in ((False, len(tiles.spot)), (True, len(tiles.unlabelled_section))):
        found, wanted = (one.read_patches(range(n), unlabelled) for one in (tiles, other))
        np.testing.assert_array_equal(found, wanted)


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(section_files, "WORTH_PROCESSES", 1)
    monkeypatch.setattr(section_files, "THREADS", 1)


def test_processes_cut_what_one_does(dataset: Path, tmp_path: Path, request: pytest.FixtureRequest):
    sections, paths = read_dataset(dataset), [tmp_path / f"{name}.tiles.h5" for name in ("one", "two")]
    write_tiles(sections, paths[0], threads=2, **HOW)
    request.getfixturevalue("two_processes")
    write_tiles(sections, paths[1], threads=2, **HOW)
    assert files_of(paths[0]).keys() == files_of(paths[1]).keys() == {"A1", "A2", "B1"}
    assert_equal_patches(*map(read_tiles, paths))


def test_a_call_that_was_cut_short_goes_on_with_the_next_section(dataset: Path, tmp_path: Path, monkeypatch):
    sections, path, cut_patches = read_dataset(dataset), tmp_path / "x.tiles.h5", section_files.cut_patches

    def fail_later(slide: Slide, section: Section, *others: Any) -> None:
        cut_patches(slide, section, *others)
        if section.name == "A2":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(section_files, "cut_patches", fail_later)
        write_tiles(sections, path, **HOW)
    assert not path.exists()
    begun = files_of(path)
    assert begun.keys() == {"A1"}
    write_tiles(sections, path, **HOW)
    assert files_of(path).items() >= begun.items()
    assert files_of(path).keys() == {"A1", "A2", "B1"}
    whole = files_of(path)
    write_tiles(sections, path, **HOW)
    assert files_of(path) == whole


def test_sections_are_cut_again_if_cut_otherwise_or_cut_short(dataset: Path, tmp_path: Path):
    sections, path = read_dataset(dataset), tmp_path / "x.tiles.h5"
    write_tiles(sections, path, **HOW)
    first = files_of(path)
    (short,) = patches_folder(path).glob("A2-*.h5")
    os.truncate(short, short.stat().st_size // 2)
    write_tiles(sections, path, **HOW)
    again = files_of(path)
    assert [name for name in first if again[name] != first[name]] == ["A2"]
    moved = replace(sections[2], centres=sections[2].centres + 1)
    write_tiles([sections[0], moved], path, **{**HOW, "unlabelled": 0})
    assert files_of(path).keys() == {"A1", "B1"}  # what is wanted no more is removed
    write_tiles(sections[:1], path, **{**HOW, "unlabelled": 0})
    cut, wanted = files_of(path), files_of(path)["A1"]
    write_tiles([sections[0], moved], path, **{**HOW, "unlabelled": 0})
    assert files_of(path)["A1"] == wanted and len(files_of(path)) == len(cut) + 1


@pytest.mark.usefixtures("two_processes")
def test_a_slide_that_ends_its_process_is_told_and_other_sections_stay(dataset: Path, tmp_path: Path, region):
    sections, path = read_dataset(dataset), tmp_path / "x.tiles.h5"
    killer = tmp_path / "killer.dcm"
    write_killer_slide(killer, region[:800, :800])
    n = len(sections[1].spot_names)
    killing = replace(sections[1], image=killer, centres=np.random.default_rng(0).uniform(50, 750, (n, 2)))
    with pytest.raises(StpredictError, match="a process that cut patches was ended, perhaps for want of memory; the"):
        write_tiles([sections[0], killing], path, threads=2, **{**HOW, "unlabelled": 0})
    assert not path.exists()


def test_files_that_hold_their_patches_themselves_are_read(dataset: Path, tmp_path: Path):
    """Those of version 0.1."""
    path, old = tmp_path / "x.tiles.h5", tmp_path / "old.tiles.h5"
    write_tiles(read_dataset(dataset), path, **HOW)
    tiles = read_tiles(path)
    shutil.copy(path, old)
    with h5py.File(old, "r+") as file:
        file.attrs["format_version"] = 1
        del file["elsewhere"], file["unlabelled/elsewhere"], file.attrs["patch_format"]
        file["patches"] = tiles.read_patches(range(len(tiles.spot)))
        file["unlabelled/patches"] = tiles.read_patches(range(len(tiles.unlabelled_section)), unlabelled=True)
    assert_equal_patches(read_tiles(old), tiles)
