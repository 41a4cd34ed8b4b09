"""No file of the folder that the caller stands in is run, whatever it is called."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from calls import run
from clusters import local_cluster
from conftest import SLIDE
from slides_to_try import tiff_pyramid

import stpredict.engines.compile as compiling
from stpredict.search_path import leave_out_working_folder, working_folder_left_out

ROOT = Path(__file__).parents[1]
NETWORK = {"channels": 12, "depth": 1, "heads": 1, "head_dim": 12, "mixing": "per_level"}
TRAP = """with open({log!r}, "a") as log:
    log.write(__name__ + "\\n")
raise ImportError("a file of the working folder was run")
"""


@pytest.fixture(scope="module")
def entry() -> str:
    """`module:function` of the command, as installers read it."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["stpredict"])


@pytest.fixture(scope="module")
def program(entry: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command, as it is installed, and which also knows a network that is trained in no time."""
    module, function = entry.split(":")
    path = tmp_path_factory.mktemp("bin") / "stpredict"
    lines = (
        f"#!{sys.executable}", "import sys", f"from {module} import {function}", "if __name__ == '__main__':",
        "    if sys.argv[1] == 'train':", "        from stpredict.networks import ARCHITECTURES",
        f"        ARCHITECTURES['m2ort-tiny'] = {NETWORK}", f"    sys.exit({function}())",
    )  # fmt: skip
    path.write_text("\n".join(lines))
    path.chmod(0o755)
    return path


@pytest.fixture
def traps(tmp_path: Path, region) -> Path:
    """A folder of slides with a file for each module that there is: of Python, of what is installed, and others."""
    folder = tmp_path / "traps"
    folder.mkdir()
    installed = {name for name in importlib.metadata.packages_distributions() if name.isidentifier()}
    trap = TRAP.format(log=str(tmp_path / "run"))
    for name in {
        *sys.stdlib_module_names,
        *installed,
        "stpredict",
        "sitecustomize",
        "usercustomize",
        "tensorrt",
        "cupy",
    }:
        (folder / f"{name}.py").write_text(trap)
    for name in ("libopenslide.so.1", "libvips.so.42", "libc10.so", "plugins.xml", ".bin"):
        (folder / name).write_bytes(b"no library")
    tiff_pyramid(folder / "a.tif", region[1000:1800, 600:1400], (0.5, 0.5))
    (folder / "b.svs").write_bytes(SLIDE.read_bytes())
    return folder


def sprung(folder: Path) -> list[str]:
    log = folder.parent / "run"
    return log.read_text().split() if log.exists() else []


def call(folder: Path, *command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    environment.pop("PYTHONSAFEPATH", None)
    done = subprocess.run(
        [*map(str, command)], cwd=folder, capture_output=True, text=True, timeout=600, env=environment
    )
    assert sprung(folder) == []
    return done


EAGER = ("--engine", "eager", "--threads", "1", "--genes", "GNAS")


@pytest.mark.parametrize(
    "arguments",
    [
        ["a.tif", "--threads", "1"],
        ["a.tif", "b.svs", *EAGER, "--render"],
        pytest.param(
            ["a.tif", "--engine", "compile"],
            marks=pytest.mark.skipif(compiling.unavailable("cpu") is not None, reason="no compiler"),
        ),
    ],
    ids=["one slide in OpenVINO", "two slides", "a slide that is compiled for"],
)
def test_predictions(program, traps, quick_model_path, arguments):
    new = {"STPREDICT_CACHE": str(traps.parent / "cache")}  # so that what is asked for is compiled here
    done = call(traps, program, "predict", *arguments, "-m", quick_model_path, **new)
    assert done.returncode == 0, done.stderr
    assert (traps / "a.h5ad").exists()


def test_a_cluster_whose_workers_stand_there_too(program, traps, tiny_model_path, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # as docs/clusters.md has it
    monkeypatch.chdir(traps)
    with local_cluster(1, 1, tmp_path) as address:
        done = call(
            traps, program, "predict", "a.tif", "b.svs", "-m", tiny_model_path, *EAGER, "--cluster", address,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_removed_working_folder_is_refused_before_anything_else(program, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    asked = [program, "predict", SLIDE, *EAGER, "-o", tmp_path]
    done = subprocess.run(asked, cwd=gone, preexec_fn=gone.rmdir, capture_output=True, text=True, timeout=60)
    assert done.stderr == "stpredict: the working folder was removed; change to a folder that exists.\n"
    assert done.returncode == 2
    assert not list(tmp_path.glob("*.h5ad"))


def test_workers_predict_although_their_folder_was_removed(quick_model_path, monkeypatch, tmp_path, region):
    tiff_pyramid(tmp_path / "a.tif", region[1000:1400, 600:1000], (0.5, 0.5))
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    with local_cluster(1, 1, tmp_path) as address:
        monkeypatch.chdir(tmp_path)
        Path("gone").rmdir()
        asked = ("a.tif", "-m", quick_model_path, "--engine", "eager", "--threads", "1")
        done = run("predict", *asked, "--cluster", address)
    assert done.exit_code == 0, done.output
    assert Path("a.h5ad").exists()


def test_training_in_two_processes(program, traps, dataset):
    torchrun = [sys.executable, "-P", "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"]
    few = (
        "--epochs",
        "1",
        "--unlabelled",
        "0",
        "--min-depth",
        "1",
        "--folds",
        "none",
        "--mpp",
        "2",
        "--patch-um",
        "128",
    )
    options = ("-o", "m.safetensors", "--arch", "m2ort-tiny", "--batch-size", "64", "--threads", "1", *few)
    done = call(traps, *torchrun, program, "train", dataset, *options)
    assert done.returncode == 0, done.stderr
    assert (traps / "m.safetensors").exists()


def test_the_module_is_as_safe_once_it_has_begun(traps, tiny_model_path):
    """What Python itself imports for -m comes from the working folder; of that the program is not asked. No name of
    what it imports is in the way here."""
    for path in traps.glob("*.py"):
        if path.stem in sys.stdlib_module_names | {"stpredict"}:
            path.unlink()
    done = call(traps, sys.executable, "-m", "stpredict", "predict", "a.tif", "b.svs", *EAGER, "-m", tiny_model_path)
    assert done.returncode == 0, done.stderr


def test_what_names_the_working_folder_is_left_out(monkeypatch, tmp_path):
    (tmp_path / "relative").mkdir()
    monkeypatch.chdir(tmp_path)
    named, elsewhere, installed = str(tmp_path / "named"), str(tmp_path / "elsewhere"), str(tmp_path / "site-packages")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(("", named, ".", "relative", elsewhere, "")))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    given = ["", str(tmp_path), named, str(tmp_path / "relative"), elsewhere, installed, str(ROOT)]
    monkeypatch.setattr(sys, "path", [*given])
    with working_folder_left_out():
        assert sys.path == [named, elsewhere, installed, str(ROOT)]
        assert os.environ["PYTHONPATH"] == os.pathsep.join((named, elsewhere))
        assert os.environ["PYTHONSAFEPATH"] == "1"
        sys.path.append("/added")
    assert sys.path == [*given, "/added"]
    assert "PYTHONSAFEPATH" not in os.environ
    monkeypatch.setattr(sys, "path", [str(ROOT), named])
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    leave_out_working_folder()
    assert sys.path == [named, str(ROOT)]  # where the program itself comes from
