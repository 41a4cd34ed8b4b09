from __future__ import annotations

from dataclasses import replace

import anndata
import numpy as np
import pytest
import torch
from conftest import GENES, SLIDE
from predicting import EAGER, Killed, predict

from stpredict.batch.jobs import find_jobs
from stpredict.batch.slides import plan_slides
from stpredict.engines.eager import load_network
from stpredict.engines.engine import EngineRequest
from stpredict.errors import ResultError
from stpredict.prediction.one_slide import Request
from stpredict.prediction.shards import Shards
from stpredict.result.file import read_provenance, read_result
from stpredict.slides.raster import make_raster, read_patches
from stpredict.slides.slide import Mpp, open_slide
from stpredict.slides.symmetry import SYMMETRIES, turn


def test_turns_are_the_eight_of_the_square():
    patch = np.arange(5 * 5 * 3, dtype=np.uint8).reshape(5, 5, 3)
    turns = [turn(patch, code) for code in range(SYMMETRIES)]
    assert len({found.tobytes() for found in turns}) == 8
    np.testing.assert_array_equal(turns[0], patch)
    for found in turns:  # closed under what turns a patch
        again = {turn(found, code).tobytes() for code in range(SYMMETRIES)}
        assert again == {found.tobytes() for found in turns}
    batch = np.stack([patch, patch[::-1]])
    np.testing.assert_array_equal(turn(batch, 5)[1], turn(batch[1], 5))


@pytest.mark.parametrize("engine", ["eager", "openvino"])
def test_the_result_is_the_mean_of_all_turns_and_how_far_they_spread(tiny_model, tmp_path, engine):
    asked = {"genes": ("DDX5", "GNAS"), "pitch_um": 200.0, "tta": True}
    (outcome,) = predict(tiny_model, tmp_path, engine=EngineRequest(engine, "fp32", batch_size=16), **asked)
    table = anndata.read_h5ad(outcome.job.result)
    found = read_result(outcome.job.result)
    with open_slide(SLIDE) as slide:
        raster = make_raster(slide, Mpp(0.499, 0.499), 0.69)
        patches = np.zeros((len(found.spots), 224, 224, 3), np.uint8)
        for index, block in read_patches(raster, found.spots.centres, 224):
            patches[index] = block
    network = load_network(tiny_model)
    with torch.inference_mode():
        each = np.stack([network(torch.from_numpy(turn(patches, code))).numpy() for code in range(SYMMETRIES)])
    each = each[..., [GENES.index("DDX5"), GENES.index("GNAS")]]
    np.testing.assert_allclose(table.X, each.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(table.layers["spread"], each.std(axis=0), atol=1e-4)
    assert each.std(axis=0).max() > 0.01
    provenance = read_provenance(outcome.job.result)
    assert "not an uncertainty" in provenance["tta"]["spread"]
    assert provenance["settings"]["tta"] == 8


def test_a_killed_prediction_goes_on_in_all_turns_and_no_other_way(quick_model, tmp_path, monkeypatch):
    asked = {"genes": ("GNAS",), "pitch_um": 100.0}
    monkeypatch.setattr("stpredict.prediction.shards.SHARD_SPOTS", 32)
    (whole,) = predict(quick_model, tmp_path / "whole", tta=True, **asked)
    write = Shards.write

    def killed_at_the_second(self, shard, values):
        if shard:
            raise Killed
        write(self, shard, values)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Shards, "write", killed_at_the_second)
        predict(quick_model, tmp_path, tta=True, **asked)
    (refused,) = predict(quick_model, tmp_path, **asked)
    assert isinstance(refused.error, ResultError)
    assert "with tta instead of without" in str(refused.error)
    (again,) = predict(quick_model, tmp_path, tta=True, **asked)
    tables = [anndata.read_h5ad(one.job.result) for one in (whole, again)]
    np.testing.assert_array_equal(tables[0].X, tables[1].X)
    np.testing.assert_array_equal(tables[0].layers["spread"], tables[1].layers["spread"])


def test_a_model_that_knows_no_turns_is_not_called_stable(tiny_model, tmp_path, capsys):
    weight = {"head.weight": np.zeros_like(tiny_model.tensors["head.weight"])}
    model = replace(tiny_model, tensors={**tiny_model.tensors, **weight})
    (outcome,) = predict(model, tmp_path, genes=("GNAS",), pitch_um=200.0, tta=True)
    assert "the same for each flip and rotation" in capsys.readouterr().err
    assert "spread" not in anndata.read_h5ad(outcome.job.result).layers


def test_a_dry_run_knows_of_the_eight_passes(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("stpredict.batch.slides.spots_per_second", lambda *_: 10.0)
    jobs = find_jobs([str(SLIDE)], tmp_path, print)
    once, turned = (next(plan_slides(jobs, tiny_model, Request(engine=EAGER, tta=tta), print)) for tta in (False, True))
    assert turned.n_bytes - once.n_bytes == 2 * 4 * once.n_spots * len(tiny_model.panel)
    assert turned.seconds == pytest.approx(8 * once.seconds)
