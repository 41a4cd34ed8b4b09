"""`train --patch-um --mpp`: what a patch shows, and in how much detail, are chosen apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from calls import run
from conftest import SLIDE, write_section
from slides_to_try import tiff_pyramid

from stpredict.data.tiles import read_tiles
from stpredict.model.file import load_model
from stpredict.networks import ARCHITECTURES
from stpredict.result.file import read_result

TINY = {"channels": 12, "depth": 1, "heads": 1, "head_dim": 12, "mixing": "per_level"}
ARCH = "m2ort-tiny:pool=mean:pixels=density:token_px=8"
OPTIONS = "--unlabelled 0 --teach-patches 0 --epochs 1 --threads 1 --min-depth 1 --panel-size 6"


pytestmark = pytest.mark.usefixtures("tiny_architecture")


def train(source: Path, out: Path, *more: object, arch: str = ARCH):
    return run("train", source, "-o", out, *OPTIONS.split(), "--arch", arch, *more)


@pytest.fixture(scope="module")
def measured(region: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients, the second of whom was scanned at 2.4 um per pixel."""
    folder = tmp_path_factory.mktemp("her2st")
    write_section(folder, "A1", region, seed=0)
    write_section(folder, "B1", np.ascontiguousarray(region[::5, ::5]), seed=1, mpp=2.4)
    return folder


@pytest.fixture(scope="module")
def trained(measured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("coarse") / "coarse.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "m2ort-tiny", TINY)
        done = train(measured, out, "--mpp", 2, "--patch-um", 96)
    assert done.exit_code == 0, done.output
    return out


def test_the_card_keeps_both_and_patches_are_cut_so(trained: Path):
    card = load_model(trained).card
    assert (card["patch_px"], card["mpp"]) == (48, 2.0)
    assert (card["parameters"]["patch_px"], card["parameters"]["token_px"]) == (48, 8)
    tiles = read_tiles(trained.with_suffix(".run") / "dataset.tiles.h5")
    assert tiles.read_patches([0]).shape == (1, 48, 48, 3)
    assert "input: 48 px patches at 2 um/px" in run("models", "show", trained).stdout


def test_the_card_says_which_of_its_numbers_are_from_coarse_images(trained: Path):
    card = load_model(trained).card
    assert card["training"]["coarse_sections"] == ["B1"]
    assert card["training"]["coarse_mpp"] == pytest.approx(2.4, rel=0.01)
    folds = {fold["name"]: fold.get("coarse_sections", []) for fold in card["held_out"]}
    assert folds == {"A": [], "B": ["B1"]}
    shown = run("models", "show", trained).stdout
    assert "images coarser than the model, 2.4 um/px at most: B1" in shown
    assert "held out: patient B, from images of up to 2.4 um/px: B1;" in shown


def test_prediction_and_evaluation_read_what_the_card_says(trained: Path, measured: Path, tmp_path: Path):
    done = run("predict", SLIDE, "-m", trained, "--pitch", 300, "--engine", "eager", "-o", tmp_path)
    assert done.exit_code == 0, done.output
    found = read_result(tmp_path / f"{SLIDE.stem}.h5ad")
    assert found.provenance["raster"]["mpp"] == 2.0
    call = (
        "evaluate",
        trained,
        measured,
        "--allow-patient-leak",
        "--min-depth",
        1,
        "--engine",
        "eager",
        "--threads",
        1,
    )
    scored = run(*call, "-o", tmp_path)
    assert scored.exit_code == 0, scored.output


def test_a_coarse_scan_is_read_by_a_model_that_is_as_coarse(
    trained: Path, tiny_model_path: Path, region: np.ndarray, tmp_path: Path
):
    """At 2.4 um per pixel: too coarse for a model of 0.69, and within a quarter of one of 2."""
    tiff_pyramid(tmp_path / "coarse.tif", np.ascontiguousarray(region[::5, ::5]), (2.4, 2.4))
    call = ("predict", tmp_path / "coarse.tif", "--pitch", 300, "--engine", "eager", "-o", tmp_path, "-m")
    refused = run(*call, tiny_model_path)
    assert refused.exit_code == 1
    assert "2.4 um per pixel is too coarse for a model of 0.69" in refused.stderr
    done = run(*call, trained)
    assert done.exit_code == 0, done.output
    found = read_result(tmp_path / "coarse.h5ad")
    assert np.std(found.expression(found.genes[0].name)) > 0


@pytest.mark.parametrize(
    ("options", "arch", "told"),
    [
        (("--patch-um", 96), ARCH, "--patch-um: needs --mpp"),
        (("--epochs", 0, "--unlabelled", 0), ARCH, "--epochs 0: only for a network that is first taught densely"),
        (("--epochs", 0), "stnet", "--epochs 0: only for a network that is first taught densely"),
        (("--patch-um", 100, "--mpp", 2), ARCH,
         "--patch-um 100: 50 px at 2 um per pixel: its tokens of 8 px do not fill patches of 50 px on each level; "
         "--patch-um 96 is 48 px."),
        (("--patch-um", 100, "--mpp", 2), "stnet",
         "it takes patches of 64 px or more, not of 50; --patch-um 128 is 64 px."),
        (("--patch-um", 5, "--mpp", 2), "dictionary",
         "--patch-um 5: 2 px at 2 um per pixel: its windows are of 8 px; --patch-um 16 is 8 px."),
    ],
)  # fmt: skip
def test_a_pair_that_cannot_be_is_refused_before_anything_is_read(
    tmp_path: Path, options: tuple[object, ...], arch: str, told: str
):
    refused = run("train", tmp_path, "-o", tmp_path / "x.safetensors", "--arch", arch, *options)
    assert refused.exit_code == 2
    assert told in refused.stderr
    assert not list(tmp_path.iterdir())


def test_another_field_is_another_run_and_other_tiles(trained: Path, measured: Path):
    assert "up to date" in train(measured, trained, "--mpp", 2, "--patch-um", 96).output
    refused = train(measured, trained, "--mpp", 2, "--patch-um", 112)
    assert refused.exit_code == 1
    assert "patch_um" in refused.output
    tiles = trained.with_suffix(".run") / "dataset.tiles.h5"
    other = train(tiles, trained.with_name("other.safetensors"), "--mpp", 2, "--patch-um", 112)
    assert other.exit_code == 2
    assert "--patch-um 112: dataset.tiles.h5 holds patches of 96 um; cut it again." in other.stderr
