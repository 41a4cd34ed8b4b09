"""Calls whose standard streams are closed, full or read by nobody, and names in all bytes and locales."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from calls import LIGHT, PROGRAM
from conftest import SLIDE
from results_to_draw import made_up
from slides_to_try import tiff_pyramid

from stpredict.result.file import read_result
from stpredict.slides.lattice import lattice
from stpredict.slides.slide import Bounds, Mpp

pytestmark = [
    pytest.mark.usefixtures("in_a_folder_of_its_own"),
    pytest.mark.skipif(os.name == "nt", reason="a shell closes the streams"),
]

SPOTS = lattice(Bounds(0, 0, 600, 400), Mpp(0.5, 0.5), 30.0)
#: A locale without UTF-8, which Python is kept from making the best of.
BARE = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
RESULT = "CMU-1-Small-Region.h5ad"


def call(how: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Call the program in a shell that redirects its streams, as `how` says."""
    shell = ["bash", "-c", f'"$@" {how}', "bash", *PROGRAM, *arguments]
    return subprocess.run([*map(os.fsencode, shell)], capture_output=True, timeout=300, env=os.environ | environment)


@pytest.fixture
def predict(quick_model_path: Path) -> list[object]:
    return ["predict", SLIDE, "-m", quick_model_path, "--genes", "GNAS", *LIGHT]


@pytest.mark.parametrize("closed", ["2>&-", "1>&-", "<&- >&- 2>&-"])
def test_a_prediction_whose_streams_are_closed(predict, closed):
    done = call(closed, *predict)
    assert done.returncode == 0, done
    assert np.isfinite(read_result(Path(RESULT)).expression("GNAS")).all()
    assert done.stdout == (f"{RESULT}\n".encode() if closed == "2>&-" else b"")


def test_a_full_disk_behind_a_stream(predict):
    """The work is done; that what it says could not be written is an error only where it is what was asked for."""
    assert call("2>/dev/full", *predict).returncode == 0
    done = call(">/dev/full", *predict)
    assert done.returncode == 1
    assert done.stderr.endswith(b"stpredict: standard output: cannot be written (No space left on device).\n")
    assert b"up to date" in done.stderr
    assert Path(RESULT).exists()
    made_up(Path("a.h5ad"), SPOTS, np.ones((len(SPOTS), 2)))
    for command in (["summary", "a.h5ad"], ["models", "list"], ["render", "a.h5ad", "--style", "csv"]):
        assert call(">/dev/full", *command).returncode == 1


def test_a_reader_that_goes_ends_no_prediction(predict, region):
    for name in ("a.tif", "b.tif"):
        tiff_pyramid(Path(name), region[1000:1800, 600:1400], (0.5, 0.5))
    predict[1:2] = ["a.tif", "b.tif"]
    done = call('| true; exit "${PIPESTATUS[0]}"', *predict)
    assert done.returncode == 0, done
    assert Path("a.h5ad").exists()
    assert Path("b.h5ad").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["summary", "a.h5ad"], ["render", "a.h5ad", "--style", "csv"], ["models", "list"], ["clean"], ["--version"],
        ["tile", SLIDE], ["evaluate", "a.h5ad", "none"],
    ],
)  # fmt: skip
def test_all_commands_without_streams(command):
    made_up(Path("a.h5ad"), SPOTS, np.ones((len(SPOTS), 2)))
    expected = 2 if command[0] == "evaluate" else 0
    for how in ("<&- >&- 2>&-", '| true; exit "${PIPESTATUS[0]}"'):
        done = call(how, *command, *(["--overwrite"] if command[0] in ("render", "tile") else []))
        assert done.returncode == expected, (how, done)
        assert b"Traceback" not in done.stderr
        assert b"unexpected" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize("environment", [{}, BARE], ids=["UTF-8", "ASCII"])
def test_names_in_all_bytes(predict, environment):
    names = ["gr\u00f6\u00dfe \u7d44\u7e54.svs".encode(), b"latin\xe9.svs", b"two\nlines.svs"]
    for name in names:
        shutil.copy(SLIDE, os.fsdecode(name))
    done = call("", *predict[:1], *map(os.fsdecode, names), *predict[2:], **environment)
    assert done.returncode == 0, done
    results = ["gr\u00f6\u00dfe \u7d44\u7e54.h5ad", "latin\ufffd.h5ad", "two\nlines.h5ad"]
    assert done.stdout == "".join(f"{result}\n" for result in results).encode()
    drawn = call("", "render", *results, "--style", "csv", "--genes", "GNAS", **environment)
    assert drawn.returncode == 0, drawn
    assert Path("gr\u00f6\u00dfe \u7d44\u7e54.expression.csv").exists()
    table = call("", "summary", *results, **environment)
    assert table.returncode == 0, table
    assert "gr\u00f6\u00dfe \u7d44\u7e54" in table.stdout.decode()
    for command in (["models", "show", "dictionary-her2st"], ["tile", os.fsdecode(names[0])]):
        assert call("", *command, **environment).returncode == 0
