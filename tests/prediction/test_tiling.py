"""`tile`: what it writes of a slide, and which of its options a slide or a data set has no use for."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from calls import run
from conftest import SLIDE
from PIL import Image

from stpredict.result.file import read_result

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def test_tile_writes_a_grid_that_predict_takes(tiny_model_path):
    tiled = run("tile", SLIDE, "-m", tiny_model_path, "--patches")
    assert tiled.exit_code == 0, tiled.output
    assert tiled.stdout.split() == [f"CMU-1-Small-Region.{x}" for x in ("spots.csv", "tissue.png", "tiles.h5")]
    with Image.open("CMU-1-Small-Region.tissue.png") as picture:
        assert max(picture.size) == 1500
    given = run("predict", SLIDE, "-m", tiny_model_path, "--spots", "CMU-1-Small-Region.spots.csv", "-o", "given")
    lattice = run("predict", SLIDE, "-m", tiny_model_path)
    assert given.exit_code == lattice.exit_code == 0
    expressions = [
        read_result(Path(folder) / "CMU-1-Small-Region.h5ad").expression("ERBB2") for folder in ("given", ".")
    ]
    np.testing.assert_allclose(*expressions, atol=1e-6)


def test_tile_replaces_nothing_unless_it_is_told_to(tiny_model_path, dataset):
    Path("CMU-1-Small-Region.spots.csv").write_text("mine")
    refused = run("tile", SLIDE, "-m", tiny_model_path)
    assert refused.exit_code == 2
    assert "CMU-1-Small-Region.spots.csv: exists; --overwrite replaces it." in refused.stderr
    assert [path.read_text() for path in Path().iterdir()] == ["mine"]
    assert run("tile", SLIDE, "-m", tiny_model_path, "--overwrite").exit_code == 0
    assert Path("CMU-1-Small-Region.spots.csv").read_text().startswith("x,y,row,col")
    Path(f"{dataset.name}.tiles.h5").write_text("mine")
    assert "tiles.h5: exists" in run("tile", dataset, "-m", tiny_model_path).stderr


def test_tile_writes_every_view_that_the_model_looks_at(tiny_m2ost_path):
    tiled = run("tile", SLIDE, "-m", tiny_m2ost_path, "--patches", "--pitch", 300)
    assert tiled.exit_code == 0, tiled.output
    with h5py.File("CMU-1-Small-Region.tiles.h5") as file:
        assert file["patches"].shape == (len(file["centres"]), 3, 224, 224, 3)


@pytest.mark.parametrize(
    ("what", "options", "says"),
    [
        ("data set", ["--pitch", "50"], "--pitch: a data set's spots are where they were measured"),
        ("data set", ["--layout", "hex", "--patches"], "--layout, --patches: a data set's spots"),
        ("data set", ["--min-tissue", "0.5", "--spots", "spots.csv"], "--spots, --min-tissue: a data set's spots"),
        ("slide", ["--min-tissue", "nan"], "--min-tissue nan: must lie between 0 and 1"),
        ("slide", ["--unlabelled", "10"], "--unlabelled: a slide has no measured spots"),
    ],
)
def test_options_that_would_do_nothing_are_refused(what, options, says, dataset, tiny_model_path):
    done = run("tile", dataset if what == "data set" else SLIDE, "-m", tiny_model_path, *options)
    assert done.exit_code == 2
    assert says in done.stderr
    assert not list(Path().iterdir())


def test_a_folder_of_slides_is_no_data_set(tiny_model_path):
    Path("slides").mkdir()
    Path("slides/a.svs").symlink_to(SLIDE)
    done = run("tile", "slides", "-m", tiny_model_path)
    assert done.exit_code == 2
    assert done.stderr.endswith("; for slides, name the files.\n")
