from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SLIDE
from predicting import EAGER, Killed, interrupt, predict
from same_results import assert_same

from stpredict.batch.jobs import find_jobs
from stpredict.batch.shared_slide import help_slide
from stpredict.batch.slides import Warm
from stpredict.batch.spare_workers import MAX_LOST, Helpers, slide_for
from stpredict.errors import ResultError
from stpredict.prediction import shards
from stpredict.prediction.job import Job
from stpredict.prediction.pipeline import finish_shards
from stpredict.prediction.request import Request
from stpredict.prediction.shards import Shards, join_shards, open_shards, own_files, pin_engine

ASKED = {"genes": ("GNAS",), "pitch_um": 50.0}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_SPOTS", 32)


@pytest.fixture(scope="module")
def whole(tiny_model, tmp_path_factory) -> Path:
    """What one process makes of the slide, which has several shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_SPOTS", 32)
        (outcome,) = predict(tiny_model, tmp_path_factory.mktemp("whole"), **ASKED)
    assert outcome.n_spots > 8 * 32
    return outcome.job.result


def help_with_it(model, out: Path, progress=lambda _done, _total: None, **request) -> None:
    (job,) = find_jobs([str(SLIDE)], out, print)
    help_slide(job, Warm(model), Request(engine=EAGER, **(request or ASKED)), progress)


def with_help(monkeypatch, after: int, help_now) -> list[tuple[str, int]]:
    """Have somebody help when so many shards are written; who wrote which is appended to what is returned."""
    write, written, helping = Shards.write, list[tuple[str, int]](), [False]

    def write_and_be_helped(self, shard, values):
        write(self, shard, values)
        written.append(("helper" if helping[0] else "owner", shard))
        if not helping[0] and len(written) == after:
            helping[0] = True
            help_now()
            helping[0] = False

    monkeypatch.setattr(Shards, "write", write_and_be_helped)
    return written


def test_a_slide_that_two_are_at_is_as_of_one(whole, tiny_model, tmp_path, monkeypatch):
    written = with_help(monkeypatch, 1, lambda: help_with_it(tiny_model, tmp_path))
    (outcome,) = predict(tiny_model, tmp_path, **ASKED)
    shares = [[shard for by, shard in written if by == who] for who in ("owner", "helper")]
    assert shares[0] == sorted(shares[0])
    assert shares[1] == sorted(shares[1], reverse=True)
    assert all(shares)
    assert len(written) == len({shard for _, shard in written})  # each once
    assert_same(outcome.job.result, whole)
    assert [path.name for path in tmp_path.iterdir()] == [whole.name]


def test_what_a_lost_helper_had_begun_is_done(whole, tiny_model, tmp_path, monkeypatch):
    def help_and_be_lost():
        def die(_done: int, _total: int) -> None:
            raise Killed

        with pytest.raises(Killed):
            help_with_it(tiny_model, tmp_path, die)
        assert list(tmp_path.glob("*.parts/*.claim"))

    written = with_help(monkeypatch, 1, help_and_be_lost)
    (outcome,) = predict(tiny_model, tmp_path, **ASKED)
    assert {by for by, _ in written} == {"owner"}
    assert_same(outcome.job.result, whole)
    assert [path.name for path in tmp_path.iterdir()] == [whole.name]


def test_an_owner_leaves_a_shard_that_its_helper_finishes_meanwhile(tmp_path):
    ours = open_shards(tmp_path / "a.h5ad.parts", np.arange(70), np.zeros((70, 2)), 1, {})
    pin_engine(ours, "eager", "fp32", None)
    values = np.zeros((32, 1 + len(shards.MEASURES)), np.float32)
    ours.write(0, values)
    begun, told = [], []

    def predict(wanted, progress):
        begun.append(wanted)
        progress(33, 70)
        ours.write(1, values)  # by its helper
        progress(34, 70)

    finish_shards(ours, {2}, predict, lambda *so_far: told.append(so_far))
    assert begun == [[1]]
    assert told == [(33, 70)]


def test_who_comes_late_or_with_other_settings_does_nothing(whole, tiny_model, tmp_path, monkeypatch):
    help_with_it(tiny_model, tmp_path)
    assert not list(tmp_path.iterdir())  # before it was begun
    help_with_it(tiny_model, whole.parent)
    assert [path.name for path in whole.parent.iterdir()] == [whole.name]
    interrupt(tiny_model, tmp_path, monkeypatch, **ASKED)
    before = sorted(tmp_path.rglob("*"))
    help_with_it(tiny_model, tmp_path, genes=("GNAS",), pitch_um=70.0)
    help_with_it(tiny_model, tmp_path, genes=("DDX5",), pitch_um=50.0)
    assert sorted(tmp_path.rglob("*")) == before


def test_shards_of_a_prediction_that_was_discarded_do_no_harm(tmp_path):
    """As a helper may still write when somebody has begun anew."""
    of = tmp_path / "a.h5ad.parts", np.arange(70), np.zeros((70, 2)), 1, {"pitch_um": 1}
    first = open_shards(*of)
    pin_engine(first, "eager", "fp32", None)
    claims = first.claimed(backwards=True)
    assert next(claims) == 2
    goes_on = open_shards(*of, overwrite_before=time.time() - 60)  # by a worker of the call that overwrites
    assert goes_on.run == first.run
    again = open_shards(*of, overwrite_before=time.time() + 1)
    assert not of[0].exists()
    values = np.zeros((6, 1 + len(shards.MEASURES)), np.float32)
    with pytest.raises(FileNotFoundError):
        first.write(2, values)
    assert not of[0].exists()
    pin_engine(again, "eager", "fp32", None)
    first.write(2, values)
    assert again.missing() == [0, 1, 2]
    with pytest.raises(FileNotFoundError):
        next(claims)
    assert list(again.claimed()) == [0, 1, 2]
    again.remove()
    assert not of[0].exists()


def test_a_manifest_leads_to_no_other_folder(tmp_path):
    of = tmp_path / "a.h5ad.parts", np.arange(70), np.zeros((70, 2)), 1, {}
    pin_engine(replace(open_shards(*of), run="/../../0"), "eager", "fp32", None)
    assert join_shards(*of) is None
    with pytest.raises(ResultError, match="another version"):
        open_shards(*of)


def test_shards_go_even_while_somebody_writes(tmp_path, monkeypatch):
    of = tmp_path / "a.h5ad.parts", np.arange(70), np.zeros((70, 2)), 1, {}
    ours = open_shards(*of)
    pin_engine(ours, "eager", "fp32", None)
    listed = []

    def and_then_another_is_written(folder: Path):
        found = own_files(folder)
        if len(listed) < 2:
            listed.append((folder / f"00000{len(listed)}-{ours.run}.npy").touch())
        return found

    monkeypatch.setattr(shards, "own_files", and_then_another_is_written)
    ours.remove()
    assert not list(tmp_path.iterdir())


def test_workers_help_where_most_is_left_and_only_if_it_is_worth_it():
    small, large, larger = (Job(Path(name), Path(f"{name}.h5ad")) for name in ("small", "large", "larger"))
    helpers = Helpers(left={small: 2000, large: 10_000, larger: 12_500})
    assert slide_for(helpers, "w", [small]) is None
    assert slide_for(helpers, "w", [small, large, larger]) == larger
    helpers.asked.add((larger, "w"))
    assert slide_for(helpers, "w", [small, large, larger]) == large
    helpers.lost[larger] = MAX_LOST
    assert slide_for(helpers, "v", [small, large, larger]) == large
    assert slide_for(helpers, "v", [small, larger]) is None
    assert slide_for(helpers, "v", []) is None
