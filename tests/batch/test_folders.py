from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from calls import PROGRAM, run
from results_to_draw import made_up
from slides_to_try import tiff_pyramid

from stpredict.batch.jobs import Anonymity, find_jobs
from stpredict.errors import UsageError
from stpredict.result.file import read_result
from stpredict.slides.lattice import lattice
from stpredict.slides.slide import Bounds, Mpp

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

SPOTS = lattice(Bounds(0, 0, 600, 400), Mpp(0.5, 0.5), 30.0)
EAGER = ("--engine", "eager", "--threads", "1")


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def found(folder: Path, **how: object) -> tuple[list[str], list[str]]:
    """The slides that are found in a folder, and what is said of the others."""
    lines: list[str] = []
    jobs = find_jobs([str(folder)], Path("o"), lines.append, **how)
    return sorted(job.slide.relative_to(folder).as_posix() for job in jobs), [line.split(": ", 1)[1] for line in lines]


ASSOCIATED = (
    "a_label.tif", "a.label.tif", "a-Macro.TIFF", "a macro image.tif", "a_thumbnail.svs", "a_thumb.tif",
    "a_overview.tif", "label.tif", "a.svs_label.tif", "a_label.ome.tif", "a_label_1.tif", "a_thumbnail2.tif",
)  # fmt: skip


def test_pictures_of_labels_and_the_like_are_passed_over_in_folders(tmp_path):
    others = ("labelled.svs", "macrophages.svs", "overviews.tif", "thumbs-up.tif", "label_7_liver.svs")
    slides, said = found(make(tmp_path / "in", *ASSOCIATED, *others))
    assert slides == sorted(others)
    count = len(ASSOCIATED)
    assert said == [
        f"passed over {count} files: label, macro, thumbnail or overview by name (name them to predict them)"
    ]
    for name in ASSOCIATED:
        (job,) = find_jobs([str(tmp_path / "in" / name)], Path("o"), print)
        assert job.slide.name == name


def test_what_systems_leave_in_folders_is_passed_over(tmp_path):
    litter = (
        "._a.svs", ".DS_Store", "Thumbs.db", "~$a.svs", "b.svs.part", "b.svs.filepart", "b.svs.crdownload",
        "@eaDir/a.svs/SYNO_THUMB.tif", "lost+found/#12.svs", "$RECYCLE.BIN/x.svs", "__MACOSX/._a.svs", "series/1.dcm",
        "m/Slidedat.ini", "m/Data0000.dat", "m/Index.dat",
    )  # fmt: skip
    slides, said = found(make(tmp_path / "in", "a.svs", "m.mrxs", "folder.svs/c.svs", *litter))
    assert slides == ["a.svs", "folder.svs/c.svs", "m.mrxs"]
    assert said == [
        "passed over 1 folder: $RECYCLE.BIN, of the system",
        "passed over 1 folder: @eaDir, of the system",
        "passed over 1 folder: __MACOSX, of the system",
        "passed over 1 folder: lost+found, of the system",
        "passed over 1 file: .crdownload, not copied as a whole yet",
        "passed over 1 file: .db, not a slide's (name them to try them)",
        "passed over 1 file: .dcm, not a slide's (name them to try them)",
        "passed over 1 file: .filepart, not copied as a whole yet",
        "passed over 1 file: .part, not copied as a whole yet",
        "passed over 3 files: hidden",
    ]


@pytest.mark.skipif(os.name == "nt", reason="there are no such files")
def test_what_is_no_file_is_passed_over_and_waited_for_by_nobody(tmp_path, quick_model_path):
    folder = make(tmp_path / "in", "a.svs")
    os.mkfifo(folder / "pipe.svs")
    os.mkfifo(folder / "pipe_of_another_suffix")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.tif")
        shutil.move("socket.tif", folder / "socket.tif")
    (folder / "to_itself.svs").symlink_to("to_itself.svs")
    (folder / "to_nothing.svs").symlink_to("gone.svs")
    (folder / "up").symlink_to(folder)
    slides, said = found(folder)
    assert slides == ["a.svs", "to_itself.svs", "to_nothing.svs"]  # of which the latter fail, as slides that are missed
    assert "passed over 2 files: a pipe, a socket or a device" in said
    call = [*PROGRAM, "predict", "in/pipe.svs", "in/to_itself.svs", "in/to_nothing.svs", "-m", quick_model_path]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120)
    assert done.returncode in (1, 2)
    assert "3 of 3 slides failed" in done.stderr
    assert "unexpected" not in done.stderr


def test_patterns_exclude_by_name_and_by_path(tmp_path):
    folder = make(tmp_path / "in", "a.svs", "a_old.svs", "old/b.svs", "new/old/c.svs", "new/d.tif", "new/e.svs")
    assert found(folder, exclude=["*_old.svs"])[0] == ["a.svs", "new/d.tif", "new/e.svs", "new/old/c.svs", "old/b.svs"]
    assert found(folder, exclude=["old"])[0] == ["a.svs", "a_old.svs", "new/d.tif", "new/e.svs"]
    slides, said = found(folder, exclude=["new/*.svs", "old/*"])
    assert slides == ["a.svs", "a_old.svs", "new/d.tif"]
    assert said == ["passed over 3 files: --exclude"]
    with pytest.raises(UsageError, match="holds no slides"):
        found(folder, exclude=["*"])
    lines: list[str] = []
    pattern = f"{folder}/*.svs"
    (job,) = find_jobs([pattern], Path("o"), lines.append, exclude=["*_old.svs"])
    assert job.slide.name == "a.svs"
    assert lines == [f"{pattern}: passed over 1 file: --exclude"]
    names = [str(folder / "a.svs"), str(folder / "a_old.svs")]
    assert len(find_jobs(names, Path("o"), print, exclude=["*_old.svs"])) == 1
    assert len(find_jobs(names[1:], Path("o"), print, exclude=["*_old.svs"])) == 1  # named alone
    with pytest.raises(UsageError, match="--exclude leaves no slide"):
        find_jobs(names, Path("o"), print, exclude=["*.svs"])


def test_the_rest_of_a_folder_goes_on(quick_model_path, region):
    """A picture of the same stem, a label, and slides that say where they lie by --exclude."""
    Path("in").mkdir()
    for name in ("case1.svs", "case2.tif", "case3_old.tif"):
        tiff_pyramid(Path("in") / Path(name).with_suffix(".tif").name, region[1000:1800, 600:1400], (0.5, 0.5))
        if name.endswith(".svs"):
            Path("in/case1.tif").rename("in/case1.svs")
    tiff_pyramid(Path("in/case1.tif"), region[1000:1800, 600:1400], None)
    tiff_pyramid(Path("in/case2_label.tif"), region[:600, :600], None)
    left_out = ("--exclude", "*_old.tif", "--exclude", "no/*")
    asked = ("predict", "in", "-m", quick_model_path, *EAGER, "-o", "out", *left_out)
    done = run(*asked)
    assert done.exit_code == 1, done.output
    assert done.stdout.split() == ["out/case1.h5ad", "out/case2.h5ad"]
    assert "case1.tif: the file does not say its micrometres per pixel" in done.stderr
    assert run(*asked, "--exclude", "case1.tif").exit_code == 0
    given = run(*asked, "--mpp", "0.5")
    assert given.exit_code == 0, given.output
    assert given.stdout.split() == ["out/case1.h5ad", "out/case1.tif.h5ad", "out/case2.h5ad"]
    assert given.stderr.count("up to date") == 2
    assert read_result(Path("out/case1.tif.h5ad")).name == "case1.tif"
    Path("in/case1.svs").unlink()
    again = run(*asked, "--mpp", "0.5")
    assert "case1.tif.h5ad: up to date" in again.stderr
    drawn = run("render", "out", "--exclude", "case1.*", "--genes", "GNAS", "--style", "csv")
    assert drawn.exit_code == 0, drawn.output
    assert drawn.stdout.split() == ["case2.expression.csv"]
    summed = run("summary", "out", "--exclude", "case1.tif.h5ad")
    assert [line.split(",")[0] for line in summed.stdout.splitlines()[1:]] == ['"case1"', '"case2"']
    assert run(*asked, "--exclude", "").exit_code == 2


def as_nobody(*call: object) -> subprocess.CompletedProcess[str]:
    """Call the program as somebody who may read only what everybody may."""
    who = ["unshare", "-U", "--map-user=12345"] if os.name != "nt" and os.geteuid() == 0 else []
    if who and subprocess.run([*who, "true"], capture_output=True).returncode:
        pytest.skip("root reads everything, and unshare does not work here")
    call_ = [*who, *PROGRAM, *map(str, call)]
    return subprocess.run(call_, capture_output=True, text=True, timeout=300)


@pytest.fixture
def closed(in_a_folder_of_its_own: None, region: np.ndarray) -> Iterator[Path]:  # noqa: ARG001 (first)
    Path("in/closed").mkdir(parents=True)
    tiff_pyramid(Path("in/ok.tif"), region[1000:1800, 600:1400], (0.5, 0.5))
    shutil.copy("in/ok.tif", "in/closed/other.tif")
    Path("out").mkdir()
    Path("out").chmod(0o777)
    Path("in/closed").chmod(0)
    yield Path("in/closed")
    Path("in/closed").chmod(0o755)


@pytest.mark.skipif(sys.platform != "linux", reason="needs unshare where root runs the tests")
def test_a_folder_that_cannot_be_read_costs_only_itself(closed, model_for_all):
    asked = ("predict", "in", "-m", model_for_all, *EAGER, "--genes", "GNAS", "-o", "out")
    done = as_nobody(*asked)
    assert done.returncode == 1, done.stderr
    assert done.stdout.split() == ["out/ok.h5ad"]
    assert "in/closed: cannot be read (Permission denied)." in done.stderr
    assert "1 of 2 slides and folders failed:" in done.stderr
    assert "in/closed" in Path("out/failures.csv").read_text()
    planned = as_nobody(*asked, "--exclude", "closed", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "out/ok.h5ad: up to date" in planned.stdout
    closed.chmod(0o755)
    assert as_nobody(*asked).returncode == 0
    assert not Path("out/failures.csv").exists()
    closed.chmod(0)
    alone = as_nobody(*asked[:1], "in/closed", *asked[2:])
    assert alone.returncode == 2
    assert alone.stderr.splitlines()[-1] == "stpredict: in/closed: cannot be read (Permission denied)."


@pytest.mark.skipif(sys.platform != "linux", reason="needs unshare where root runs the tests")
@pytest.mark.usefixtures("closed")
def test_results_that_cannot_be_reached_are_told_of():
    made_up(Path("in/ok.h5ad"), SPOTS, np.ones((len(SPOTS), 2)))
    for command in (("summary", "in"), ("render", "in", "-o", "out", "--style", "csv")):
        done = as_nobody(*command)
        assert done.returncode == 1, done.stderr
        assert "in/closed: cannot be read (Permission denied)." in done.stderr
        assert "ok" in done.stdout


def test_names_of_folders_that_cannot_be_read_stay_hidden_with_those_of_slides(tmp_path, monkeypatch):
    make(tmp_path / "in", "a.svs", "miller/b.svs")
    scan = os.scandir

    def refused(path: object):
        if str(path).endswith("miller"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    unreadable: dict[Path, str] = {}
    lines: list[str] = []
    anonymity = Anonymity(tmp_path / "names.csv", keep=False)
    find_jobs([str(tmp_path / "in")], Path("o"), lines.append, anonymity, unreadable=unreadable)
    assert unreadable == {tmp_path / "in": "1 of the folders in it cannot be read"}
    assert "miller" not in "".join(lines)


@pytest.fixture
def model_for_all(quick_model_path: Path) -> Path:
    """The tiny model where everybody can read it."""
    return Path(shutil.copy(quick_model_path, "tiny.safetensors")).absolute()
