"""HisToGene and Hist2ST, whose batches are sections, through the commands."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import run
from conftest import SLIDE
from held_out import check_reported_correlation

from stpredict.data.dataset import read_dataset
from stpredict.data.tiles import read_tiles
from stpredict.engines.eager import load_network, two_passes
from stpredict.model.file import load_model
from stpredict.networks import ARCHITECTURES
from stpredict.result.file import read_result
from stpredict.slides.neighbourhoods import grid_cells
from stpredict.training import fit as fitting
from stpredict.training import whole_sections
from stpredict.training.whole_sections import cells_of_sections, random_view

TINY = {
    "histogene-tiny": {"network": "histogene", "image_px": 56, "channels": 16, "depth": 1, "heads": 2, "head_dim": 8,
                       "mlp_dim": 16},
    "hist2st-tiny": {"network": "hist2st", "image_px": 56, "squares": 1, "channels": 4, "mixers": 1, "depth": 1,
                     "heads": 2, "head_dim": 8, "graph_depth": 2},
}  # fmt: skip
OPTIONS = "--epochs 2 --learning-rate 1e-3 --threads 1 --mpp 1 --min-depth 1"


@pytest.fixture(autouse=True)
def tiny_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, sizes in TINY.items():
        monkeypatch.setitem(ARCHITECTURES, name, sizes)


def train(source: Path, out: Path, architecture: str, *more: object):
    return run("train", source, "-o", out, "--arch", architecture, *OPTIONS.split(), *more)


@pytest.fixture(scope="module")
def dataset(small_dataset: Path) -> Path:
    return small_dataset


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory):
    """A HisToGene that was tested on each patient, and a Hist2ST of which nothing was held out."""
    folder, made = tmp_path_factory.mktemp("run"), {}
    with pytest.MonkeyPatch.context() as patch:
        for name, sizes in TINY.items():
            patch.setitem(ARCHITECTURES, name, sizes)
            done = train(dataset, folder / f"{name}.safetensors", name, "--folds",
                         "patient" if name == "histogene-tiny" else "none")  # fmt: skip
            assert done.exit_code == 0, done.output
            made[name] = folder / f"{name}.safetensors"
    return made


def test_a_card_says_how_it_was_trained_and_what_columns_it_learnt(trained, dataset: Path):
    model = load_model(trained["histogene-tiny"])
    assert {fold["name"] for fold in model.card["held_out"]} == {"A", "B"}
    assert model.card["architecture"] == "histogene-tiny"
    assert model.card["training"]["unlabelled_patches"] == 0
    parameters = model.card["parameters"]
    assert parameters["positions"] == 64
    extents = [np.ptp(grid_cells(s.centres, s.mpp, s.pitch_um), axis=0).max() for s in read_dataset(dataset)]
    assert parameters["learnt"] == 1 + max(extents)
    with (trained["histogene-tiny"].with_suffix(".run") / "all" / "log.csv").open() as file:
        assert {row["stage"] for row in csv.DictReader(file)} == {"train"}
    shown = run("models", "show", trained["hist2st-tiny"])
    assert shown.exit_code == 0
    assert "hist2st-tiny" in shown.stdout


def test_predicting_at_the_held_out_spots_gives_the_reported_correlation(trained, dataset: Path, tmp_path: Path):
    check_reported_correlation(trained["histogene-tiny"].with_suffix(".run") / "fold-2", dataset, tmp_path, 1)


@pytest.mark.parametrize("name", TINY)
def test_predict_render_and_evaluate(trained, dataset: Path, tmp_path: Path, name: str):
    slide, out = tmp_path / SLIDE.name, tmp_path / "out"
    shutil.copy(SLIDE, slide)
    done = run("predict", slide, "-m", trained[name], "-o", out, "--genes", "GNAS", "--pitch", 200, "--render")
    assert done.exit_code == 0, done.output
    result = read_result(out / f"{SLIDE.stem}.h5ad")
    assert result.provenance["engine"] == "eager"
    assert np.ptp(result.expression("GNAS")) > 0
    if name == "hist2st-tiny":  # which is what takes long
        scored = run("evaluate", trained[name], dataset, "--allow-patient-leak", "--min-depth", 1, "-o", out)
        assert scored.exit_code == 0, scored.output
        assert "model" in scored.stdout
    for more, said in (
        (("--engine", "openvino"), "looks at all spots of a slide at once, and runs in eager alone"),
        (("--precision", "bf16"), "needs fp32"), (("--tta",), "looks at the slide around them"),
    ):  # fmt: skip
        refused = run("predict", SLIDE, "-m", trained[name], "-o", tmp_path, *more)
        assert refused.exit_code == 2, refused.output
        assert said in refused.stderr


def test_a_killed_run_ends_as_if_undisturbed(trained, dataset: Path, tmp_path: Path, monkeypatch):
    out, real_add = tmp_path / "mine.safetensors", fitting.Log.add

    def die(self, stage, epoch, *arguments):
        real_add(self, stage, epoch, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fitting.Log, "add", die)
        assert train(dataset, out, "hist2st-tiny", "--folds", "none").exit_code == 130
    assert not out.exists()
    assert train(dataset, out, "hist2st-tiny", "--folds", "none").exit_code == 0
    whole, resumed = load_model(trained["hist2st-tiny"]), load_model(out)
    for name, tensor in whole.tensors.items():
        np.testing.assert_allclose(resumed.tensors[name], tensor, atol=2e-3, rtol=1e-3, err_msg=name)


def test_slides_with_more_columns_than_it_knows_are_refused_and_with_more_than_it_learnt_told(trained, tmp_path: Path):
    for pitch, code, said in ((40, 0, "it has learnt nothing"), (8, 1, "and the network knows 64")):
        close = tmp_path / f"{pitch}.safetensors"
        change_pitch(trained["histogene-tiny"], close, pitch)
        done = run("predict", SLIDE, "-m", close, "-o", tmp_path, "--pitch", 60, "--genes", "GNAS", "--overwrite")
        assert done.exit_code in (code, 2 * code), done.output
        assert said in done.stderr.replace("\n", " ")


def change_pitch(model: Path, out: Path, pitch: float) -> None:
    """The same network, whose grid's cells are so wide."""
    from stpredict.model.file import save_model

    found = load_model(model)
    save_model(out, found.tensors, {**found.card, "name": out.stem, "pitch_um": float(pitch)})


def test_who_stands_where_is_the_same_in_training_and_prediction(trained, dataset: Path):
    tiles = read_tiles(trained["histogene-tiny"].with_suffix(".run") / "dataset.tiles.h5")
    sections = read_dataset(dataset)
    cells = cells_of_sections(sections, tiles)
    passes = two_passes(load_network(load_model(trained["histogene-tiny"])), torch.device("cpu"))
    assert (passes.side, passes.positions) == (1, 64)
    for section in sections:
        own = cells[tiles.section == section.name]
        assert (own.min(axis=0) == 0).all()
        apart = np.round((section.centres - section.centres[0]) * section.mpp / section.pitch_um)[:, ::-1]
        np.testing.assert_array_equal(own - own[0], apart)


def test_a_section_too_large_to_be_trained_on_at_once_is_refused(dataset: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(whole_sections, "memory_of", lambda _device: 10**6)
    refused = train(dataset, tmp_path / "m.safetensors", "hist2st-tiny", "--folds", "none")
    assert refused.exit_code == 2
    assert "spots read one another, so that they are trained on at once" in refused.stderr.replace("\n", " ")


def test_views_turn_all_patches_of_a_section_alike():
    patches = torch.randint(0, 256, (1, 16, 16, 3), dtype=torch.uint8).expand(3, -1, -1, -1)
    torch.manual_seed(0)
    views = [random_view(patches) for _ in range(30)]
    assert all(torch.equal(view[0], view[2]) for view in views)
    assert any((view == view[..., :1]).all() for view in views)
    assert not all((view == view[..., :1]).all() for view in views)
    assert len({float(view.sum()) for view in views}) > 20


def test_what_does_not_apply_is_refused(trained, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tiles = trained["histogene-tiny"].with_suffix(".run") / "dataset.tiles.h5"
    for call, said in (
        ((tiles, "-o", tmp_path / "m.safetensors", "--arch", "histogene"), "looks at the slides around the spots"),
        ((dataset, "-o", tmp_path / "m.safetensors", "--arch", "hist2st", "--batch-size", 9), "section by section"),
        ((dataset, "-o", tmp_path / "m.safetensors", "--arch", "hist2st", "--unlabelled", 9), "measured spots alone"),
    ):
        refused = run("train", *call)
        assert refused.exit_code == 2, refused.output
        assert said in refused.stderr.replace("\n", " ")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = train(dataset, tmp_path / "m.safetensors", "hist2st-tiny")
    assert refused.exit_code == 2
    assert "several processes cannot divide it; leave torchrun out" in refused.stderr.replace("\n", " ")
