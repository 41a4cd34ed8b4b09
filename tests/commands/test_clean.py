from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from calls import run
from conftest import SLIDE, make_model

from stpredict.prediction.leases import take_lease

PARTS = "CMU-1-Small-Region.h5ad.parts"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STPREDICT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def left_behind(quick_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a prediction leaves that is killed while it goes on."""
    folder = tmp_path_factory.mktemp("killed")
    options = ["--pitch", "5", "--genes", "GNAS", "--engine", "eager", "--threads", "1", "-o", "out"]
    call = [sys.executable, "-m", "stpredict", "predict", SLIDE, "-m", quick_model_path, *options]
    parts = folder / "out" / PARTS
    with subprocess.Popen(call, stderr=subprocess.DEVNULL, cwd=folder, start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while not list(parts.glob("0*.npy")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    assert (folder / "out" / "CMU-1-Small-Region.h5ad.lease").exists()
    return folder / "out"


@pytest.fixture
def killed(left_behind: Path, tmp_path: Path) -> Path:
    """A copy of that in the current folder, relative to it."""
    shutil.copytree(left_behind, tmp_path / "out")
    return Path("out")


def listed(stdout: str) -> list[str]:
    return [line.split(": ")[0] for line in stdout.splitlines()]


def age(path: Path) -> None:
    os.utime(path, (0, 0))


def test_what_a_killed_call_left_is_listed_and_then_removed(killed):
    before = sorted(Path().rglob("*"))
    told = run("clean")
    assert told.exit_code == 0, told.output
    assert listed(told.stdout) == [f"out/{PARTS}", "out/CMU-1-Small-Region.h5ad.lease"]
    assert "the same call goes on with them" in told.stdout
    assert "--remove removes it" in told.stderr
    assert [path for path in sorted(Path().rglob("*")) if path.parts[0] != "cache"] == before
    as_json = json.loads(run("clean", "--json").stdout)
    assert (as_json["removed"], [each["kind"] for each in as_json["found"]]) == (False, ["parts", "lease"])
    assert as_json["bytes"] == sum(each["bytes"] for each in as_json["found"]) > 0
    assert [each["path"] for each in as_json["found"]] == listed(told.stdout)
    removed = run("clean", killed, "--remove")
    assert removed.exit_code == 0, removed.output
    assert listed(removed.stdout) == listed(told.stdout)
    assert not list(killed.iterdir())
    again = run("clean", killed, "--remove")
    assert (again.exit_code, again.stdout, again.stderr) == (0, "", "nothing to remove\n")


def test_what_a_running_prediction_is_at_stays(killed):
    lease = killed / "CMU-1-Small-Region.h5ad.lease"
    old = killed / ".CMU-1.0123456789abcdef.tmp.h5ad"
    old.touch()
    age(old)
    ours = take_lease(lease)
    assert ours
    before = sorted(killed.rglob("*"))
    done = run("clean", killed, "--remove")
    assert (done.exit_code, done.stdout) == (0, "")
    assert sorted(killed.rglob("*")) == before
    ours.release()
    lease.write_text(json.dumps({"token": "x", "where": "another machine", "pid": 1}))
    assert run("clean", killed, "--remove").stdout == ""  # which may be at it
    age(lease)
    assert len(run("clean", killed, "--remove").stdout.splitlines()) == 3
    assert not list(killed.iterdir())


def test_a_prediction_that_begins_meanwhile_keeps_its_parts(killed, monkeypatch):
    monkeypatch.setattr("stpredict.commands.clean.is_held", lambda _: False)
    ours = take_lease(killed / "CMU-1-Small-Region.h5ad.lease")
    assert ours
    done = run("clean", killed, "--remove")
    assert done.stdout == ""
    assert done.stderr.count("another process is using it now") == 2
    assert list(Path(killed, PARTS).glob("0*.npy"))
    ours.release()


def test_only_its_own_files_are_removed_and_no_link_is_followed(killed):
    treasure = Path("treasure")
    treasure.mkdir()
    (treasure / "manifest.json").write_text((killed / PARTS / "manifest.json").read_text())
    (treasure / "000000.npy").write_text("gold")
    (killed / "linked.h5ad.parts").symlink_to(treasure.resolve())
    (killed / "linked.lease").symlink_to((killed / "CMU-1-Small-Region.h5ad.lease").resolve())
    (killed / PARTS / "000099.npy").symlink_to((treasure / "000000.npy").resolve())
    (killed / PARTS / "mine.txt").touch()
    others = {"other.h5ad.parts/notes.txt": "", "a.lease": "", "b.lease": "[1]", ".x.tmp": "", "s.h5ad.parts": "a file"}
    for name, content in others.items():
        path = killed / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        age(path)
    done = run("clean", "--remove")
    assert listed(done.stdout) == [f"out/{PARTS}", "out/CMU-1-Small-Region.h5ad.lease"]
    assert (treasure / "000000.npy").read_text() == "gold"
    assert (treasure / "manifest.json").exists()
    assert {path.name for path in (killed / PARTS).iterdir()} == {"mine.txt"}
    assert all((killed / name).exists() for name in (*others, "linked.h5ad.parts"))
    assert (killed / "linked.lease").is_symlink()


def test_temporary_files_are_left_over_after_an_hour():
    for name in (".s.GNAS.heatmap.0123456789abcdef.tmp.tif", ".0123456789abcdef.tmp.lease", ".x.tmp.tif"):
        Path(name).write_text("12345")
    assert run("clean").stdout == ""
    for path in Path().glob(".*"):
        age(path)
    told = run("clean", "--remove")
    assert told.stdout.splitlines() == [
        ".0123456789abcdef.tmp.lease: a temporary file, 5 bytes",
        ".s.GNAS.heatmap.0123456789abcdef.tmp.tif: a temporary file, 5 bytes",
    ]
    assert [path.name for path in Path().iterdir() if path.is_file()] == [".x.tmp.tif"]
    empty = Path(".0123456789abcdef.tmp.lease")
    empty.touch()
    age(empty)
    assert "removed 0" in run("clean", "--remove").stderr


def test_compiled_networks_are_listed_and_removed(tmp_path):
    model = make_model(tmp_path / "tiny.safetensors")
    call = ("predict", SLIDE, "-m", model, "--genes", "GNAS", "--pitch", "100", "--engine", "openvino")
    assert run(*call).exit_code == 0
    told = run("clean")
    (line,) = told.stdout.splitlines()
    assert line.startswith(f"{tmp_path}/cache/engines: 2 files of compiled networks, which the next call makes anew, ")
    Path("results").mkdir()
    kept = sorted(Path("cache").rglob("*"))
    named = run("clean", "results", "--remove")  # what all other calls use is not the folder's
    assert (named.exit_code, named.stdout, named.stderr) == (0, "", "nothing to remove\n")
    assert sorted(Path("cache").rglob("*")) == kept
    assert run("clean", "--remove").exit_code == 0
    assert not [path for path in Path("cache").rglob("*") if path.suffix in (".bin", ".pt2")]
    assert run("clean").stdout == ""
    assert run(*call, "-o", "again").exit_code == 0


def test_what_cannot_be_removed_is_told(monkeypatch):
    path = Path(".0123456789abcdef.tmp.tif")
    path.write_text("12345")
    age(path)

    def refuse(self, **_options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    done = run("clean", "--remove")
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"{path}: cannot be removed (Permission denied)." in done.stderr
    monkeypatch.undo()


def test_a_folder_that_is_not_there_is_an_error():
    done = run("clean", "nowhere")
    assert (done.exit_code, done.stderr) == (2, "stpredict: nowhere: no such folder.\n")
    Path("list.csv").touch()
    assert run("clean", "list.csv").stderr == "stpredict: list.csv: is a file, not a folder.\n"
