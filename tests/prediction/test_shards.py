from __future__ import annotations

import json
import time

import pytest
from predicting import Killed, interrupt, predict
from same_results import assert_same

from stpredict.model.file import load_model
from stpredict.prediction.shards import Shards, describe_difference
from stpredict.result.file import read_result
from stpredict.slides.raster import block_order


def test_an_interrupted_prediction_goes_on_and_ends_as_if_undisturbed(model_with_reference_path, tmp_path, monkeypatch):
    monkeypatch.setattr("stpredict.prediction.shards.SHARD_SPOTS", 32)
    model = load_model(model_with_reference_path)
    whole = predict(model, tmp_path / "whole", pitch_um=80.0)[0].job.result
    assert set(read_result(whole).quality) == {"unusual", "blurred", "pen", "fold", "pale"}
    write, count = Shards.write, 0

    def die_from_the_third(self, shard, expression):
        nonlocal count
        count += 1
        if count >= 3:
            raise Killed
        write(self, shard, expression)

    with monkeypatch.context() as patch:
        patch.setattr(Shards, "write", die_from_the_third)
        with pytest.raises(Killed):
            predict(model, tmp_path / "cut", pitch_um=80.0)
    target = tmp_path / "cut" / whole.name
    assert not target.exists()
    parts = target.with_name(target.name + ".parts")
    shards = sorted(parts.glob("*.npy"))
    assert len(shards) == 2
    shards[1].write_bytes(shards[1].read_bytes()[:-2])  # damaged: made again
    (refused,) = predict(model, tmp_path / "cut", pitch_um=70.0)
    assert "pitch_um 80.0 instead of 70.0" in str(refused.error)
    (resumed,) = predict(model, tmp_path / "cut", pitch_um=80.0)
    assert not parts.exists()
    assert_same(whole, resumed.job.result)


def test_shards_of_other_spots_are_not_taken_for_these(tiny_model, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            "stpredict.prediction.preparation.block_order", lambda raster, origins: block_order(raster, origins)[::-1]
        )
        interrupt(tiny_model, tmp_path, patch, pitch_um=100.0)
    (refused,) = predict(tiny_model, tmp_path, pitch_um=100.0)
    assert "the spots lie elsewhere or in another order" in str(refused.error)


def test_shards_of_an_earlier_layout_are_not_misread(tiny_model, tmp_path, monkeypatch):
    interrupt(tiny_model, tmp_path, monkeypatch, genes=("GNAS",))
    path = tmp_path / "CMU-1-Small-Region.h5ad.parts" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["columns"]
    path.write_text(json.dumps(manifest))
    (refused,) = predict(tiny_model, tmp_path, genes=("GNAS",))
    assert "another version of stpredict" in str(refused.error)
    (anew,) = predict(tiny_model, tmp_path, genes=("GNAS",), overwrite_before=time.time())
    assert anew.status == "done"


def test_overwrite_begins_anew_even_with_the_same_settings(tiny_model, tmp_path, monkeypatch):
    parts = tmp_path / "CMU-1-Small-Region.h5ad.parts"
    interrupt(tiny_model, tmp_path, monkeypatch, genes=("GNAS",))
    manifest = json.loads((parts / "manifest.json").read_text())
    (parts / "manifest.json").write_text(json.dumps({**manifest, "engine": ["abacus", "fp32", None]}))
    (parts / "mine.txt").write_text("not a shard")
    (refused,) = predict(tiny_model, tmp_path, genes=("GNAS",))
    assert "--overwrite begins anew" in str(refused.error)
    (again,) = predict(tiny_model, tmp_path, genes=("GNAS",), overwrite_before=time.time())
    assert again.status == "done"
    assert [path.name for path in parts.iterdir()] == ["mine.txt"]


def test_differences_are_described_in_words():
    assert describe_difference({"a": 1, "b": [1, 2]}, {"a": 2, "b": [1, 2]}) == "a 1 instead of 2"
    assert describe_difference({}, {"genes": ["A"]}) == "without genes instead of with"
    long, longer = [f"GENE{i}" for i in range(99)], [f"GENE{i}" for i in range(90)] + ["OTHER"] * 9
    assert describe_difference(
        {"panel": {"genes": long, "rule": "mean"}}, {"panel": {"genes": longer, "rule": "mean"}}
    ) == ("panel genes ...NE88,GENE89,GENE90,GENE91,GENE92,G... instead of ...NE88,GENE89,OTHER,OTHER,OTHER,OTHE...")
    assert describe_difference({"genes": long}, {"genes": long[:50]}).endswith(" instead of ...ENE48,GENE49")
