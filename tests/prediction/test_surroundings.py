from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GENES, SLIDE, make_model

from stpredict.batch.jobs import find_jobs
from stpredict.batch.shared_slide import help_slide
from stpredict.batch.slides import Warm, plan_slides, predict_slides
from stpredict.engines.eager import load_network
from stpredict.engines.engine import EngineRequest
from stpredict.model.file import load_model
from stpredict.networks.triplex import TARGET, TriplexConfig
from stpredict.prediction import shards, surroundings
from stpredict.prediction.request import Request
from stpredict.result.file import read_result
from stpredict.slides.neighbourhoods import find_neighbourhoods
from stpredict.slides.raster import make_raster, read_patches
from stpredict.slides.slide import Mpp, open_slide

CONFIG = TriplexConfig(
    n_genes=len(GENES), channels=8, fusion_heads=2, global_depth=2, global_heads=2, neighbour_depth=1,
    neighbour_heads=2, trunk_width=2, link="softplus",
)  # fmt: skip
ON_CPU = EngineRequest("eager", device="cpu", batch_size=16)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "triplex.safetensors"
    return load_model(make_model(path, config=CONFIG, architecture="triplex-tiny"))


@pytest.fixture
def small_files(monkeypatch):
    monkeypatch.setattr(surroundings, "FILE_PATCHES", 100)
    monkeypatch.setattr(shards, "SHARD_SPOTS", 16)


def predict(model, out: Path, progress=lambda job, done, total: None, **request):  # noqa: ARG005
    jobs = find_jobs([str(SLIDE)], out, print)
    return list(predict_slides(jobs, model, Request(engine=ON_CPU, pitch_um=200.0, **request), print, progress))


@pytest.fixture(scope="module")
def result(model, tmp_path_factory):
    told: list[int] = []

    def progress(_job, done: int, total: int) -> None:
        assert done <= total
        told.append(done)

    (outcome,) = predict(model, tmp_path_factory.mktemp("out"), progress)
    assert outcome.status == "done"
    assert told == sorted(told)
    assert told[-1] == outcome.n_spots
    assert outcome.seconds["surroundings"] > 0
    return outcome.job.result


def test_expression_is_what_the_network_says_of_each_spot_among_all(model, result):
    found, network = read_result(result), load_network(model)
    with open_slide(SLIDE) as slide:
        raster = make_raster(slide, Mpp(0.499, 0.499), 0.69)
        around = find_neighbourhoods(raster, found.spots.centres, 224, 5, Mpp(0.499, 0.499), 200.0)
        patches = np.zeros((len(around.centres), 224, 224, 3), np.uint8)
        for index, block in read_patches(raster, around.centres, 224):
            patches[index] = block
    with torch.inference_mode():
        features = network.describe(torch.from_numpy(patches))
        neighbours, absent = features[around.patch_of], torch.from_numpy(around.patch_of < 0)
        cells = np.column_stack([found.spots.row, found.spots.column])
        own = around.patch_of[:, TARGET]
        tokens = network.global_tokens(features[own], torch.from_numpy(cells))
        expected = network.read_spots(torch.from_numpy(patches[own]), neighbours, absent, tokens).numpy()
    for i, gene in enumerate(GENES):
        np.testing.assert_allclose(found.expression(gene), expected[:, i], atol=1e-4)
    assert absent.any()


def test_nothing_is_left_but_the_result(result):
    assert [path.name for path in result.parent.iterdir()] == [result.name]


@pytest.mark.parametrize("cut", ["first", "second"])
@pytest.mark.usefixtures("small_files")
def test_it_goes_on_in_either_pass(model, result, tmp_path, monkeypatch, cut):
    real_write = shards.write_array
    written: list[str] = []
    dies_after = {"first": "features-000001.npy", "second": "000001-"}[cut]

    def write(path: Path, values) -> None:
        real_write(path, values)
        written.append(path.name)
        if dies_after and path.name.startswith(dies_after):
            raise KeyboardInterrupt

    for room in (shards, surroundings):
        monkeypatch.setattr(room, "write_array", write)
    with pytest.raises(KeyboardInterrupt):
        predict(model, tmp_path)
    assert (tmp_path / f"{result.name}.parts").is_dir()
    before = list(written)
    dies_after = ""
    (outcome,) = predict(model, tmp_path)
    again = written[len(before) :]
    assert not set(before) & set(again)  # what was there was not made again
    assert "features-000000.npy" in before
    one, other = read_result(outcome.job.result), read_result(result)
    for gene in GENES:
        np.testing.assert_allclose(one.expression(gene), other.expression(gene), atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == [result.name]


@pytest.mark.usefixtures("small_files")
def test_damaged_features_are_made_again(model, result, tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shards.Shards, "write", die)
        predict(model, tmp_path)
    damaged = tmp_path / f"{result.name}.parts" / "features-000001.npy"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    (outcome,) = predict(model, tmp_path)
    one, other = read_result(outcome.job.result), read_result(result)
    np.testing.assert_allclose(one.expression("GNAS"), other.expression("GNAS"), atol=1e-5)


def test_nobody_helps_with_it(model, tmp_path, monkeypatch):
    monkeypatch.setattr("stpredict.batch.shared_slide.prepare_slide", None)
    (job,) = find_jobs([str(SLIDE)], tmp_path, print)
    help_slide(job, Warm(model), Request(engine=ON_CPU), print)
    assert not list(tmp_path.iterdir())


def test_a_plan_counts_the_patches_around(model, tiny_model, tmp_path):
    jobs, request = find_jobs([str(SLIDE)], tmp_path, print), Request(engine=ON_CPU, pitch_um=200.0)
    plan, plain = (next(plan_slides(jobs, one, request, print)) for one in (model, tiny_model))
    assert plan.n_spots == plain.n_spots
    patches = (plan.n_bytes - plain.n_bytes) / (16 * 2)
    assert 10 * plan.n_spots < patches <= 25 * plan.n_spots
