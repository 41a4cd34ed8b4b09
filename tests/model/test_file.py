from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from conftest import make_model

from stpredict import DEFAULT_MODEL
from stpredict.engines.eager import load_network
from stpredict.errors import ModelFileError
from stpredict.model.file import find_model, list_models, load_model, save_model


def test_card_and_tensors_come_back(tiny_model_path: Path, tmp_path: Path):
    model = load_model(tiny_model_path)
    save_model(tmp_path / "m.safetensors", {**model.tensors, "extra": np.arange(6.0).reshape(2, 3)}, model.card)
    again = load_model(tmp_path / "m.safetensors")
    assert again.card == model.card
    assert again.name == "tiny"
    np.testing.assert_array_equal(again.tensors["extra"], [[0, 1, 2], [3, 4, 5]])
    assert len(again.sha256) == 64
    assert again.sha256 != model.sha256
    (tmp_path / "any").touch()
    assert (tmp_path / "m.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


@pytest.mark.parametrize(
    "change",
    [
        {"panel": 5}, {"panel": ["A"] * 8}, {"panel": []}, {"held_out": 5}, {"held_out": [{}]}, {"training": 3},
        {"mpp": "x"}, {"mpp": 1e9}, {"patch_px": 225}, {"spot_diameter_um": 1e9}, {"genes": {}},
        {"genes": {"training_mean": None, "training_spread": None, "display_range": [[1] * 8, [1] * 8]}},
        {"parameters": {"patch_px": 224, "channels": 10**9}},
        {"parameters": {"patch_px": 224, "depths": [1, 10**9]}},
        *({"name": name} for name in ("", ".hidden", "..", "../../x", "a/b", "a\\b", "C:x", "a\x1b[2Jb", "a\nb", 5)),
    ],
)  # fmt: skip
def test_cards_that_make_no_sense_are_refused(tmp_path: Path, change):
    path = make_model(tmp_path / "odd.safetensors", **change)
    with pytest.raises(ModelFileError, match=r"odd.safetensors: its card"):
        load_model(path)


def test_every_changed_byte_is_noticed(tiny_model_path: Path, tmp_path: Path):
    content = tiny_model_path.read_bytes()
    rng = np.random.default_rng(0)
    for position in [0, 9, 200, *rng.integers(0, len(content), 40)]:
        damaged = bytearray(content)
        damaged[position] ^= 0x55
        (tmp_path / "damaged.safetensors").write_bytes(damaged)
        with pytest.raises(ModelFileError, match=r"damaged.safetensors"):
            load_model(tmp_path / "damaged.safetensors")


@pytest.mark.parametrize("length", [0, 7, 1000, 30_000])
def test_truncated_files_are_refused(tiny_model_path: Path, tmp_path: Path, length: int):
    (tmp_path / "half.safetensors").write_bytes(tiny_model_path.read_bytes()[:length])
    with pytest.raises(ModelFileError, match=r"half.safetensors"):
        load_model(tmp_path / "half.safetensors")


def test_files_of_other_kinds_are_refused(tmp_path: Path):
    safetensors.numpy.save_file({"a": np.zeros(3)}, tmp_path / "plain.safetensors")
    with pytest.raises(ModelFileError, match="no model card"):
        load_model(tmp_path / "plain.safetensors")
    (tmp_path / "huge.safetensors").write_bytes((2 << 30).to_bytes(8, "little") + b"{}")
    with pytest.raises(ModelFileError, match="header"):
        load_model(tmp_path / "huge.safetensors")
    shutil.copy(Path(__file__).parents[1] / "data" / "m2ort_released_tiny.pth", tmp_path / "renamed.safetensors")
    with pytest.raises(ModelFileError, match="not a model file"):
        load_model(tmp_path / "renamed.safetensors")
    (tmp_path / "x.pth").write_bytes(b"x")
    with pytest.raises(ModelFileError, match="models import"):
        load_model(tmp_path / "x.pth")


def test_weights_that_do_not_fit_their_card_are_refused(tmp_path: Path):
    model = load_model(make_model(tmp_path / "wrong.safetensors"))
    fewer = {**model.tensors, "head.bias": model.tensors["head.bias"][:-1]}
    save_model(tmp_path / "wrong.safetensors", fewer, model.card)
    with pytest.raises(ModelFileError, match="do not fit its card"):
        load_network(load_model(tmp_path / "wrong.safetensors"))


def test_models_are_found_by_name_and_by_path(tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STPREDICT_MODELS", str(tiny_model_path.parent))
    assert find_model("tiny") == tiny_model_path
    assert find_model(str(tiny_model_path)) == tiny_model_path
    assert DEFAULT_MODEL in list_models()
    with pytest.raises(ModelFileError, match="nearest: tiny"):
        find_model("tinny")
    with pytest.raises(ModelFileError, match="no such model file"):
        find_model(str(tmp_path / "tiny.safetensors"))


@pytest.mark.parametrize("name", [DEFAULT_MODEL, "m2ort-small-her2st", "m2ort-quick-her2st"])
def test_shipped_models_keep_what_their_cards_promise(name: str):
    path = find_model(name)
    assert path.stat().st_size < 15e6
    model = load_model(path)
    assert {"GNAS", "DDX5", "BRD2", "ERBB2", "CLDN4", "KRT19", "FASN", "CD24", "COL1A1", "CD74"} <= set(model.panel)
    assert len(model.panel) >= 250
    folds = {(fold["kind"], fold["name"]) for fold in model.card["held_out"]}
    third = {("patient", "A")} if name == "m2ort-quick-her2st" else set()  # whose images the others cannot read
    assert folds == {("patient", "B"), ("patient", "C"), ("section", "C5"), *third}
    for fold in model.card["held_out"]:
        assert not set(fold["test"]) & set(fold["train"])
        assert fold["min_depth"] == 500
        assert {"training mean", "depth (true)", "depth (ridge)", "ridge on colour and texture", "model"} <= set(
            fold["rows"]
        )
    assert load_network(model).config.n_genes == len(model.panel)
