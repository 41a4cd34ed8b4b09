from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import SLIDE
from predicting import EAGER, predict

from stpredict.batch.jobs import find_jobs
from stpredict.batch.slides import predict_slides
from stpredict.prediction import leases
from stpredict.prediction.job import Job
from stpredict.prediction.leases import take_lease
from stpredict.prediction.request import Request

HOLD = "import sys,time\nfrom pathlib import Path\nfrom stpredict.prediction.leases import take_lease\n"
HOLD += "print(take_lease(Path(sys.argv[1])) is not None, flush=True)\ntime.sleep(60)"


def test_only_one_holds_a_lease_and_it_can_be_had_again(tmp_path):
    path = tmp_path / "slide.h5ad.lease"
    lease = take_lease(path)
    assert lease is not None
    assert take_lease(path) is None
    lease.release()
    assert list(tmp_path.iterdir()) == []
    again = take_lease(path)
    assert again is not None
    again.release()


def test_of_many_at_once_one_gets_it(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        got = [lease for lease in pool.map(lambda _: take_lease(tmp_path / "l"), range(8)) if lease]
    assert len(got) == 1
    got[0].release()


def test_a_killed_owners_lease_is_taken_over_at_once(tmp_path):
    path = tmp_path / "slide.lease"
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "True\n"
        assert take_lease(path) is None
        owner.kill()
    lease = take_lease(path)
    assert lease is not None
    lease.release()


def elsewhere(path: Path, age_s: float) -> None:
    path.write_text(json.dumps({"token": "theirs", "where": "another machine", "pid": 1}))
    os.utime(path, (time.time() - age_s,) * 2)


@pytest.mark.parametrize("ends", [KeyboardInterrupt, OSError])
def test_a_lease_is_whole_or_missing(tmp_path, monkeypatch, ends):
    """A process that ends while it makes one leaves none; a file system without hard links has leases, too."""
    path = tmp_path / "a.lease"

    def end(*_):
        raise ends

    monkeypatch.setattr("os.link", end)
    if ends is OSError:
        lease = take_lease(path)
        assert lease
        assert take_lease(path) is None
        lease.release()
    else:
        with pytest.raises(KeyboardInterrupt):
            take_lease(path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert take_lease(path)


def test_another_machines_lease_is_respected_until_it_lapses(tmp_path):
    path = tmp_path / "slide.lease"
    elsewhere(path, 60)
    assert take_lease(path) is None
    elsewhere(path, 121)
    lease = take_lease(path)
    assert lease is not None
    elsewhere(path, 0)  # someone took it over in turn
    lease.release()
    assert path.exists()


def test_a_lapsed_lease_that_many_want_goes_to_one(tmp_path):
    path = tmp_path / "slide.lease"
    elsewhere(path, 1000)
    with ThreadPoolExecutor(8) as pool:
        got = [lease for lease in pool.map(lambda _: take_lease(path), range(8)) if lease]
    assert len(got) == 1
    got[0].release()


def test_a_damaged_lease_lapses_in_time(tmp_path):
    path = tmp_path / "slide.lease"
    path.write_text("{")
    assert take_lease(path) is None
    os.utime(path, (time.time() - 500,) * 2)
    lease = take_lease(path)
    assert lease is not None
    lease.release()


def test_a_lease_that_was_taken_over_is_not_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_S", 0.02)
    path = tmp_path / "slide.lease"
    lease = take_lease(path)
    assert lease is not None
    elsewhere(path, 100)
    time.sleep(0.2)
    assert time.time() - path.stat().st_mtime > 90
    lease.release()
    assert path.exists()


def test_a_lease_names_no_machine(tmp_path):
    lease = take_lease(tmp_path / "slide.lease")
    assert lease is not None
    assert platform.node() not in (tmp_path / "slide.lease").read_text()
    lease.release()


def test_a_lease_is_renewed_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_S", 0.05)
    path = tmp_path / "slide.lease"
    lease = take_lease(path)
    assert lease is not None
    os.utime(path, (0, 0))
    deadline = time.monotonic() + 5
    while path.stat().st_mtime < 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert time.time() - path.stat().st_mtime < 10
    lease.release()
    with pytest.raises(FileNotFoundError):
        path.stat()


def test_a_call_that_slept_while_another_finished_its_slide_finds_the_result(quick_model, tmp_path):
    lease = tmp_path / "CMU-1-Small-Region.h5ad.lease"
    others = []

    def sleep(_job: Job, done: int, _total: int) -> None:
        if done and not others:
            os.utime(lease, (0, 0))
            others.extend(predict(quick_model, tmp_path, genes=("GNAS",), pitch_um=50.0))

    (job,) = find_jobs([str(SLIDE)], tmp_path, print)
    request = Request(engine=EAGER, genes=("GNAS",), pitch_um=50.0)
    (outcome,) = predict_slides([job], quick_model, request, print, sleep)
    assert [other.status for other in others] == ["done"]
    assert outcome.status == "up to date", outcome.error
    assert [path.name for path in tmp_path.iterdir()] == ["CMU-1-Small-Region.h5ad"]
