"""A comparison that is killed goes on, and one that is shared by workers is done once."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from calls import PROGRAM, run
from distributed import LocalCluster
from patch_networks import PATCH_PX

from stpredict.data.cutting import write_tiles
from stpredict.data.dataset import read_dataset

pytestmark = pytest.mark.usefixtures("few_windows")
OPTIONS = ["--arch", "dictionary", "--seeds", "2", "--threads", "1", "--min-depth", "1", "--panel-size", "4"]
JOBS = 6  # of two parts: the baselines once, and two seeds


@pytest.fixture(scope="module")
def tiles(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiles") / "small.tiles.h5"
    sections = [section for section in read_dataset(dataset) if section.name != "A2"]
    write_tiles(sections, path, patch_px=PATCH_PX, mpp=2, threads=1, report=print)
    return path


def test_a_scheduler_that_is_not_there_is_told_before_anything_is_made(tiles: Path, tmp_path: Path):
    done = run("compare", tiles, "-o", tmp_path / "out", *OPTIONS, "--cluster", "tcp://127.0.0.1:9")
    assert done.exit_code == 2
    assert "no dask scheduler answers there" in done.output
    assert not (tmp_path / "out").exists()


def finished(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (out / "jobs").rglob("scores.json")}


def test_a_killed_call_goes_on_and_does_nothing_twice(tiles: Path, tmp_path: Path):
    out = tmp_path / "out"
    with subprocess.Popen([*PROGRAM, "compare", str(tiles), "-o", str(out), *OPTIONS], stderr=subprocess.PIPE) as call:
        deadline = time.monotonic() + 300
        while not finished(out) and call.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        call.send_signal(signal.SIGKILL)
    before = finished(out)
    assert 1 <= len(before) <= JOBS
    assert not (out / "systems.csv").exists()
    done = run("compare", tiles, "-o", out, *OPTIONS)
    assert done.exit_code == 0, done.output
    after = finished(out)
    assert len(after) == JOBS
    assert {path: after[path] for path in before} == before


def test_workers_of_a_scheduler_do_each_job_once(tiles: Path, tmp_path: Path):
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster:
        done = run("compare", tiles, "-o", tmp_path / "out", *OPTIONS, "--cluster", cluster.scheduler_address)
    assert done.exit_code == 0, done.output
    assert len(finished(tmp_path / "out")) == JOBS
    assert done.output.count(": on ") == JOBS
    found = json.loads((tmp_path / "out/results.json").read_text())
    (row,) = [row for row in found["rows"] if row["name"] == "dictionary"]
    assert row["seeds"] == 2
    assert row["reason"] is None


def test_the_job_of_a_lost_worker_is_given_to_another(tiles: Path, tmp_path: Path):
    """TRIPLEX, which cannot be trained on a tiles file, costs no time."""
    out = tmp_path / "out"
    lease = out / "jobs/baselines/part-1-seed-0.lease"
    options = ["--arch", "triplex", "--seeds", "1", "--folds", "none", "--hold-out", "B", *OPTIONS[4:]]
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster:

        def lose_one() -> None:
            while not lease.exists():
                time.sleep(0.01)
            at_work = next(worker for worker in cluster.workers.values() if worker.state.executing_count)
            cluster.sync(at_work.close, executor_wait=False)

        with ThreadPoolExecutor(1) as beside:
            lost = beside.submit(lose_one)
            done = run("compare", tiles, "-o", out, *options, "--cluster", cluster.scheduler_address)
            lost.result(timeout=60)
    assert done.exit_code == 1, done.output  # triplex has no scores
    assert "its worker was lost; another one goes on with it" in done.output
    assert [path.parent.parent.name for path in finished(out)] == ["baselines"]
