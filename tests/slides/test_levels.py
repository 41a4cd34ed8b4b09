"""A damaged level is read no more, aloud; finer ones hold the same tissue. Damage of the finest is an error."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from calls import run

from stpredict.batch.jobs import find_jobs
from stpredict.batch.slides import predict_slides
from stpredict.engines.engine import EngineRequest
from stpredict.errors import SlideError
from stpredict.prediction.one_slide import Request
from stpredict.result.file import read_provenance, read_result
from stpredict.slides.overview import make_overview
from stpredict.slides.raster import make_raster
from stpredict.slides.slide import Mpp, open_slide

#: The tiny model's pixels are twice as large.
MPP = (0.345, 0.345)
KINDS = ["deflate", "jpeg", "deep"]


def pyramid(path: Path, image: np.ndarray, kind: str, steps: tuple[int, ...] = (1, 2, 4)) -> Path:
    compression = {"compression": "jpeg", "compressionargs": {"level": 90, "outcolorspace": "rgb"}}
    with tifffile.TiffWriter(path) as tiff:
        for step in steps:
            level = np.ascontiguousarray(image[::step, ::step])
            tiff.write(
                level.astype(np.uint16) * 257 if kind == "deep" else level, tile=(256, 256),
                photometric="rgb", metadata=None, subfiletype=int(step > 1),
                resolution=(1e4 / MPP[0], 1e4 / MPP[1]), resolutionunit="CENTIMETER",
                **(compression if kind == "jpeg" else {"compression": "deflate"}),
            )  # fmt: skip
    return path


def damage(path: Path, level: int, tile: int = -1) -> Path:
    """Make one tile of a level undecodable; the last one by default."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[level]
        offset, size = page.dataoffsets[tile], page.databytecounts[tile]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(size))
    return path


@pytest.fixture(scope="module")
def image(region) -> np.ndarray:
    return np.ascontiguousarray(region[400:2448, 60:2108])


@pytest.mark.parametrize("kind", KINDS)
def test_an_overview_is_of_the_next_level_that_can_be_decoded(tmp_path, image, kind):
    whole = pyramid(tmp_path / "whole.tif", image, kind)
    damaged = damage(pyramid(tmp_path / "damaged.tif", image, kind), 2, 0)
    lacking = pyramid(tmp_path / "lacking.tif", image, kind, (1, 2))
    with open_slide(whole) as slide:
        make_overview(slide, 100, 100)
        assert not slide.notes
    with open_slide(damaged) as slide, open_slide(lacking) as other:
        np.testing.assert_array_equal(make_overview(slide, 100, 100), make_overview(other, 100, 100))
        assert slide.unreadable == {2}
        assert [note.split(";")[0] for note in slide.notes] == ["level 2 is damaged and cannot be decoded"]
        assert make_raster(slide, Mpp(*MPP), 4 * MPP[0]).level == 1
        np.testing.assert_array_equal(slide.read(0, 0, 0, 99, 99), other.read(0, 0, 0, 99, 99))


@pytest.mark.parametrize("kind", KINDS)
def test_damage_of_the_finest_level_is_an_error(tmp_path, image, kind):
    path = damage(pyramid(tmp_path / "damaged.tif", image, kind, (1,)), 0)
    with pytest.raises(SlideError, match=r"damaged\.tif"), open_slide(path) as slide:
        make_overview(slide, 100, 100)


def predict(path: Path, out: Path, model, interrupt: bool = False):
    """Predict a slide, or some of it after it was begun anew."""

    def progress(_job, done: int, _total: int) -> None:
        if interrupt and done >= 24 and "left_out" in (out / "damaged.h5ad.parts" / "manifest.json").read_text():
            raise KeyboardInterrupt

    request = Request(genes=["GNAS"], pitch_um=80, min_tissue=0, engine=EngineRequest("eager", "fp32", batch_size=8))
    (outcome,) = predict_slides(find_jobs([str(path)], out, print), model, request, print, progress)
    assert outcome.status == "done", outcome.error
    return read_result(outcome.job.result)


def test_a_slide_is_predicted_from_one_level_wherever_it_was_interrupted(
    tmp_path, image, tiny_model, monkeypatch, capsys
):
    monkeypatch.setattr("stpredict.prediction.shards.SHARD_SPOTS", 16)
    monkeypatch.setattr("stpredict.prediction.preparation.N_SAMPLE", 1)  # the first, in which no damage is
    damaged = damage(pyramid(tmp_path / "damaged.tif", image, "jpeg"), 1, tile=10)
    lacking = predict(pyramid(tmp_path / "lacking.tif", image, "jpeg", (1, 4)), tmp_path / "lacking", tiny_model)
    once = predict(damaged, tmp_path / "once", tiny_model)
    assert capsys.readouterr().err.count("level 1 is damaged and cannot be decoded") == 1
    assert once.provenance["raster"]["level"] == 0
    assert once.provenance["raster"]["unreadable_levels"] == [1]
    assert "unreadable_levels" not in lacking.provenance["raster"]
    np.testing.assert_array_equal(once.spots.centres, lacking.spots.centres)
    np.testing.assert_array_equal(once.expression("GNAS"), lacking.expression("GNAS"))
    out = tmp_path / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        predict(damaged, out, tiny_model, interrupt=True)
    assert json.loads((out / "damaged.h5ad.parts" / "manifest.json").read_text())["left_out"] == [1]
    genes = range(len(once.genes))
    assert predict(damaged, out, tiny_model).digest_of(genes) == once.digest_of(genes)
    assert not list(out.glob("*.parts"))


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_tile_and_predict_tell_it_once(tmp_path, image, tiny_model_path):
    path = damage(pyramid(tmp_path / "damaged.tif", image, "jpeg"), 1)
    for command in (("predict", "--genes", "GNAS", "--engine", "eager"), ("tile", "--patches")):
        done = run(command[0], path, "-m", tiny_model_path, *command[1:])
        assert done.exit_code == 0, done.output
        assert done.stderr.count("level 1 is damaged and cannot be decoded; a finer level is read in its place") == 1
    assert read_provenance(Path("damaged.h5ad"))["raster"]["level"] == 0
    with h5py.File("damaged.tiles.h5") as file:
        assert (file["patches"][:].reshape(len(file["patches"]), -1).min(axis=1) < 250).all()
