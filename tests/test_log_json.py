from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from calls import LIGHT, PROGRAM, run
from conftest import SLIDE
from slides_to_try import tiff_pyramid

import stpredict.batch.progress as progress
from stpredict.commands import predict
from stpredict.console import json_lines

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

OF_A_SLIDE = {"slide", "output"}
#: What docs/predict.md says that each event holds; a message may stand beside it.
SCHEMA = {
    "note": set(),
    "warning": set(),
    "slide-started": {*OF_A_SLIDE, "spots"},
    "progress": {"slide", "done", "spots"},
    "slide-finished": {*OF_A_SLIDE, "spots", "seconds"},
    "slide-skipped": OF_A_SLIDE,
    "slide-left": OF_A_SLIDE,
    "slide-failed": OF_A_SLIDE,
    "pictures-failed": OF_A_SLIDE,
    "slide-doubtful": OF_A_SLIDE,
    "summary": {
        "slides", "finished", "skipped", "left", "failed", "doubtful", "pictures_failed", "seconds", "exit_code",
    },
    "error": {"exit_code"},
}  # fmt: skip


def events(stderr: str) -> list[dict]:
    """The events of a log, each of which must be one line of JSON and hold what the schema says."""
    found = [json.loads(line) for line in stderr.splitlines()]
    for event in found:
        assert datetime.fromisoformat(event["time"]).utcoffset() == timedelta(0)
        assert SCHEMA[event["event"]] <= event.keys(), event
    return found


def of_kind(kind: str, stderr: str) -> list[dict]:
    return [event for event in events(stderr) if event["event"] == kind]


@pytest.fixture
def slides(region) -> Path:
    """Four slides, one of which is damaged, another one already predicted by some other call."""
    Path("in").mkdir()
    for name in "abc":
        tiff_pyramid(Path(f"in/{name}.tif"), region[1000:1800, 600:1400], (0.5, 0.5))
    Path("in/damaged.svs").write_bytes(SLIDE.read_bytes()[:5000])
    lease = Path("out/b.h5ad.lease")
    lease.parent.mkdir()
    lease.write_text(json.dumps({"token": "x", "where": "another machine", "pid": 1}))
    return Path("in")


def test_what_becomes_of_each_slide_is_an_event(slides, tiny_model_path):
    asked = ("-m", tiny_model_path, "--genes", "GNAS", "--pitch", "50", "-o", "out", "--log-json")
    assert run("predict", "in/c.tif", *asked).exit_code == 0
    done = run("predict", slides, *asked)
    assert done.exit_code == 1
    assert done.stdout.split() == ["out/a.h5ad", "out/c.h5ad"]
    said = events(done.stderr)
    assert {event["slide"]: event["event"] for event in said if "slide" in event and event["event"] != "warning"} == {
        "in/a.tif": "slide-finished",
        "in/b.tif": "slide-left",
        "in/c.tif": "slide-skipped",
        "in/damaged.svs": "slide-failed",
    }
    (started,), (finished,) = (of_kind(f"slide-{what}", done.stderr) for what in ("started", "finished"))
    assert started["output"] == finished["output"] == "out/a.h5ad"
    assert started["spots"] == finished["spots"] > 0
    assert finished["seconds"] > 0
    (failed,) = of_kind("slide-failed", done.stderr)
    assert failed["message"].startswith("damaged.svs: not a slide, or a damaged one")
    assert said[-1]["event"] == "summary"
    counts = {key: said[-1][key] for key in ("slides", "finished", "skipped", "left", "failed", "pictures_failed")}
    assert counts == {"slides": 4, "finished": 1, "skipped": 1, "left": 1, "failed": 1, "pictures_failed": 0}
    assert said[-1]["exit_code"] == 1
    planned = run("predict", slides, *asked, "--dry-run")
    assert of_kind("summary", planned.stderr)[0]["skipped"] == 2


def test_pictures_that_fail_are_an_event(slides, tiny_model_path, monkeypatch):
    def refuse(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stpredict.commands.predict.render_one", refuse)
    asked = ("-m", tiny_model_path, "--genes", "GNAS", "--pitch", "100", "--render", "--log-json")
    done = run("predict", slides / "a.tif", *asked)
    assert done.exit_code == 1
    assert [event["event"] for event in events(done.stderr)][-3:] == ["slide-finished", "pictures-failed", "summary"]
    assert events(done.stderr)[-1]["pictures_failed"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([SLIDE, "--no-such-option"], 2, "No such option"),
        ([SLIDE, "--batch-size", "many"], 2, "--batch-size"),
        ([], 2, "Missing argument"),
        (["none.svs"], 2, "no such file"),
        ([SLIDE, "--genes", "GNASS"], 2, "nearest: GNAS"),
        ([SLIDE, "--layout", "round"], 2, "square, hex"),
    ],
)
def test_a_call_that_could_not_work_ends_in_one_error(tiny_model_path, arguments, code, says):
    done = run("predict", "--log-json", "-m", tiny_model_path, *arguments)
    assert done.exit_code == code
    *_, last = events(done.stderr)
    assert (last["event"], last["exit_code"]) == ("error", code)
    assert says in last["message"]


def test_an_unexpected_error_and_what_libraries_warn_of_are_events(tiny_model_path, monkeypatch):
    def fail(*_args):
        warnings.warn("this is old", DeprecationWarning, stacklevel=1)
        logging.getLogger("library").warning("odd %s", "tags")
        raise RuntimeError("all is lost")

    monkeypatch.setattr(predict, "find_jobs", fail)
    monkeypatch.setenv("STPREDICT_DEBUG", "")  # which --debug sets, and is undone with this
    asked = ("predict", SLIDE, "-m", tiny_model_path, "--log-json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        done = run(*asked)
        debugged = run("--debug", *asked)
    assert done.exit_code == debugged.exit_code == 1
    old, odd, lost = events(done.stderr)
    assert (old["event"], old["message"]) == ("warning", "DeprecationWarning: this is old")
    assert (odd["event"], odd["message"]) == ("warning", "odd tags")
    assert lost["message"] == "unexpected RuntimeError: all is lost (stpredict --debug says where)."
    assert "in fail" in events(debugged.stderr)[-1]["traceback"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_text_are_told_as_text(slides, tiny_model_path):
    odd = os.fsdecode(b'sl\xff"i\x1bde.tif')
    shutil.copy(slides / "a.tif", odd)
    done = run("predict", odd, "-m", tiny_model_path, "--genes", "GNAS", "--pitch", "100", "--log-json")
    assert done.exit_code == 0, done.output
    assert of_kind("slide-finished", done.stderr)[0]["slide"] == 'sl?"i\x1bde.tif'


def test_no_bar_is_drawn_among_the_events(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with json_lines(True), progress.watching(2) as watch:
        watch.progress("a.svs", 0, 0)
        watch.progress("a.svs", 3, 9)
    *_, event = events(capsys.readouterr().err)
    assert (event["event"], event["slide"], event["done"], event["spots"]) == ("progress", "a.svs", 3, 9)


def test_ctrl_c_is_the_last_event(quick_model_path):
    call = [*PROGRAM, "predict", SLIDE, "-m", quick_model_path, "--pitch", "5", *LIGHT]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen([*call, "--log-json"], stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        deadline = time.monotonic() + 120
        while not list(Path().glob("*.parts/0*.npy")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    *_, last = events(errors)
    assert (last["event"], last["exit_code"]) == ("error", 130)
    assert "interrupted" in last["message"]
