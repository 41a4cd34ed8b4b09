from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from calls import LIGHT, PROGRAM, run
from conftest import GENES, SLIDE, make_model
from slides_to_try import tiff_pyramid

from stpredict.batch.jobs import find_jobs
from stpredict.batch.slides import predict_slides
from stpredict.errors import UsageError
from stpredict.prediction.one_slide import Request
from stpredict.result.file import read_provenance, read_result

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


@pytest.fixture
def slides(tmp_path: Path, region: np.ndarray) -> Path:
    """Two slides of one name in two folders, a damaged one, and a file that is none."""
    folder = tmp_path / "slides"
    for name in ("one/a", "two/a"):
        (folder / name).parent.mkdir(parents=True)
        tiff_pyramid(folder / f"{name}.tif", region[1000:1800, 600:1400], (0.5, 0.5))
    (folder / "damaged.svs").write_bytes(SLIDE.read_bytes()[:5000])
    (folder / "notes.txt").touch()
    return folder


def test_a_folder_is_predicted_and_what_failed_is_listed(slides, tiny_model_path):
    done = run("predict", slides, "-m", tiny_model_path, "--genes", "GNAS", "-o", "out", "--pitch", "50")
    assert done.exit_code == 1
    assert done.stdout.split() == ["out/one/a.h5ad", "out/two/a.h5ad"]
    assert "passed over 1 file: .txt" in done.stderr
    assert "1 of 3 slides failed" in done.stderr
    with Path("out/failures.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["slide"] == str(slides / "damaged.svs")
    assert "damaged" in row["reason"]
    slide = Path("out/one", read_provenance(Path("out/one/a.h5ad"))["slide"]["path"])
    assert slide.resolve() == slides / "one" / "a.tif"
    assert not list(Path("out").rglob("*.lease"))
    shutil.copy(slides / "one" / "a.tif", slides / "damaged.svs")
    again = run("predict", slides, "-m", tiny_model_path, "--genes", "GNAS", "-o", "out", "--pitch", "50")
    assert again.exit_code == 0
    assert again.stderr.count("up to date") == 2
    assert not Path("out/failures.csv").exists()


def test_a_list_of_failures_is_kept_for_other_slides_and_other_files_are_left_alone(slides, tiny_model_path):
    some = ("-m", tiny_model_path, "--genes", "GNAS", "--pitch", "100")
    table = Path("failures.csv")
    table.write_text("slide,reason\nelsewhere.svs,was damaged\n")
    assert run("predict", slides, *some).exit_code == 1
    assert len(table.read_text().splitlines()) == 3
    shutil.copy(slides / "one" / "a.tif", slides / "damaged.svs")
    assert run("predict", slides, *some).exit_code == 0
    assert table.read_text() == "slide,reason\nelsewhere.svs,was damaged\n"
    table.write_text("what,why\n")
    assert run("predict", slides, *some).exit_code == 0
    assert table.read_text() == "what,why\n"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
def test_names_that_are_no_text_cost_nothing(slides, tiny_model_path, tmp_path):
    strange = os.fsdecode(b"Pat_\xe4")
    (slides / "one").rename(slides / strange)
    (slides / "damaged.svs").rename(slides / f"{strange}.svs")
    call = [*PROGRAM, "predict", slides, "-m", tiny_model_path, "--genes", "GNAS", "--pitch", "100", *LIGHT]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 1, done.stderr
    assert sorted(done.stdout.split()) == [b"Pat_\xe4/a.h5ad", b"two/a.h5ad"]
    assert b"1 of 3 slides failed" in done.stderr
    assert b"Pat_\xe4.svs" in Path("failures.csv").read_bytes()


def test_what_was_prepared_ahead_is_let_go_when_the_run_ends_early(slides, tiny_model, monkeypatch):
    def interrupt(*_args, **_options):
        for _ in range(200):
            if Path("out/two/a.h5ad.lease").exists():
                raise KeyboardInterrupt
            time.sleep(0.05)

    monkeypatch.setattr("stpredict.batch.slides.predict_slide", interrupt)
    (slides / "damaged.svs").unlink()
    jobs = find_jobs([str(slides)], Path("out"), lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        list(predict_slides(jobs, tiny_model, Request(genes=["GNAS"]), lambda _: None, lambda *_: None))
    assert not list(Path("out").rglob("*.lease"))


def test_one_picture_that_cannot_be_drawn_does_not_end_the_run(slides, tiny_model_path, monkeypatch):
    def refuse(*_args):
        raise UsageError("no picture today.")

    monkeypatch.setattr("stpredict.commands.predict.render_one", refuse)
    (slides / "damaged.svs").unlink()
    some = ("-m", tiny_model_path, "--genes", "GNAS", "--pitch", "100", "-o", "out", "--render")
    done = run("predict", slides, *some)
    assert done.exit_code == 1
    assert len(done.stdout.split()) == 2
    assert "one/a.tif" in Path("out/failures.csv").read_text()


def test_results_that_are_there_need_no_lease_and_no_folder_that_can_be_written(slides, tiny_model_path, monkeypatch):
    some = ("predict", slides / "one/a.tif", "-m", tiny_model_path, "--genes", "GNAS", "--pitch", "100", "-o", "out")
    assert run(*some).exit_code == 0
    monkeypatch.setattr("stpredict.prediction.preparation.take_lease", None)
    monkeypatch.setattr("stpredict.storage.files.make_folder", None)
    again = run(*some)
    assert again.exit_code == 0
    assert "up to date" in again.stderr
    plan = run(*some, "--dry-run")
    assert plan.stdout.strip().endswith("a.h5ad: up to date")


def test_a_dry_run_refuses_what_predict_refuses(slides, tiny_model_path):
    some = ("-m", tiny_model_path, "--dry-run")
    assert run("predict", "no.svs", *some).exit_code == 2
    assert run("predict", slides / "one/a.tif", *some, "--min-tissue", "7").exit_code == 2


def test_a_list_gives_each_slide_its_mpp_and_folder(slides, tiny_model_path):
    names = [path.relative_to(Path.cwd()) for path in sorted(slides.rglob("*.tif"))]
    Path("list.csv").write_text(f"slide,mpp,out\n{names[0]},0.6,first\n{names[1]},,second\n")
    done = run("predict", "@list.csv", "-m", tiny_model_path, "--genes", "GNAS", "--pitch", "50", "--render")
    assert done.exit_code == 0, done.output
    assert read_provenance(Path("first/a.h5ad"))["slide"]["given_mpp"] == 0.6
    assert read_provenance(Path("second/a.h5ad"))["slide"]["given_mpp"] is None
    assert Path("second/a.GNAS.overlay.tif").exists()


def test_only_reliable_genes_on_request(slides, tmp_path):
    said = {"how": "made up", "low": [0.1, -0.1, *[0.1] * 6], "high": [0.4] * 8, "ridge": [0.2, *[0.0] * 7]}
    model = make_model(tmp_path / "judged.safetensors", reliability=said)
    some = ("predict", slides / "one/a.tif", "--pitch", "100", "--engine", "eager")
    done = run(*some, "-m", model, "--genes", "reliable")
    assert done.exit_code == 0, done.output
    found = [gene.name for gene in read_result(Path("a.h5ad")).genes]
    assert found == [gene for gene in GENES if gene != "DDX5"]
    silent = make_model(tmp_path / "silent.safetensors")
    refused = run(*some, "-m", silent, "--genes", "reliable", "-o", "o")
    assert refused.exit_code == 2
    assert "does not say which are reliable" in refused.stderr


def test_a_mask_is_part_of_the_settings(slides, tiny_model_path):
    square = [[0, 0], [400, 0], [400, 800], [0, 800], [0, 0]]
    area = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [square]}, "properties": {}}
    Path("left.geojson").write_text(json.dumps(area))
    some = ("predict", slides / "one/a.tif", "-m", tiny_model_path, "--genes", "GNAS", "--pitch", "50")
    masked = run(*some, "--mask", "left.geojson")
    assert masked.exit_code == 0, masked.output
    found = read_result(Path("a.h5ad")).spots
    assert len(found) > 4
    assert (found.centres[:, 0] < 400).all()
    assert run(*some, "--mask", "left.geojson").stderr.count("up to date") == 1
    refused = run(*some)
    assert refused.exit_code == 1
    assert "mask" in refused.stderr
    assert run(*some, "--mask", "none.geojson").exit_code == 2
    both = run(*some, "--mask", "left.geojson", "--spots", "spots.csv")
    assert both.exit_code == 2
    assert "--mask chooses among" in both.stderr


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(slides, tiny_model_path, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    plan = run("predict", slides, "-m", tiny_model_path, "-o", "out", "--pitch", "50", "--dry-run")
    assert plan.exit_code == 1
    assert sorted(tmp_path.rglob("*")) == before
    one, two, total = plan.stdout.splitlines()
    done = run("predict", slides / "one/a.tif", "-m", tiny_model_path, "-o", "out", "--pitch", "50")
    assert done.exit_code == 0
    count = len(read_result(Path("out/a.h5ad")).spots)
    assert one.startswith(f"{slides}/one/a.tif -> out/one/a.h5ad: {count} spots, about ")
    assert "two/a.tif" in two
    assert total.startswith(f"2 slides: {2 * count} spots, about ")
    up_to = int(one.split("up to ")[1].removesuffix(" MB"))
    assert up_to * 1e6 > Path("out/a.h5ad").stat().st_size


def test_a_slide_that_another_process_is_at_is_left_to_it(slides, tiny_model_path):
    shutil.move(slides / "one", slides / "in" / "one")
    command = ("predict", slides / "in", slides / "two", "-m", tiny_model_path, "--genes", "GNAS", "--pitch", "50")
    command += ("-o", "out")
    lease = Path("out/one/a.h5ad.lease")
    lease.parent.mkdir(parents=True)
    lease.write_text(json.dumps({"token": "x", "where": "another machine", "pid": 1}))
    done = run(*command)
    assert done.exit_code == 75, done.output
    assert done.stdout.split() == ["out/a.h5ad"]
    assert "another process is predicting it" in done.stderr
    assert lease.exists()
    os.utime(lease, (0, 0))  # its owner was not heard of for long
    again = run(*command)
    assert again.stdout.split() == ["out/one/a.h5ad", "out/a.h5ad"]
    assert not lease.exists()


def test_two_calls_on_one_folder_do_each_slide_once(quick_model_path, tmp_path, region):
    (tmp_path / "slides").mkdir()
    for i in range(4):
        tiff_pyramid(tmp_path / "slides" / f"{i}.tif", region[1000:1800, 600:1400], (0.5, 0.5), levels=1)
    asked = ("-m", quick_model_path, *LIGHT, "--pitch", "7")
    call = [*PROGRAM, "predict", "slides", *asked, "-o", "out", "-v"]
    both = [
        subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=200) for process in both]
    # 75: the other one is still at a slide
    assert {process.returncode for process in both} <= {0, 75}, outputs
    predicted = [line for _, stderr in outputs for line in stderr.splitlines() if "a second" in line]
    assert sorted(line.split(":")[0] for line in predicted) == [f"{i}.tif" for i in range(4)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{i}.h5ad" for i in range(4)]


def test_a_killed_call_is_taken_up_at_once(quick_model_path, tmp_path):
    call = [*PROGRAM, "predict", SLIDE, "-m", quick_model_path, "--pitch", "12", *LIGHT]
    parts = tmp_path / "CMU-1-Small-Region.h5ad.parts"
    with subprocess.Popen(call, stderr=subprocess.DEVNULL, cwd=tmp_path) as process:
        deadline = time.monotonic() + 120
        while not list(parts.glob("0*.npy")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
    begun = {path.name: path.stat().st_mtime_ns for path in parts.glob("0*.npy")}
    assert begun
    assert (tmp_path / "CMU-1-Small-Region.h5ad.lease").exists()
    done = subprocess.run([*call, "-v"], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "CMU-1-Small-Region.h5ad"
    assert [path.name for path in tmp_path.iterdir() if "CMU" in path.name] == ["CMU-1-Small-Region.h5ad"]
