from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from calls import LIGHT, PROGRAM, run
from killer_slide import write_killer_slide
from slides_to_try import tiff_pyramid

from stpredict.batch.child import predict_in_children
from stpredict.batch.jobs import find_jobs
from stpredict.batch.processes import Work, exit_in_words
from stpredict.errors import StpredictError
from stpredict.prediction.request import Request

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

#: With the quick model each slide has several shards, of which the first is written well before the last.
IN_SHARDS = (*LIGHT, "--pitch", "5")


@pytest.fixture
def slides(region) -> Path:
    Path("in").mkdir()
    for name in "abc":
        tiff_pyramid(Path(f"in/{name}.tif"), region[1000:1800, 600:1400], (0.5, 0.5))
    return Path("in")


@pytest.fixture
def call(slides, quick_model_path) -> list[object]:
    """A prediction of three slides that takes a while."""
    return [*PROGRAM, "predict", slides, "-m", quick_model_path, *IN_SHARDS, "-o", "out"]


def owner(slide: str, process: subprocess.Popen) -> int:
    """The process that is at a slide, once it has done some of it."""
    deadline = time.monotonic() + 200
    while not list(Path(f"out/{slide}.h5ad.parts").glob("0*.npy")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    return int(json.loads(Path(f"out/{slide}.h5ad.lease").read_text())["pid"])


def is_gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_a_slide_that_ends_the_process_fails_alone(slides, tiny_model_path, region):
    Path("dicom").mkdir()  # OpenSlide looks for other files of a DICOM series beside a file
    write_killer_slide(Path("dicom/killer.dcm"), region[1000:1800, 600:1400])
    asked = ("-m", tiny_model_path, "--genes", "GNAS", *LIGHT, "-o", "out")
    done = run("predict", slides / "a.tif", "dicom/killer.dcm", slides / "b.tif", slides / "c.tif", *asked)
    assert done.exit_code == 1, done.output
    assert sorted(done.stdout.split()) == [f"out/{name}.h5ad" for name in "abc"]
    assert "1 of 4 slides failed" in done.stderr
    assert "killer.dcm: each process that began it was ended by signal 11 (SIGSEGV); the slide may be" in done.stderr
    assert "dicom/killer.dcm" in Path("out/failures.csv").read_text()
    assert not list(Path("out").glob("*.lease"))


def test_slides_that_a_dead_process_was_at_are_gone_on_with(call):
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        child = owner("a", process)
        assert child != process.pid
        begun = {path.name: path.stat().st_mtime_ns for path in Path("out/a.h5ad.parts").glob("0*.npy")}
        os.kill(child, signal.SIGKILL)
        second = child
        while second == child:
            with contextlib.suppress(OSError, ValueError):
                second = int(json.loads(Path("out/a.h5ad.lease").read_text())["pid"])
            time.sleep(0.05)
        now = {path.name: path.stat().st_mtime_ns for path in Path("out/a.h5ad.parts").glob("0*.npy")}
        assert begun.items() <= now.items()
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert sorted(output.split()) == [f"out/{name}.h5ad" for name in "abc"]
    assert "a.tif: a process that was predicting it was ended by signal 9 (SIGKILL); it is tried again alone" in errors


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_child_ends_with_its_parent(call, how):
    with subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        child = owner("a", process)
        process.send_signal(how)
        assert process.wait(20) == (143 if how == signal.SIGTERM else -how)
    assert is_gone(child)
    again = subprocess.run(call, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert not list(Path("out").glob("*.lease"))


@pytest.mark.parametrize("to_all", [False, True])
def test_ctrl_c_ends_the_child_and_lets_go_of_its_slides(call, to_all):
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    in_parts = [*call[:-4], "--pitch", "3", "-o", "out"]  # so that the first is written long before the last
    with subprocess.Popen(
        in_parts, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heed
    ) as process:  # fmt: skip
        child = owner("a", process)
        if to_all:  # as a terminal does
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == "stpredict: interrupted; the same command goes on where it stopped."
    assert "Traceback" not in errors
    assert is_gone(child)
    assert list(Path("out/a.h5ad.parts").glob("0*.npy"))
    assert not list(Path("out").glob("*.lease"))
    assert not list(Path("out").rglob(".*.tmp*"))


def test_a_child_that_dies_before_any_slide_is_no_slides_fault(slides, tiny_model, monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import os, sys\nif 'spawn_main' in str(sys.orig_argv): os._exit(7)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    jobs = find_jobs([str(slides)], Path("out"), print)
    work = Work(tiny_model.path, tiny_model.sha256, Request(), len(jobs))
    with pytest.raises(StpredictError, match="ended with exit code 7 before it began a slide"):
        list(predict_in_children(jobs, work, lambda *_: None))


def test_errors_of_the_whole_call_come_from_the_child(slides, tiny_model_path):
    asked = ("-m", tiny_model_path, "-o", "out")
    none = run("predict", slides, *asked, "--mask", "none.geojson")
    assert none.exit_code == 2
    assert "none.geojson: cannot be read" in none.stderr
    assert run("predict", slides, *asked, "--engine", "compile", "--precision", "int8").exit_code == 2


def test_the_way_a_process_ended_in_words():
    assert exit_in_words(-6) == "was ended by signal 6 (SIGABRT)"
    assert exit_in_words(-77) == "was ended by signal 77"
    assert exit_in_words(3) == "ended with exit code 3"


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_table_is_drawn_on_a_terminal_and_wiped_away(call, interrupted):
    controller, terminal = pty.openpty()
    drawn: list[bytes] = []

    def read_terminal() -> None:
        with contextlib.suppress(OSError):
            while part := os.read(controller, 4096):
                drawn.append(part)

    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    reader = threading.Thread(target=read_terminal, daemon=True)
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=terminal, preexec_fn=heed) as process:
        os.close(terminal)
        reader.start()
        if interrupted:
            owner("a", process)
            process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=300)
    reader.join(timeout=10)
    os.close(controller)
    text = b"".join(drawn)
    assert b"slides: 0 done, 0 failed, 3 left" in text
    assert b"a.tif" in text
    assert text.rindex(b"\x1b[?25h") > text.rindex(b"\x1b[?25l")  # the cursor is back
    last = text[text.rindex(b"slides: ") :]
    assert b"\x1b[2K" in last  # and the table's lines are gone
    if interrupted:
        assert process.returncode == 130
        assert b"interrupted" in last
    else:
        assert output.split() == [f"out/{name}.h5ad".encode() for name in "abc"]
        assert b"slides: 2 done, 0 failed, 1 left" in text
