from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from calls import run
from patch_networks import PATCH_PX

from stpredict.errors import ResultError, UsageError
from stpredict.model.file import load_model
from stpredict.prediction.leases import take_lease
from stpredict.training.folds import Fold
from stpredict.training.jobs import demand_named
from stpredict.training.preparation import PREPARING, difference_of, discard

OPTIONS = "--arch dictionary --unlabelled 40 --threads 1 --min-depth 1 --folds section --allow-patient-leak"


def train(dataset: Path, out: Path, *more: str):
    return run("train", str(dataset), "-o", str(out), *OPTIONS.split(), *more)


@pytest.fixture(scope="module")
def undivided(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undivided") / "mine.safetensors"
    done = train(small_dataset, out)
    assert done.exit_code == 0, done.output
    return out


def test_parts_that_calls_share_make_the_model_of_one_call(small_dataset: Path, undivided: Path, tmp_path: Path):
    out = tmp_path / "mine.safetensors"
    folder = out.with_suffix(".run")
    for name in ("fold-3", "fold-1"):
        done = train(small_dataset, out, "--only", name)
        assert done.exit_code == 0, done.output
        assert done.stdout.strip() == str(folder / name / "model.safetensors")
    assert not out.exists()
    assert not (folder / "fold-2").exists()
    assert not (folder / "all").exists()
    before = {name: (folder / name / "scores.json").stat().st_mtime_ns for name in ("fold-1", "fold-3")}

    again = train(small_dataset, out, "--only", "fold-1,fold-3")
    assert again.exit_code == 0
    assert "hold out" not in again.stderr
    gathered = train(small_dataset, out)
    assert gathered.exit_code == 0, gathered.output
    assert gathered.stderr.count("hold out section") == 1
    assert {name: (folder / name / "scores.json").stat().st_mtime_ns for name in before} == before
    assert not list(folder.glob("*.lease"))
    whole, shared = load_model(undivided), load_model(out)
    assert shared.card["held_out"] == whole.card["held_out"]
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(tensor, shared.tensors[name])
    done = train(small_dataset, out, "--only", "fold-2")
    assert "up to date" in done.stderr


def test_a_part_that_another_call_is_at_is_left_to_that(small_dataset: Path, undivided: Path, tmp_path: Path):
    out = tmp_path / "mine.safetensors"
    folder = out.with_suffix(".run")
    assert train(small_dataset, out, "--only", "fold-1").exit_code == 0
    lease = take_lease(folder / "fold-2.lease")
    assert lease is not None
    left = train(small_dataset, out, "--only", "fold-2,fold-1")
    assert left.exit_code == 75
    assert "fold-2: another call is training it, so this one skips it" in left.stderr
    assert left.stdout.strip() == str(folder / "fold-1" / "model.safetensors")
    later = threading.Timer(3.0, lease.release)
    later.start()
    gathered = train(small_dataset, out)  # waits for fold-2, and then, as nothing came of it, does it
    later.join()
    assert gathered.exit_code == 0, gathered.output
    assert "fold-2: other calls are training here; waiting for them" in gathered.stderr
    assert gathered.stderr.index("hold out patient B1") < gathered.stderr.index("waiting for them")
    assert load_model(out).card["held_out"] == load_model(undivided).card["held_out"]


def test_calls_that_begin_together_prepare_the_run_once(small_dataset: Path, tmp_path: Path):
    out = tmp_path / "mine.safetensors"
    start = (
        "import sys; from stpredict.training import dictionary, preparation; dictionary.N_WINDOWS //= 10;"
        f"preparation.PATCH_PX = {PATCH_PX}; from stpredict.cli import app; app(sys.argv[1:])"
    )
    call = [sys.executable, "-c", start, "train", small_dataset, "-o", out, *OPTIONS.split()]
    calls = [
        subprocess.Popen(
            [*map(str, call), "--only", name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for name in ("fold-1", "fold-2")
    ]  # fmt: skip
    time.sleep(1.0)
    ends = [each.communicate(timeout=240) for each in calls]
    assert [each.returncode for each in calls] == [0, 0], ends
    assert sum("colour and texture features" in told for _, told in ends) == 1
    for name in ("fold-1", "fold-2"):
        assert json.loads((out.with_suffix(".run") / name / "scores.json").read_text())["name"] in ("A1", "A2")


def test_a_part_whose_call_was_killed_is_taken_over(small_dataset: Path, undivided: Path, tmp_path: Path):
    out = tmp_path / "mine.safetensors"
    folder = out.with_suffix(".run")
    start = (
        "import os, sys; from stpredict.training import crossvalidation, dictionary, preparation;"
        f"preparation.PATCH_PX = {PATCH_PX}; dictionary.N_WINDOWS //= 10;"
        "crossvalidation.express_held_out = lambda *_: os.kill(os.getpid(), 9);"
        "from stpredict.cli import app; app(sys.argv[1:])"
    )
    call = [sys.executable, "-c", start, "train", small_dataset, "-o", out, *OPTIONS.split(), "--only", "fold-2"]
    killed = subprocess.run([str(part) for part in call], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert (folder / "fold-2.lease").exists()
    again = train(small_dataset, out, "--only", "fold-2")
    assert again.exit_code == 0, again.output
    assert not list(folder.glob("*.lease"))
    scores = json.loads((folder / "fold-2" / "scores.json").read_text())
    whole = json.loads((undivided.with_suffix(".run") / "fold-2" / "scores.json").read_text())
    assert scores["rows"] == whole["rows"]


def test_parts_that_there_are_not_are_refused_before_anything_is_made(small_dataset: Path, tmp_path: Path):
    out = tmp_path / "mine.safetensors"
    refused = train(small_dataset, out, "--only", "fold-4")
    assert refused.exit_code == 2
    assert (
        "--only fold-4: no part of this call, which holds out fold-1 (A1), fold-2 (A2), fold-3 (B1)." in refused.stderr
    )
    assert not out.with_suffix(".run").exists()
    refused = train(small_dataset, out, "--only", "fold-1", "--overwrite")
    assert refused.exit_code == 2
    assert "--only" in refused.stderr
    with pytest.raises(UsageError, match="which holds out none"):
        demand_named(["fold-1"], [])
    demand_named(["fold-1"], [Fold("A", "patient", ["A1"])])


def test_a_new_beginning_waits_for_who_is_at_work_and_keeps_the_lease_that_it_holds(tmp_path: Path):
    preparing, other = take_lease(tmp_path / PREPARING), take_lease(tmp_path / "fold-1.lease")
    assert preparing is not None
    assert other is not None
    (tmp_path / "fold-1").mkdir()
    (tmp_path / "run.json").touch()
    with pytest.raises(ResultError, match="another call is at work there"):
        discard(tmp_path)
    other.release()
    discard(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [PREPARING]
    preparing.release()


def test_the_record_of_an_older_run_is_that_of_the_same_run():
    old = {"seed": 0, "panel": {"rule": "variance"}, "recipe": {"epochs": 3, "ours": "much"}}
    new = {"seed": 0, "panel": {"rule": "variance", "chosen": True}, "recipe": {"epochs": 3, "ours": "little"}}
    assert not difference_of(old, new)
    assert difference_of(old, new | {"seed": 1}) == "seed 0 instead of 1"
    assert difference_of(old, new | {"recipe": {"epochs": 4, "ours": "much"}})
    assert difference_of(new | {"panel": {"rule": "variance", "chosen": False}}, new)
