"""Networks that look at several views of a spot train, resume, predict and are evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import run
from patch_networks import PATCH_PX

from stpredict.data.cutting import write_tiles
from stpredict.data.dataset import read_dataset
from stpredict.data.tiles import read_tiles
from stpredict.model.file import load_model
from stpredict.networks import ARCHITECTURES
from stpredict.result.file import read_result
from stpredict.training.augmentation import augment, jitter_stain

TINY = {
    "network": "m2ost", "views": (1, 2, 4), "channels": 12, "depth": 1, "heads": 1, "head_dim": 12, "cross_heads": 1,
}  # fmt: skip
OPTIONS = (
    "--arch m2ost-tiny --epochs 2 --unlabelled 12 --teach-patches 12 --batch-size 16 --threads 1 --folds none "
    "--min-depth 1 --hold-out B1 --genes-required GNAS --panel-size 6"
)


@pytest.fixture(autouse=True)
def tiny_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "m2ost-tiny", TINY)


@pytest.fixture(scope="module")
def two_sections(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    for path in small_dataset.glob("*"):
        if path.name.startswith(("A1", "B1")):
            (folder / path.name).symlink_to(path)
    return folder


def train(source: Path, out: Path, *more: str):
    return run("train", str(source), "-o", str(out), *OPTIONS.split(), *more)


@pytest.fixture(scope="module")
def trained(two_sections: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "wide.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "m2ost-tiny", TINY)
        done = train(two_sections, out)
    assert done.exit_code == 0, done.output
    return out


def test_the_held_out_sections_scores_are_those_of_predicting_it(trained: Path, two_sections: Path, tmp_path: Path):
    model = load_model(trained)
    assert model.patch_shape == (3, PATCH_PX, PATCH_PX, 3)
    assert [fold["name"] for fold in model.card["held_out"]] == ["B1"]
    assert read_tiles(trained.with_suffix(".run") / "dataset.tiles.h5").views == (1, 2, 4)
    fold = trained.with_suffix(".run") / "fold-1"
    scores = json.loads((fold / "scores.json").read_text())
    section = read_dataset(two_sections)[1]
    spots = tmp_path / "spots.csv"
    np.savetxt(spots, section.centres, delimiter=",", header="x,y", comments="", fmt="%.6f")
    call = ["predict", section.image, "-m", fold / "model.safetensors", "--spots", spots, "--mpp", "1",
            "-o", tmp_path, "--engine", "eager", "--precision", "fp32"]  # fmt: skip
    done = run(*call)
    assert done.exit_code == 0, done.output
    from stpredict.statistics.metrics import depth_controlled_correlation

    result = read_result(tmp_path / f"{section.name}.h5ad")
    measured = [gene for gene in scores["panel"] if gene in section.genes]
    predicted = np.column_stack([result.expression(gene) for gene in measured])
    counts = section.counts.rows().toarray().astype(float)
    columns = [section.genes.index(gene) for gene in measured]
    correlation = depth_controlled_correlation(
        predicted, counts[:, columns], counts.sum(axis=1), np.full(len(counts), section.name)
    )
    reported = dict(zip(scores["panel"], scores["per_gene"]["correlation"], strict=True))
    # Weights are kept in fp16.
    np.testing.assert_allclose(correlation, [reported[gene] for gene in measured], atol=5e-3)


def test_a_killed_run_ends_as_if_undisturbed(trained: Path, two_sections: Path, tmp_path: Path, monkeypatch):
    import stpredict.training.fit as room

    real, out = room.Log.add, tmp_path / "wide.safetensors"

    def die(self, stage, epoch, *arguments):
        real(self, stage, epoch, *arguments)
        if stage == "teach" and "all" in str(self.path):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(room.Log, "add", die)
        assert train(two_sections, out).exit_code == 130
        assert not out.exists()
    assert train(two_sections, out).exit_code == 0
    whole, resumed = load_model(trained), load_model(out)
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(tensor, resumed.tensors[name])


def test_a_model_of_several_views_is_evaluated(trained: Path, two_sections: Path, tmp_path: Path):
    model = trained.with_suffix(".run") / "fold-1" / "model.safetensors"
    call = [
        "evaluate",
        str(model),
        str(two_sections),
        "--allow-patient-leak",
        "-o",
        str(tmp_path),
        "--min-depth",
        "1",
        "--threads",
        "1",
    ]
    done = run(*call)
    assert done.exit_code == 0, done.output
    assert "ridge on colour and texture" in done.output
    assert len(list(tmp_path.glob("*.html"))) == 1


def test_tiles_of_one_view_are_refused(two_sections: Path, trained: Path, tmp_path: Path):
    write_tiles(read_dataset(two_sections), tmp_path / "one.tiles.h5", patch_px=PATCH_PX, report=print)
    for command in (
        ["train", str(tmp_path / "one.tiles.h5"), "-o", str(tmp_path / "x.safetensors"), *OPTIONS.split()],
        ["evaluate", str(trained), str(tmp_path / "one.tiles.h5"), "-o", str(tmp_path), "--allow-patient-leak"],
    ):
        done = run(*command)
        assert done.exit_code == 2
        assert "holds patches of 1 times the field, the network looks at 1 and 2 and 4 times" in done.stderr


def test_the_views_of_a_spot_are_turned_and_stained_alike(region):
    patch = region[500:564, 900:964]
    stacks = np.stack([np.stack([patch] * 3)] * 8)
    turned = augment(stacks, np.arange(8))
    assert len({stack[0].tobytes() for stack in turned}) == 8
    torch.manual_seed(0)
    stained = jitter_stain(torch.from_numpy(turned), 0.1).numpy()
    for before, after in ((stacks, turned), (turned, stained)):
        for view in (1, 2):
            np.testing.assert_array_equal(after[:, view], after[:, 0])
        assert (after[1:] != before[1:]).any()
    np.testing.assert_array_equal(augment(stacks[:, 0], np.arange(8)), turned[:, 0])
    torch.manual_seed(0)
    np.testing.assert_array_equal(jitter_stain(torch.from_numpy(turned[:, 0]), 0.1).numpy(), stained[:, 0])
