from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from calls import PROGRAM, run
from clusters import local_cluster
from conftest import SLIDE
from killer_slide import write_killer_slide
from same_results import assert_same
from slides_to_try import tiff_pyramid

import stpredict
from stpredict.batch.processes import Work, model_of
from stpredict.errors import ModelFileError
from stpredict.prediction.request import Request

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

#: As one worker would without it, where there are two.
EAGER = ("--engine", "eager", "--threads", "1")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two workers in other folders, each of which could do several things at once."""
    with local_cluster(2, 3, tmp_path_factory.mktemp("workers")) as address:
        yield address


@pytest.fixture
def slides(region) -> Path:
    Path("in").mkdir()
    for name in "abcd":
        tiff_pyramid(Path(f"in/{name}.tif"), region[1000:1800, 600:1400], (0.5, 0.5))
    return Path("in")


def test_a_cluster_predicts_what_one_machine_does(slides, tiny_model_path, cluster):
    (slides / "damaged.svs").write_bytes(SLIDE.read_bytes()[:5000])
    Path("out").mkdir()
    Path("out/d.h5ad.lease").write_text(json.dumps({"token": "x", "where": "lost worker", "pid": 1}))
    os.utime("out/d.h5ad.lease", (time.time() - 115,) * 2)  # it lapses in five seconds
    asked = ("predict", slides, "-m", tiny_model_path, "--pitch", "50", *EAGER, "--log-json")
    spread = run(*asked, "-o", "out", "--cluster", cluster)
    assert spread.exit_code == 1, spread.output
    results = [f"out/{name}.h5ad" for name in "abcd"]
    assert sorted(spread.stdout.split()) == results
    events = [json.loads(line) for line in spread.stderr.splitlines()]
    for kind in ("slide-started", "slide-finished"):
        assert sorted(event["output"] for event in events if event["event"] == kind) == results
    (failed,) = (event for event in events if event["event"] == "slide-failed")
    assert failed["slide"] == "in/damaged.svs"
    assert failed["message"].startswith("damaged.svs: not a slide, or a damaged one")
    assert run(*asked, "-o", "alone").exit_code == 1
    for name in "abcd":
        assert_same(Path(f"out/{name}.h5ad"), Path(f"alone/{name}.h5ad"))
    again = run(*asked, "-o", "out", "--cluster", cluster)
    assert again.stderr.count("up to date") == 4


def test_strict_heeds_what_workers_wrote(slides, model_with_reference_path, region, cluster):
    tiff_pyramid(slides / "b.tif", np.ascontiguousarray(region[1000:1800, 600:1400, ::-1] // 2), (0.5, 0.5))
    asked = ("-m", model_with_reference_path, "--genes", "GNAS", *EAGER, "-o", "out", "--cluster", cluster, "--strict")
    for _ in range(2):  # the second time all is there
        done = run("predict", slides, *asked)
        assert done.exit_code == 1, done.output
        assert [line for line in done.stderr.splitlines() if "b.tif: --strict: " in line]
        assert len(done.stdout.split()) == 4


def test_the_slide_of_a_killed_worker_is_done_by_another(slides, quick_model_path, cluster):
    asked = ("-m", quick_model_path, *EAGER, "--pitch", "6", "--cluster", cluster)
    call = [*PROGRAM, "predict", slides, *asked, "-o", "out"]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 200
        while not list(Path("out/a.h5ad.parts").glob("0*.npy")) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(json.loads(Path("out/a.h5ad.lease").read_text())["pid"], signal.SIGKILL)
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert sorted(output.split()) == [f"out/{name}.h5ad" for name in "abcd"]
    assert not list(Path("out").glob("*.lease"))


def test_a_slide_that_ends_its_workers_fails_alone(slides, tiny_model_path, region, cluster):
    Path("dicom").mkdir()
    write_killer_slide(Path("dicom/killer.dcm"), region[1000:1800, 600:1400])
    asked = ("-m", tiny_model_path, *EAGER, "--genes", "GNAS", "-o", "out", "--cluster", cluster)
    done = run("predict", "dicom/killer.dcm", slides, *asked)
    assert done.exit_code == 1, done.output
    assert sorted(done.stdout.split()) == [f"out/{name}.h5ad" for name in "abcd"]
    assert "killer.dcm: each process that began it was lost with its worker, again and again;" in done.stderr
    assert "1 of 5 slides failed" in done.stderr


def test_workers_let_go_of_what_was_interrupted(slides, quick_model_path, cluster):
    asked = ("-m", quick_model_path, *EAGER, "--pitch", "1", "--cluster", cluster)  # many shards
    call = [*PROGRAM, "predict", slides, *asked, "-o", "out"]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        deadline = time.monotonic() + 200
        while not list(Path("out/a.h5ad.parts").glob("0*.npy")) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; the same command goes on where it stopped" in errors
    while list(Path("out").glob("*.lease")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not list(Path("out").glob("*.h5ad"))


def test_what_is_wrong_with_a_cluster_is_said_before_anything_is_predicted(
    slides, tiny_model_path, cluster, monkeypatch
):
    asked = ("predict", slides, "-m", tiny_model_path, "-o", "out")
    nobody = run(*asked, "--cluster", "tcp://127.0.0.1:9")
    assert nobody.exit_code == 2
    assert "no dask scheduler answers" in nobody.stderr
    for address in ("foo", "http://foo:1", "tls://127.0.0.1:9"):
        malformed = subprocess.run([*PROGRAM, *asked, "--cluster", address], capture_output=True, text=True)
        assert malformed.returncode == 2
        (line,) = malformed.stderr.splitlines()[-1:]
        assert line == f"stpredict: --cluster {address}: no dask scheduler answers there."
    planned = run(*asked, "--cluster", cluster, "--dry-run")
    assert planned.exit_code == 2
    with monkeypatch.context() as patch:
        patch.setattr(stpredict, "__version__", "9.9")
        other = run(*asked, "--cluster", cluster)
    assert other.exit_code == 2
    assert f"stpredict 9.9 is needed on each worker, one has {stpredict.__version__}" in other.stderr
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "stpredict.batch.cluster")
        patch.setitem(sys.modules, "distributed", None)
        absent = run(*asked, "--cluster", cluster)
    assert absent.exit_code == 2
    assert 'pip install ".[cluster]"' in absent.stderr
    assert not list(Path("out").glob("*.h5ad"))


def test_a_file_that_only_some_machines_see_is_named(tiny_model, cluster):
    work = Work(tiny_model.path, "of another file", Request(), 1)
    with pytest.raises(ModelFileError, match="not the model of this name"):
        model_of(work)
    asked = ("-m", tiny_model.path, *EAGER, "--pitch", "400", "-o", "out", "--cluster", cluster)
    done = run("predict", "gone.tif", SLIDE, *asked)
    assert done.exit_code == 1
    assert "gone.tif: no such file" in done.stderr
    assert "need paths that are the same on all machines" in done.stderr
