"""Predict slides in this process, as tests of one slide do."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import SLIDE

from stpredict.batch.jobs import find_jobs
from stpredict.batch.slides import predict_slides
from stpredict.engines.engine import EngineRequest
from stpredict.prediction.job import Job
from stpredict.prediction.one_slide import Request
from stpredict.prediction.shards import Shards

EAGER = EngineRequest("eager", "fp32", batch_size=16)


def predict(model, out: Path, slides=(SLIDE,), engine=EAGER, report=print, **request):
    def nothing(_job: Job, done: int, total: int) -> None:
        assert done <= total

    jobs = find_jobs([str(slide) for slide in slides], out, report)
    return list(predict_slides(jobs, model, Request(engine=engine, **request), report, nothing))


class Killed(BaseException):
    pass


def interrupt(model, out, monkeypatch, **request):
    """Begin a prediction, and end it before its first shard is written."""

    def die(*_args):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Shards, "write", die)
        with pytest.raises(Killed):
            predict(model, out, **request)
