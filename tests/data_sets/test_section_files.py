"""The files that sections' patches are cut into."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from killer_slide import write_killer_slide

from stpredict.data import section_files
from stpredict.data.counts import in_memory
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
    found = ((path.name.split("-")[0], path.stat()) for path in patches_folder(tiles).glob("[!.]*"))
    return {section: (stat.st_ino, stat.st_mtime_ns) for section, stat in found}


def assert_equal_patches(tiles: Tiles, other: Tiles) -> None:
    for unlabelled, n in ((False, len(tiles.spot)), (True, len(tiles.unlabelled_section))):
        found, wanted = (one.read_patches(range(n), unlabelled) for one in (tiles, other))
        np.testing.assert_array_equal(found, wanted)


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(section_files, "WORTH_PROCESSES", 1)
    monkeypatch.setattr(section_files, "THREADS", 1)


def test_processes_cut_what_one_does(dataset: Path, tmp_path: Path, monkeypatch, request: pytest.FixtureRequest):
    sections, paths, pools = read_dataset(dataset), [tmp_path / f"{name}.tiles.h5" for name in ("one", "two")], []
    pool = section_files.ProcessPoolExecutor
    monkeypatch.setattr(section_files, "ProcessPoolExecutor", lambda n, *how: pools.append(n) or pool(n, *how))
    write_tiles(sections, paths[0], threads=2, **HOW)
    assert not pools
    request.getfixturevalue("two_processes")
    write_tiles(sections, paths[1], threads=2, **HOW)
    assert pools == [2]
    one, two = ({path.name for path in patches_folder(path).iterdir()} for path in paths)
    assert one == two  # the names tell the contents
    assert_equal_patches(*map(read_tiles, paths))


def test_processes_end_with_a_call_that_is_killed(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, time\n"
        "from stpredict.data.section_files import _processes\n"
        "if __name__ == '__main__':\n"
        "    with _processes(2) as pool:\n"
        "        [pool.submit(time.sleep, 300) for _ in range(4)]\n"
        "        print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "        time.sleep(300)\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=-1, text=True) as call:
        assert call.stdout
        pids = [int(pid) for pid in call.stdout.readline().split()]
        assert len(pids) == 2
        call.kill()
    deadline = time.monotonic() + 60
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


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


def test_sections_are_cut_again_if_cut_otherwise_or_damaged(dataset: Path, tmp_path: Path):
    sections, path = read_dataset(dataset), tmp_path / "x.tiles.h5"
    write_tiles(sections, path, **HOW)
    first, whole = files_of(path), read_tiles(path).read_patches(range(len(read_tiles(path).spot)))
    for section, damage in (("A2", shorten), ("B1", zero_the_middle)):
        (file,) = patches_folder(path).glob(f"{section}-*.h5")
        damage(file)
    write_tiles(sections, path, **HOW)
    again = files_of(path)
    assert [name for name in first if again[name] != first[name]] == ["A2", "B1"]
    np.testing.assert_array_equal(read_tiles(path).read_patches(range(len(whole))), whole)
    moved = replace(sections[2], centres=sections[2].centres + 1)
    write_tiles([sections[0], moved], path, **{**HOW, "unlabelled": 0})
    assert files_of(path).keys() == {"A1", "B1"}  # what these tiles named before, and name no more, is removed
    kept = files_of(path)["A1"]
    write_tiles([sections[0], sections[1], moved], path, **{**HOW, "unlabelled": 0})
    assert files_of(path)["A1"] == kept


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def zero_the_middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(200))


def test_places_are_drawn_as_if_nothing_had_been_cut_before(dataset: Path, tmp_path: Path):
    sections, path = read_dataset(dataset), tmp_path / "x.tiles.h5"
    one = in_memory(sections[0].counts.rows()[:1])
    few = [replace(sections[0], centres=sections[0].centres[:1], spot_names=["one"], counts=one)]
    small = [replace(section, spot_diameter_um=section.spot_diameter_um / 2) for section in sections]
    for asked, more in (
        (few + sections[1:], {"unlabelled": 0}),
        (few + sections[1:], {"seed": 1}),
        (sections, {}),
        (small, {}),
    ):
        write_tiles(asked, path, **{**HOW, **more})
        (tmp_path / "anew").mkdir(exist_ok=True)
        write_tiles(asked, tmp_path / "anew" / "x.tiles.h5", **{**HOW, **more})
        assert_equal_patches(read_tiles(path), read_tiles(tmp_path / "anew" / "x.tiles.h5"))
        shutil.rmtree(tmp_path / "anew" / "x.patches")


def test_files_that_these_tiles_did_not_name_stay(dataset: Path, tmp_path: Path):
    sections, path, renamed = read_dataset(dataset), tmp_path / "x.tiles.h5", tmp_path / "y.tiles.h5"
    write_tiles(sections, path, **HOW)
    (patches_folder(path) / "mine.h5").write_bytes(b"another's")
    path.rename(renamed)
    write_tiles(sections, path, **{**HOW, "patch_px": 16})
    assert len(list(patches_folder(path).iterdir())) == 7
    assert read_tiles(renamed).read_patches([0]).shape == (1, 32, 32, 3)


@pytest.mark.usefixtures("two_processes")
def test_a_slide_that_ends_its_process_is_told_of_in_a_sentence(dataset: Path, tmp_path: Path, region):
    sections, path = read_dataset(dataset), tmp_path / "x.tiles.h5"
    killer = tmp_path / "killer.dcm"
    write_killer_slide(killer, region[:800, :800])
    n = len(sections[1].spot_names)
    killing = replace(sections[1], image=killer, centres=np.random.default_rng(0).uniform(50, 750, (n, 2)))
    with pytest.raises(StpredictError, match="a process that cut patches was ended, perhaps for want of memory; the"):
        write_tiles([sections[0], killing], path, threads=2, **{**HOW, "unlabelled": 0})
    assert not path.exists()
    write_tiles(sections[:1], path, **{**HOW, "unlabelled": 0})
    assert files_of(path).keys() == {"A1"}


def test_files_that_hold_their_patches_themselves_are_read(dataset: Path, tmp_path: Path):
    """Those of version 0.1."""
    path, old = tmp_path / "x.tiles.h5", tmp_path / "old.tiles.h5"
    write_tiles(read_dataset(dataset), path, **HOW)
    tiles = read_tiles(path)
    shutil.copy(path, old)
    with h5py.File(old, "r+") as file:
        file.attrs["format_version"] = 1
        del file["elsewhere"], file["unlabelled/elsewhere"]
        file["patches"] = tiles.read_patches(range(len(tiles.spot)))
        file["unlabelled/patches"] = tiles.read_patches(range(len(tiles.unlabelled_section)), unlabelled=True)
    assert_equal_patches(read_tiles(old), tiles)
