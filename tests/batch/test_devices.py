"""One call on several devices: a process for each, here all on the CPU, as which device it is makes no difference."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from calls import run
from same_results import assert_same
from slides_to_try import tiff_pyramid

from stpredict.batch.devices import predict_on_devices, work_on
from stpredict.batch.jobs import find_jobs
from stpredict.batch.processes import Work
from stpredict.engines.engine import EngineRequest
from stpredict.errors import SlideError, UsageError
from stpredict.model.file import load_model
from stpredict.prediction.request import Request

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

EAGER = ("--engine", "eager", "--precision", "fp32", "--threads", "1", "--genes", "GNAS", "--min-tissue", "0")
PITCH_UM = 5.0
LAST = "000005"


@pytest.fixture(scope="module")
def slides(quick_model_path, tmp_path_factory, region) -> tuple[list[str], list[Path]]:
    """A slide of many shards and a small one, and what one process makes of them."""
    folder = tmp_path_factory.mktemp("slides")
    for name, px in (("giant", 780), ("small", 150)):
        tiff_pyramid(folder / f"{name}.tif", region[1200 : 1200 + px, 900 : 900 + px], (0.5, 0.5), levels=1)
    names = [str(folder / f"{name}.tif") for name in ("giant", "small")]
    done = run("predict", *names, "-m", quick_model_path, *EAGER, "--pitch", PITCH_UM, "-o", folder / "alone")
    assert done.exit_code == 0, done.output
    return names, [folder / f"alone/{name}.h5ad" for name in ("giant", "small")]


def predict(quick_model_path: Path, slides: list[str], progress=lambda *_: None):
    model = load_model(quick_model_path)
    jobs = find_jobs(slides, Path("out"), print)
    Path("out").mkdir()
    engine = EngineRequest("eager", "fp32", threads=2)
    request = Request(genes=("GNAS",), pitch_um=PITCH_UM, min_tissue=0.0, engine=engine)
    work = Work(quick_model_path, model.sha256, request, len(jobs))
    return list(predict_on_devices(jobs, work, ["cpu", "cpu"], progress))


def shards_of_the_giant() -> list[str]:
    return sorted(path.name[:6] for path in Path("out/giant.h5ad.parts").glob("0*.npy"))


def resume_when_helped(pid: int, helped: list[bool]) -> None:
    """Let a process that was stopped go on once somebody else has written the last shard of its slide."""
    deadline = time.monotonic() + 400
    while LAST not in shards_of_the_giant() and time.monotonic() < deadline:
        time.sleep(0.05)
    helped.append(LAST in shards_of_the_giant())
    os.kill(pid, signal.SIGCONT)


def test_slides_of_one_call_go_to_all_devices_and_who_has_none_helps(quick_model_path, slides):
    names, alone = slides
    helped: list[bool] = []
    waiting: list[threading.Thread] = []

    def progress(job, done, _total):
        if done and job.result.stem == "giant" and not waiting:
            pid = int(json.loads(Path("out/giant.h5ad.lease").read_text())["pid"])
            os.kill(pid, signal.SIGSTOP)
            waiting.append(threading.Thread(target=resume_when_helped, args=(pid, helped)))
            waiting[0].start()

    outcomes = predict(quick_model_path, names, progress)
    assert sorted(outcome.job.result.stem for outcome in outcomes) == ["giant", "small"]
    assert {outcome.status for outcome in outcomes} == {"done"}
    for outcome in outcomes:
        assert_same(outcome.job.result, next(path for path in alone if path.name == outcome.job.result.name))
    assert helped == [True]
    assert sorted(path.name for path in Path("out").iterdir()) == ["giant.h5ad", "small.h5ad"]


def test_a_slide_goes_on_where_its_process_was_killed(quick_model_path, slides):
    names, alone = slides
    killed = []

    def progress(_job, _done, _total):
        if not killed and shards_of_the_giant():
            killed.append(json.loads(Path("out/giant.h5ad.lease").read_text())["pid"])
            os.kill(killed[0], signal.SIGKILL)

    (outcome,) = predict(quick_model_path, names[:1], progress)
    assert killed
    assert outcome.status == "done"
    assert_same(outcome.job.result, alone[0])
    assert [path.name for path in Path("out").iterdir()] == ["giant.h5ad"]


def test_a_slide_that_fails_costs_only_itself(quick_model_path, slides, tmp_path):
    (tmp_path / "broken.tif").write_bytes(b"II*" * 40)
    outcomes = predict(quick_model_path, [str(tmp_path / "broken.tif"), slides[0][1]])
    assert {outcome.job.result.stem: outcome.status for outcome in outcomes} == {"broken": "failed", "small": "done"}
    assert isinstance(next(outcome.error for outcome in outcomes if outcome.error), SlideError)


def test_a_lone_slide_that_the_user_has_to_mend_ends_the_call(quick_model_path):
    with pytest.raises(UsageError, match=r"none\.svs"):
        predict(quick_model_path, ["none.svs"])


def test_each_device_has_its_share_of_threads_and_of_the_slides():
    work = Work(Path("model"), "", Request(engine=EngineRequest(device="cuda:0,cuda:1,cuda:2", threads=16)), 10)
    theirs = work_on("cuda:2", work, 3)
    assert (theirs.request.engine.device, theirs.request.engine.threads, theirs.n_slides) == ("cuda:2", 5, 4)


@pytest.mark.parametrize(
    ("device", "said"),
    [("cuda:1,cuda:1", "a GPU twice"), ("cpu,cpu", "choose auto"), ("cuda:0,cpu", "choose auto"), ("cuda,", "choose")],
)
def test_what_no_call_can_do_is_refused(device, said, quick_model_path, slides):
    done = run("predict", slides[0][1], "-m", quick_model_path, "--device", device)
    assert done.exit_code == 2
    assert said in done.stderr


def test_several_devices_are_single_ones_each_with_all_else_the_same():
    request = EngineRequest("eager", "bf16", "cuda:0,cuda:3", 64, 8)
    assert request.on_each_device() == [EngineRequest("eager", "bf16", f"cuda:{n}", 64, 8) for n in (0, 3)]
    assert EngineRequest().on_each_device() == [EngineRequest()]
