"""Two workers at one slide: what becomes of it, also where one is killed or the call ends."""

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

import pytest
from calls import PROGRAM, run
from clusters import local_cluster
from distributed import Client
from same_results import assert_same
from slides_to_try import tiff_pyramid
from test_cluster import EAGER

from stpredict.machine import leave_removed_folder
from stpredict.prediction.shards import SHARD_SPOTS
from stpredict.result.file import read_result

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

#: Of the giant's spots, and the last of its shards.
PITCH_UM, LAST = "2.5", 19


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with local_cluster(2, 3, tmp_path_factory.mktemp("workers")) as address:
        yield address


@pytest.fixture(scope="module")
def giant(quick_model_path, tmp_path_factory, region) -> tuple[Path, Path, Path]:
    """A slide of many shards, a model for it, and what one process makes of it."""
    folder = tmp_path_factory.mktemp("giant")
    tiff_pyramid(folder / "giant.tif", region[1000:1800, 600:1400], (0.5, 0.5))
    asked = ("-m", quick_model_path, *EAGER, "--pitch", PITCH_UM)
    alone = run("predict", folder / "giant.tif", *asked, "-o", folder / "alone")
    assert alone.exit_code == 0, alone.output
    assert (len(read_result(folder / "alone/giant.h5ad").spots) - 1) // SHARD_SPOTS == LAST
    return folder / "giant.tif", quick_model_path, folder / "alone/giant.h5ad"


@contextmanager
def both_workers_at(slide: Path, model: Path, cluster: str) -> Iterator[subprocess.Popen[str]]:
    """A call, once each of two workers has written a shard of its slide, one from the front, one from the end.

    A lone worker would come to the last shard when it has written all others.
    """
    asked = ("-m", model, *EAGER, "--pitch", PITCH_UM, "--cluster", cluster)
    call = [*PROGRAM, "predict", slide, *asked, "-o", "out"]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    load = lambda: __import__("stpredict.engines.eager") and None  # noqa: E731 (it travels by value)
    with Client(cluster, set_as_default=False) as client:
        deadline = time.monotonic() + 200  # a worker that died is tried for half a minute
        # One that was killed is started again, in the folder of a test, which may have been removed since.
        # All import what they need, so that the second one is not late.
        while any(len(client.run(done, on_error="ignore")) < 2 for done in (leave_removed_folder, load)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    with subprocess.Popen(call, stdout=-1, stderr=-1, text=True, preexec_fn=heed) as process:
        deadline = time.monotonic() + 200
        while not {"000000", f"{LAST:06}"} <= (written := shards_of("out/giant.h5ad")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert len(written) < LAST
        yield process


def shards_of(result: str) -> set[str]:
    return {path.name[:6] for path in Path(f"{result}.parts").glob("0*.npy")}


def wait_for_workers(cluster: str) -> None:
    """Until none is at anything."""
    deadline = time.monotonic() + 60
    with Client(cluster, set_as_default=False) as client:
        while any(client.run(lambda: sys.modules["stpredict.batch.worker"]._one_at_a_time.locked()).values()):
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
        pids = set(client.run(os.getpid, on_error="ignore").values())  # one of an earlier test may just be going
        assert owner in pids
        os.kill(owner if killed == "owner" else (pids - {owner}).pop(), signal.SIGKILL)
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert output == "out/giant.h5ad\n"
    assert ("a process that was predicting it was lost" in errors) == (killed == "owner")
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
    gone_on = run(*asked[:-1], "later", "--pitch", PITCH_UM)
    assert gone_on.exit_code == 0, gone_on.output
    assert_same(Path("later/giant.h5ad"), alone)
    assert [path.name for path in Path("later").iterdir()] == ["giant.h5ad"]
