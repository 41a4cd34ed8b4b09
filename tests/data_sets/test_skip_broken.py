"""`--skip-broken` of `tile`, `evaluate` and `compare`: sections that cannot be read are left out, and named."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from calls import run
from conftest import make_quick_model

from stpredict.data.tiles import read_tiles

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")
SAID = "2 sections could not be read and are left out: B2, C1; "


@pytest.fixture
def two_broken(coarse_dataset: Path, tmp_path: Path) -> Path:
    """Three sections and two more, whose images are damaged."""
    folder = shutil.copytree(coarse_dataset, tmp_path / "data")
    for name in ("B2", "C1"):
        for suffix in (".tsv.gz", "_selection.tsv"):
            shutil.copy(folder / f"B1{suffix}", folder / f"{name}{suffix}")
        (folder / f"{name}.jpg").write_bytes((folder / "B1.jpg").read_bytes()[:20])
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_quick_model(tmp_path / "tiny.safetensors", mpp=2.0)


def named(table: str) -> list[str]:
    with Path(table).open() as file:
        rows = list(csv.DictReader(file))
    assert all(f"{row['section']}.jpg" in row["why"] for row in rows)
    return [row["section"] for row in rows]


def test_all_are_named_before_anything_is_made(two_broken: Path, model: Path):
    for call in (("tile", two_broken, "-m", model, "-o", "t"), ("evaluate", model, two_broken, "-o", "e"),
                 ("compare", two_broken, "--arch", "dictionary", "-o", "c")):  # fmt: skip
        done = run(*call)
        assert done.exit_code == 2, done.output
        assert "2 sections cannot be read: B2 (" in done.stderr
        assert "; --skip-broken leaves them out" in done.stderr
    assert not any(Path(name).exists() for name in "tec")


def test_tiles_are_of_the_others(two_broken: Path, model: Path):
    done = run("tile", two_broken, "-m", model, "--skip-broken", "-o", "out")
    assert done.exit_code == 1, done.output
    assert SAID + "out/data.broken.csv says why" in done.stderr
    assert set(read_tiles(Path("out/data.tiles.h5")).section) == {"A1", "A2", "B1"}
    assert named("out/data.broken.csv") == ["B2", "C1"]
    for path in two_broken.glob("[BC][12].jpg"):
        shutil.copy(two_broken / "A1.jpg", path)
    done = run("tile", two_broken, "-m", model, "--skip-broken", "--overwrite", "-o", "out")
    assert done.exit_code == 0, done.output
    assert not Path("out/data.broken.csv").exists()


def test_a_model_is_scored_on_the_others(two_broken: Path, model: Path):
    how = ("--min-depth", 1, "--engine", "eager", "--skip-broken")
    done = run("evaluate", model, two_broken, *how, "-o", "out")
    assert done.exit_code == 1, done.output
    assert SAID + "out/tiny-data.broken.csv says why" in done.stderr
    assert "- left out, as they could not be read: B2, C1" in done.stdout
    assert named("out/tiny-data.broken.csv") == ["B2", "C1"]
    found = json.loads(Path("out/tiny-data.evaluation.json").read_text())
    assert sorted(one["section"] for one in found["sections"]) == ["A1", "A2", "B1"]
    assert list(found["left_out"]) == ["B2", "C1"]
    done = run("evaluate", model, two_broken, "--protocol", "hest", "--skip-broken", "-o", "out")
    assert done.exit_code == 1, done.output
    assert list(json.loads(Path("out/tiny-data.hest.json").read_text())["left_out"]) == ["B2", "C1"]


@pytest.mark.usefixtures("few_windows")
def test_systems_are_compared_on_the_others_also_when_a_call_goes_on(two_broken: Path, monkeypatch):
    monkeypatch.setattr("stpredict.comparison.preparation.PATCH_PX", 32)
    call = ("compare", two_broken, "--arch", "dictionary", "--seeds", 1, "--min-depth", 1, "--panel-size", 4,
            "--unlabelled", 0, "--mpp", 1, "--threads", 1, "--skip-broken", "-o", "out")  # fmt: skip
    for _ in range(2):
        done = run(*call)
        assert done.exit_code == 1, done.output
        assert SAID + "out/broken.csv says why" in done.stderr
        assert "- left out, as they could not be read: B2, C1" in done.stdout
    assert named("out/broken.csv") == ["B2", "C1"]
    tested = {tuple(part["test"]) for part in json.loads(Path("out/results.json").read_text())["parts"]}
    assert tested == {("A1", "A2"), ("B1",)}


def test_tiles_are_cut_already(model: Path):
    Path("some.tiles.h5").touch()
    done = run("evaluate", model, "some.tiles.h5", "--skip-broken")
    assert done.exit_code == 2
    assert "--skip-broken need a folder of sections" in done.stderr
