from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
from calls import LIGHT, PROGRAM, run
from conftest import SLIDE
from PIL import Image
from slides_to_try import tiff_pyramid
from terminal import interrupted_on_a_terminal

import stpredict.engines.compile as compiling
from stpredict.result.file import read_result

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

#: With the quick model the first is written soon, and the last long after.
MANY_SHARDS = ("--pitch", "5", *LIGHT)


def test_the_example_of_the_readme(tmp_path: Path):
    """A slide goes in, a gene map comes out, with the weights that are shipped."""
    predicted = run("predict", SLIDE, "--genes", "GNAS,DDX5")
    assert predicted.exit_code == 0, predicted.output
    assert predicted.stdout == "CMU-1-Small-Region.h5ad\n"
    rendered = run("render", "CMU-1-Small-Region.h5ad")
    assert rendered.exit_code == 0, rendered.output
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"CMU-1-Small-Region.h5ad"} | {
        f"CMU-1-Small-Region.{gene}.{style}.{kind}"
        for gene in ("GNAS", "DDX5")
        for style in ("heatmap", "overlay")
        for kind in ("tif", "png", "json")
    }
    expression = read_result(Path("CMU-1-Small-Region.h5ad")).expression("GNAS")
    assert np.isfinite(expression).all()
    assert expression.std() > 0.01
    again = run("predict", SLIDE, "--genes", "GNAS,DDX5")
    assert again.exit_code == 0
    assert "up to date" in again.stderr


def test_predict_and_render_in_one_call(tiny_model_path, tmp_path):
    done = run("predict", SLIDE, "--genes", "GNAS", "-m", tiny_model_path, "--render", "-o", "out", "-v")
    assert done.exit_code == 0, done.output
    (timings,) = (line for line in done.stderr.splitlines() if "a second" in line)
    assert re.search(r"CMU-1-Small-Region.svs: 78 spots, \d+ a second; .*waiting for engine \d+%", timings)
    assert len(done.stdout.splitlines()) == 5
    assert (tmp_path / "out" / "CMU-1-Small-Region.GNAS.overlay.tif").exists()


def make(kind: str, region: np.ndarray) -> Path:
    path = Path(kind.replace(" ", "_") + ".tif")
    if kind == "empty file":
        path = Path("empty.svs")
        path.touch()
    elif kind == "text":
        path = Path("text.svs")
        path.write_text("hello")
    elif kind == "truncated":
        path = Path("half.svs")
        path.write_bytes(SLIDE.read_bytes()[:1_000_000])
    elif kind == "background":
        tiff_pyramid(path, np.full((1024, 1024, 3), 242, np.uint8), (0.5, 0.5))
    elif kind == "no mpp":
        tiff_pyramid(path, region[:1024, :1024], None)
    elif kind == "coarse":
        tiff_pyramid(path, region[:1024, :1024], (1.1, 1.1))
    return path


@pytest.mark.parametrize(
    ("kind", "arguments", "code", "says"),
    [
        ("missing", [], 2, "no such file"),
        ("empty file", [], 1, "empty"),
        ("text", [], 1, "not a slide"),
        ("truncated", [], 1, "not a slide, or a damaged one"),
        ("background", [], 1, "no tissue found"),
        ("no mpp", [], 2, "--mpp"),
        ("no mpp", ["--mpp", "0"], 2, "positive"),
        ("coarse", [], 1, "--allow-upsampling"),
        ("slide", ["--genes", "GNASS"], 2, "nearest: GNAS"),
        ("slide", ["-m", "m3ort"], 2, "no model is called 'm3ort'"),
        ("slide", ["-m", "gone.safetensors"], 2, "no such model file"),
        ("slide", ["-m", "damaged.safetensors"], 2, "damaged"),
        ("slide", ["-m", "renamed.safetensors"], 2, "not a model file"),
        ("slide", ["-o", "file"], 2, "is a file, not a folder"),
        ("slide", ["--pitch", "0.1"], 2, "larger than a pixel"),
        ("slide", ["--pitch", "0"], 2, "larger than a pixel"),
        ("slide", ["--pitch", "inf"], 2, "must be finite"),
        ("slide", ["--device", "banana"], 2, "choose auto, cpu, cuda"),
        ("slide", ["--layout", "round"], 2, "square, hex"),
        ("slide", ["--engine", "abacus"], 2, "choose one of"),
        ("slide", ["--no-such-option"], 2, "No such option"),
        ("slide", ["--cluster", ""], 2, "--cluster names no address."),
        ("slide", ["-o", ""], 2, "names no folder"),
        ("slide", [""], 2, "a slide's name is empty."),
    ],
)
def test_bad_input_gets_one_sentence_and_an_exit_code(tiny_model_path, region, kind, arguments, code, says):
    content = bytearray(tiny_model_path.read_bytes())
    content[-5] ^= 1
    Path("damaged.safetensors").write_bytes(content)
    Path("renamed.safetensors").write_bytes(SLIDE.read_bytes()[:5000])
    Path("file").touch()
    slide = SLIDE if kind == "slide" else make(kind, region)
    model = [] if "-m" in arguments else ["-m", tiny_model_path]
    done = run("predict", slide, *model, *arguments)
    assert done.exit_code == code, done.output
    assert says in done.stderr
    assert "Traceback" not in done.output
    assert not list(Path().glob("**/*.h5ad"))


def test_a_folder_without_slides(tiny_model_path):
    Path("folder").mkdir()
    done = run("predict", "folder", "-m", tiny_model_path)
    assert done.exit_code == 2
    assert "folder: holds no slides" in done.stderr


def test_many_slides_with_failures_end_in_a_table(tiny_model_path, region):
    slides = [make(kind, region) for kind in ("no mpp", "text", "background")]
    done = run("predict", *slides, SLIDE, "-m", tiny_model_path, "--genes", "GNAS")
    assert done.exit_code == 1
    assert done.stdout == "CMU-1-Small-Region.h5ad\n"
    assert "3 of 4 slides failed:" in done.stderr
    table = done.stderr.split("failed:\n")[-1].splitlines()
    assert [line.split()[0] for line in table] == [slide.name for slide in slides]


def test_an_output_of_other_settings_is_refused(tiny_model_path):
    assert run("predict", SLIDE, "-m", tiny_model_path, "--genes", "GNAS").exit_code == 0
    other = run("predict", SLIDE, "-m", tiny_model_path, "--genes", "DDX5")
    assert other.exit_code == 1
    assert "genes GNAS instead of DDX5" in other.stderr
    assert "--overwrite" in other.stderr
    assert run("predict", SLIDE, "-m", tiny_model_path, "--genes", "DDX5", "--overwrite").exit_code == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_folder_that_cannot_be_written(tiny_model_path):
    Path("closed").mkdir(mode=0o500)
    done = run("predict", SLIDE, "-m", tiny_model_path, "-o", "closed")
    assert done.exit_code == 2
    assert "cannot be written" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full to stand for a full disk")
def test_a_full_disk_leaves_no_result(tiny_model_path, monkeypatch):
    def no_space(*_args: object, **_kwargs: object) -> None:
        with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123 (the device itself)
            full.write(b"x")

    monkeypatch.setattr("stpredict.prediction.shards.np.save", no_space)
    done = run("predict", SLIDE, "-m", tiny_model_path, "--genes", "GNAS")
    assert done.exit_code == 1
    assert done.stderr.endswith("stpredict: CMU-1-Small-Region.h5ad: cannot be written (No space left on device).\n")
    assert not Path("CMU-1-Small-Region.h5ad").exists()


def test_ctrl_c_leaves_no_half_result_and_the_same_command_goes_on(quick_model_path: Path, tmp_path: Path):
    call = [*PROGRAM, "predict", SLIDE, "-m", quick_model_path, *MANY_SHARDS]
    # A shell's background job ignores SIGINT, and so would this program if the tests are one.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True, cwd=tmp_path, preexec_fn=heed) as process:
        parts = tmp_path / "CMU-1-Small-Region.h5ad.parts"
        deadline = time.monotonic() + 120
        while not list(parts.glob("0*.npy")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "CMU-1-Small-Region.h5ad").exists()
    done = len(list(parts.glob("0*.npy")))
    assert done
    # The same command goes on: the shards that are there are not made again.
    stamps = {path.name: path.stat().st_mtime_ns for path in parts.glob("0*.npy")}
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        while len(list(parts.glob("0*.npy"))) <= done and process.poll() is None and time.monotonic() < deadline + 120:
            time.sleep(0.02)
        assert stamps.items() <= {path.name: path.stat().st_mtime_ns for path in parts.glob("0*.npy")}.items()
        process.kill()


@pytest.mark.parametrize(
    ("width", "also", "says"),
    [(80, (), "the same command goes on"), (200, ("--overwrite",), "the same command without --overwrite goes on")],
)
def test_ctrl_c_wipes_the_progress_of_one_slide_off_the_terminal(quick_model_path, tmp_path, width, also, says):
    asked = ("-m", quick_model_path, "--genes", "GNAS", *MANY_SHARDS, *also)
    parts = tmp_path / "CMU-1-Small-Region.h5ad.parts"
    code, lines = interrupted_on_a_terminal(
        [*PROGRAM, "predict", SLIDE, *asked], tmp_path, lambda: bool(list(parts.glob("0*.npy"))), width
    )
    assert code == 130
    assert [line for line in lines if line] == [f"stpredict: interrupted; {says} where it stopped."]


def test_a_scheduler_that_ends_the_call_is_told_that_it_can_go_on(quick_model_path: Path, tmp_path: Path):
    call = [*PROGRAM, "predict", SLIDE, "-m", quick_model_path, *MANY_SHARDS]
    with subprocess.Popen([*call, "--log-json"], stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        parts = tmp_path / "CMU-1-Small-Region.h5ad.parts"
        deadline = time.monotonic() + 120
        while not list(parts.glob("0*.npy")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        for _ in range(2):  # as `timeout` does
            process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    last = json.loads(errors.splitlines()[-1])
    assert last["event"] == "error"
    assert last["exit_code"] == 143
    assert last["message"] == "terminated; the same command goes on where it stopped."
    assert not list(tmp_path.glob("*.lease"))


def test_results_reach_a_pipe_while_progress_is_drawn_on_a_terminal(quick_model_path, tmp_path):
    controller, terminal = pty.openpty()
    call = [*PROGRAM, "predict", SLIDE, "-m", quick_model_path, "--pitch", "12", "--genes", "GNAS", *LIGHT]
    drawn: list[bytes] = []

    def read_terminal() -> None:  # a terminal that nobody reads blocks the program once it is full
        with contextlib.suppress(OSError):
            while part := os.read(controller, 4096):
                drawn.append(part)

    reader = threading.Thread(target=read_terminal, daemon=True)
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=terminal, cwd=tmp_path) as process:
        os.close(terminal)
        reader.start()
        output, _ = process.communicate(timeout=120)
    reader.join(timeout=10)
    os.close(controller)
    assert process.returncode == 0
    assert b"spots" in b"".join(drawn)
    assert output == b"CMU-1-Small-Region.h5ad\n"


def test_a_cache_that_cannot_be_made_costs_only_time(quick_model_path, monkeypatch):
    Path("file").touch()
    monkeypatch.setenv("STPREDICT_CACHE", "file/cache")
    done = run(
        "predict", SLIDE, "-m", quick_model_path, "--genes", "GNAS", "--engine", "openvino", "--precision", "fp32"
    )
    assert done.exit_code == 0, done.output
    monkeypatch.setattr("stpredict.commands.doctor.ENGINES", ("eager",))  # the others compile the default model
    assert "nowhere" in run("doctor").stdout


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_slides_whose_names_are_not_text_or_whose_pixels_are_odd(tiny_model_path, region):
    odd = Path(os.fsdecode(b"sl\xffide.jpg"))
    Image.fromarray(region[:600, :600]).save("plain.jpg")
    os.rename("plain.jpg", odd)  # noqa: PTH104 (the name is not text)
    tifffile.imwrite("bands.tif", np.zeros((64, 64, 5), np.uint8), photometric="minisblack", planarconfig="contig")
    tifffile.imwrite("float.tif", np.zeros((64, 64), np.float32))
    done = run(
        "predict", odd, "bands.tif", "float.tif", SLIDE, "-m", tiny_model_path, "--mpp", "0.5", "--genes", "GNAS"
    )
    assert done.exit_code == 1
    assert "CMU-1-Small-Region.h5ad" in done.stdout
    assert "Traceback" not in done.stderr


def test_models_and_doctor(monkeypatch, tiny_model_path):
    monkeypatch.setenv("STPREDICT_MODELS", str(tiny_model_path.parent))
    listed = run("models", "list")
    assert "tiny  m2ort-tiny, 8 genes" in listed.stdout
    (default,) = (line for line in listed.stdout.splitlines() if line.endswith(", default"))
    assert default.startswith("dictionary-her2st  ")
    assert "m2ort-small-her2st" in listed.stdout
    shown = run("models", "show", "m2ort-small-her2st").stdout
    for text in (
        "best predicted",
        "worst",
        "ridge on colour and texture",
        "same-patient mean",
        "2 patients",
        "Research use",
    ):
        assert text in shown
    monkeypatch.setattr(compiling, "unavailable", lambda _device: "left out")  # else it takes most of a minute
    examined = run("doctor")
    assert examined.exit_code == 0
    for text in (
        "cores:",
        "GPU:",
        "engine eager: available",
        "engine compile: not available: left out",
        "engine openvino: available",
        "compiled models are kept in",
    ):
        assert text in examined.stdout


@pytest.mark.parametrize("command", [[], ["predict"], ["render"], ["summary"], ["train"], ["models"]])
def test_help_answers_at_once(command):
    """Starting costs what is imported: here 203 modules. A library that brings hundreds more is noticed."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "stpredict", *command, "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Usage" in done.stdout
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not {"numpy", "torch", "openslide", "h5py"} & imported
    assert len(imported) < 260


def test_version():
    assert run("--version").stdout.strip() == "0.1.0"


def test_a_slide_name_that_begins_with_a_dash(tiny_model_path):
    shutil.copy(SLIDE, "-x.svs")
    done = run("predict", "-m", tiny_model_path, "--genes", "GNAS", "--", "-x.svs")
    assert done.exit_code == 0, done.output
    assert Path("-x.h5ad").exists()
