from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from calls import run

from stpredict.data.cutting import write_tiles
from stpredict.data.dataset import read_dataset
from stpredict.data.patch_formats import PIECE_BYTES, stored_patches
from stpredict.data.patches_elsewhere import patches_folder
from stpredict.data.tiles import read_tiles
from stpredict.errors import DatasetError
from stpredict.model.file import load_model
from stpredict.model.show import show_card

FAST = ("--arch", "dictionary", "--folds", "none", "--unlabelled", "9", "--threads", "1", "--min-depth", "1")


@pytest.fixture(scope="module", params=[(1,), (1, 2)], ids=["one view", "two views"])
def both(request: pytest.FixtureRequest, dataset: Path, tmp_path_factory: pytest.TempPathFactory):
    """The same patches as pixels and as JPEG."""
    folder, found = tmp_path_factory.mktemp("formats"), []
    for form in ("raw", "jpeg"):
        path = folder / f"{form}.tiles.h5"
        write_tiles(
            read_dataset(dataset), path, patch_px=176, views=request.param, unlabelled=9, patch_format=form,
            report=lambda _: None,
        )  # fmt: skip
        found.append(read_tiles(path))
    return found


def test_jpegs_show_what_the_pixels_do_in_a_fraction_of_the_room(both):
    raw, jpeg = both
    assert (raw.jpeg_quality, jpeg.jpeg_quality) == (None, 95)
    for unlabelled, n in ((False, len(raw.spot)), (True, len(raw.unlabelled_section))):
        order = np.random.default_rng(0).permutation(n)
        wanted, found = (tiles.read_patches(order, unlabelled).astype(int) for tiles in both)
        assert found.shape == wanted.shape
        assert 0 < abs(found - wanted).mean() < 2
        assert abs(found - wanted).max() < 40
        np.testing.assert_array_equal(jpeg.read_patches(order[:1], unlabelled)[0], found[0])
    assert jpeg.read_patches([]).shape == raw.read_patches([]).shape
    first = next(patches_folder(jpeg.path).iterdir())
    with h5py.File(first) as file:
        assert file["img/length"][:].mean() < raw.read_patches([0]).nbytes / 4
        assert len(file["img/bytes"]) > PIECE_BYTES  # some patches lie in two pieces
    for outside in (-1, len(raw.spot)):
        with pytest.raises(IndexError):
            jpeg.read_patches([outside])


def test_jpegs_that_are_damaged_are_named(both, tmp_path: Path):
    raw, jpeg = both
    path = Path(shutil.copy(next(patches_folder(jpeg.path).iterdir()), tmp_path / "damaged.h5"))
    shape = raw.read_patches([0]).shape[1:]
    with h5py.File(path, "r+") as file:
        start, length = (int(file[f"img/{part}"][3]) for part in ("start", "length"))
        file["img/bytes"][start : start + length] = 7
        file["img/start"][5], file["img/length"][5] = file["img/start"][6], 40
    patches, way_out = stored_patches(path, "img", shape), "; replace the file, or remove it and cut the tiles again"
    patches.read([2, 4])
    for spot in (3, 5):
        with pytest.raises(DatasetError, match=rf"damaged\.h5: a patch cannot be read .*{way_out}"):
            patches.read([spot])
    with h5py.File(path, "r+") as file:
        file["img/length"][0] = len(file["img/bytes"]) + 1
    with pytest.raises(DatasetError, match=f"its JPEGs are not all there{way_out}"):
        stored_patches(path, "img", shape)


@pytest.mark.usefixtures("few_windows")
def test_a_run_says_how_its_patches_were_stored_and_keeps_to_it(dataset: Path, tmp_path: Path):
    out = tmp_path / "m.safetensors"
    planned = run("train", dataset, *FAST, "--patch-format", "jpeg", "--dry-run", "-o", out)
    assert "unlabelled places: about 2 MB of disk" in planned.stdout
    done = run("train", dataset, *FAST, "--patch-format", "jpeg", "-o", out)
    assert done.exit_code == 0, done.output
    card = load_model(out).card
    assert card["training"]["patch_format"] == "JPEG of quality 95"
    assert "patches of training were stored as JPEG of quality 95" in show_card(load_model(out))
    assert json.loads((tmp_path / "m.run" / "run.json").read_text())["patch_format"] == "jpeg"
    other = run("train", dataset, *FAST, "-o", out)
    assert other.exit_code == 1
    assert "m.run: holds a run with other settings (patch_format jpeg instead of raw); --overwrite" in other.stderr
    cut = tmp_path / "m.run" / "dataset.tiles.h5"
    for call in (("train", cut, *FAST), ("compare", cut, "--arch", "stnet")):
        refused = run(*call, "--patch-format", "jpeg", "-o", tmp_path / "other.safetensors")
        assert refused.exit_code == 2
        assert "--patch-format: needs a folder of sections; a .tiles.h5 file is already cut." in refused.stderr


def test_tiles_of_a_data_set_are_cut_as_jpeg_and_other_formats_are_refused(dataset: Path, tmp_path: Path):
    done = run("tile", dataset, "--patch-format", "jpeg", "-o", tmp_path)
    assert done.exit_code == 0, done.output
    (path,) = tmp_path.glob("*.tiles.h5")
    assert read_tiles(path).jpeg_quality == 95
    refused = run("tile", dataset, "--patch-format", "png", "-o", tmp_path / "png")
    assert (refused.exit_code, "--patch-format png: choose from raw, jpeg" in refused.stderr) == (2, True)
