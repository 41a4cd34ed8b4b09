"""What is trained on so many spots that their targets are computed when they are needed is what few would give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from calls import run

from stpredict.data.tiles import Tiles
from stpredict.model.file import load_model
from stpredict.storage.rows_on_disk import RowsOnDisk

pytestmark = pytest.mark.usefixtures("tiny_architecture")

BLEEP = "bleep:nearest=5:projection=8:trunk=resnet18:trunk_width=2"
EGN = "egn:exemplars=3:channels=16:depth=2:heads=2:mlp_dim=16:bridge_heads=2:bridge_dim=4:trunk=resnet18:trunk_width=2"
EPOCHS = "--epochs 1 --batch-size 16 --panel-size 6"
TAUGHT = f"{EPOCHS} --unlabelled 24 --teach-patches 24"
#: Options, and how many tables are kept on disk.
WAYS = {
    "dictionary-mse": ("--arch dictionary --objective mse", 0),
    "dictionary-smooth": ("--arch dictionary --smooth-labels", 0),
    "dictionary-panel": ("--arch dictionary --normalisation panel", 0),
    "linear-panel": ("--arch dictionary --head linear --normalisation panel", 1),
    "linear-poisson": ("--arch dictionary --head linear --objective poisson", 1),
    "m2ort-dense": (f"--arch m2ort-tiny:pool=mean:pixels=density {TAUGHT}", 1),
    "m2ort-ridge": (f"--arch m2ort-tiny --teach ridge --objective standardised-mse --smooth-labels {TAUGHT}", 1),
    "bleep": (f"--arch {BLEEP} --unlabelled 0 {EPOCHS}", 2),
    "egn": (f"--arch {EGN} --unlabelled 0 {EPOCHS}", 1),
}


@pytest.mark.parametrize("way", WAYS)
def test_it_gives_the_same_model(way: str, small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    how, n_tables = WAYS[way]
    for name in ("training.programmes.STRENGTHS", "evaluation.baselines.ALPHAS"):
        monkeypatch.setattr(f"stpredict.{name}", np.array([100.0]))
    call = ("train", small_dataset, *how.split(), "--threads", "1", "--min-depth", "1", "--folds", "none")
    call = (*call, "--hold-out", "B1", "-o") if way == "dictionary-smooth" else (*call, "-o")
    done = run(*call, tmp_path / "all.safetensors")
    assert done.exit_code == 0, done.output

    monkeypatch.setattr("stpredict.training.head_sums.FEW_SPOTS", 5)
    monkeypatch.setattr("stpredict.training.head_sums.SPOTS_PER_FEATURE", 0)
    monkeypatch.setattr("stpredict.training.panel_counts.SMALL_TARGETS", 0)
    panel_counts, tables = Tiles.panel_counts, list[RowsOnDisk]()

    def of_some(tiles: Tiles, panel: list[str], index: np.ndarray | None = None) -> np.ndarray:
        assert index is not None, "all counts of the panel at once"
        return panel_counts(tiles, panel, index)

    read_rows = RowsOnDisk.__getitem__

    def noted(rows: RowsOnDisk, index: object) -> np.ndarray:
        if all(rows is not known for known in tables):
            tables.append(rows)
        return read_rows(rows, index)

    monkeypatch.setattr(Tiles, "panel_counts", of_some)
    monkeypatch.setattr(RowsOnDisk, "__getitem__", noted)
    done = run(*call, tmp_path / "read.safetensors")
    assert done.exit_code == 0, done.output
    assert len(tables) == n_tables
    whole, read = (load_model(tmp_path / f"{name}.safetensors") for name in ("all", "read"))
    assert whole.tensors.keys() == read.tensors.keys()
    for name, tensor in whole.tensors.items():
        np.testing.assert_allclose(tensor, read.tensors[name], rtol=2e-3, atol=2e-3)
    assert whole.card["panel"] == read.card["panel"]
