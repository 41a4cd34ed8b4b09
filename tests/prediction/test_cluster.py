from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import dask
import pytest
from conftest import SLIDE, make_model
from distributed import Client, LocalCluster
from killer_slide import write_killer_slide
from same_results import assert_same
from slides_to_try import tiff_pyramid
from typer.testing import CliRunner

import stpredict
from stpredict.cli import app
from stpredict.errors import ModelFileError
from stpredict.prediction.processes import Work, model_of
from stpredict.prediction.request import Request

PROGRAM = [sys.executable, "-m", "stpredict"]
#: As one worker would without it, where there are two.
EAGER = ("--engine", "eager", "--threads", "1")


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a scheduler with two workers in other folders, each of which could do several things at once."""
    folder = tmp_path_factory.mktemp("workers")
    # A slide that loses its worker once is tried by itself; four times would take a test too long.
    settings = {"distributed.scheduler.allowed-failures": 0, "temporary-directory": str(folder)}
    with (
        dask.config.set(settings),
        LocalCluster(n_workers=2, threads_per_worker=3, dashboard_address=":0", memory_limit=None) as cluster,
    ):
        yield cluster.scheduler_address


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


def test_the_slide_of_a_killed_worker_is_done_by_another(slides, tmp_path, cluster):
    model = make_model(tmp_path / "slow.safetensors")
    call = [*PROGRAM, "predict", slides, "-m", model, *EAGER, "--pitch", "14", "-o", "out", "--cluster", cluster]
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
    assert "killer.dcm: each process that was at it was lost with its worker, again and again;" in done.stderr
    assert "1 of 5 slides failed" in done.stderr


@pytest.fixture(scope="module")
def giant(tmp_path_factory, region) -> tuple[Path, Path, Path]:
    """A slide of several shards, a model for it, and what one process makes of it."""
    folder = tmp_path_factory.mktemp("giant")
    tiff_pyramid(folder / "giant.tif", region[1000:1800, 600:1400], (0.5, 0.5))
    model = make_model(folder / "slow.safetensors")
    alone = run("predict", folder / "giant.tif", "-m", model, *EAGER, "--pitch", "4.5", "-o", folder / "alone")
    assert alone.exit_code == 0, alone.output
    return folder / "giant.tif", model, folder / "alone/giant.h5ad"


@contextmanager
def both_workers_at(slide: Path, model: Path, cluster: str) -> Iterator[subprocess.Popen[str]]:
    """A call, once each of two workers has written a shard of its slide, one from the front, one from the end.

    A lone worker would come to the last shard when it has written all others.
    """
    call = [*PROGRAM, "predict", slide, "-m", model, *EAGER, "--pitch", "4.5", "-o", "out", "--cluster", cluster]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(call, stdout=-1, stderr=-1, text=True, preexec_fn=heed) as process:
        deadline = time.monotonic() + 200
        while not {"000000", "000006"} <= (written := shards_of("out/giant.h5ad")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert len(written) < 6
        yield process


def shards_of(result: str) -> set[str]:
    return {path.name[:6] for path in Path(f"{result}.parts").glob("0*.npy")}


def wait_for_workers(cluster: str) -> None:
    """Until none is at anything."""
    deadline = time.monotonic() + 60
    with Client(cluster, set_as_default=False) as client:
        while any(client.run(lambda: sys.modules["stpredict.prediction.worker"]._one_at_a_time.locked()).values()):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_workers_without_a_slide_help_with_that_of_another(giant, cluster):
    slide, model, alone = giant
    with both_workers_at(slide, model, cluster) as process:
        output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert output == "out/giant.h5ad\n"
    assert not [line for line in errors.splitlines() if "help" in line or errors.count(line) > 1]
    assert_same(Path("out/giant.h5ad"), alone)
    assert [path.name for path in Path("out").iterdir()] == ["giant.h5ad"]


@pytest.mark.parametrize("killed", ["owner", "helper"])
def test_a_slide_survives_the_loss_of_either_worker_that_is_at_it(giant, cluster, killed):
    slide, model, alone = giant
    with both_workers_at(slide, model, cluster) as process, Client(cluster, set_as_default=False) as client:
        owner = json.loads(Path("out/giant.h5ad.lease").read_text())["pid"]
        pids = set(client.run(os.getpid).values())
        assert owner in pids
        os.kill(owner if killed == "owner" else (pids - {owner}).pop(), signal.SIGKILL)
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert output == "out/giant.h5ad\n"
    assert ("a process that was at it was lost" in errors) == (killed == "owner")
    assert_same(Path("out/giant.h5ad"), alone)
    assert [path.name for path in Path("out").iterdir()] == ["giant.h5ad"]


def test_what_helpers_of_an_interrupted_call_leave_is_no_obstacle(giant, cluster):
    slide, model, alone = giant
    asked = ("predict", slide, "-m", model, *EAGER, "-o", "out")
    with both_workers_at(slide, model, cluster) as process:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    shutil.copytree("out", "later")
    anew = run(*asked, "--pitch", "50", "--overwrite")  # at once, while helpers may still write
    assert anew.exit_code == 0, anew.output
    wait_for_workers(cluster)
    assert [path.name for path in Path("out").iterdir()] == ["giant.h5ad"]
    Path("later/giant.h5ad.lease").unlink(missing_ok=True)
    gone_on = run(*asked[:-1], "later", "--pitch", "4.5")
    assert gone_on.exit_code == 0, gone_on.output
    assert_same(Path("later/giant.h5ad"), alone)
    assert [path.name for path in Path("later").iterdir()] == ["giant.h5ad"]


def test_workers_let_go_of_what_was_interrupted(slides, tmp_path, cluster):
    model = make_model(tmp_path / "slow.safetensors")
    call = [*PROGRAM, "predict", slides, "-m", model, *EAGER, "--pitch", "8", "-o", "out", "--cluster", cluster]
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
        patch.delitem(sys.modules, "stpredict.prediction.cluster")
        patch.setitem(sys.modules, "distributed", None)
        absent = run(*asked, "--cluster", cluster)
    assert absent.exit_code == 2
    assert 'pip install ".[cluster]"' in absent.stderr
    assert not list(Path("out").glob("*.h5ad"))


def test_a_file_that_only_some_machines_see_is_named(tiny_model, cluster):
    work = Work(tiny_model.path, "of another file", Request(), 1)
    with pytest.raises(ModelFileError, match="another model of this name"):
        model_of(work)
    done = run("predict", "gone.tif", SLIDE, "-m", tiny_model.path, *EAGER, "-o", "out", "--cluster", cluster)
    assert done.exit_code == 1
    assert "gone.tif: no such file" in done.stderr
    assert "need paths that are the same on all machines" in done.stderr
