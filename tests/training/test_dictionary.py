from __future__ import annotations

from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import torch
from calls import run
from conftest import GENES, SLIDE, write_section
from PIL import Image

from stpredict.data.cutting import write_tiles
from stpredict.data.dataset import read_dataset
from stpredict.data.tiles import read_tiles
from stpredict.engines.eager import load_network
from stpredict.errors import UsageError
from stpredict.evaluation.assessment import check_training_patients
from stpredict.model.file import load_model
from stpredict.model.reference import length
from stpredict.model.show import show_card
from stpredict.result.file import read_result
from stpredict.training.dictionary import learn_windows, stride_at
from stpredict.training.preparation import fingerprint
from stpredict.training.programmes import N_PROGRAMMES

#: Fewer, and what they show would tell textures less well apart.
PATCH_PX = 112


@pytest.fixture(scope="module")
def dataset(small_dataset: Path) -> Path:
    return small_dataset


@pytest.fixture(scope="module")
def counts_only(coarse_region: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deep section of a third patient, whose image was lost."""
    folder = tmp_path_factory.mktemp("counts")
    write_section(folder, "C1", coarse_region, seed=7, mpp=1, depth=20)
    (folder / "C1.jpg").unlink()
    return folder


def train(source: Path, out: Path, *more: object):
    options = ["--arch", "dictionary", "--unlabelled", "40", "--threads", "1", "--min-depth", "1", *map(str, more)]
    return run("train", str(source), "-o", str(out), *options)


@pytest.fixture(scope="module")
def trained(dataset: Path, counts_only: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("run") / "words.safetensors"
    done = train(dataset, out, "--counts-only", counts_only)
    assert done.exit_code == 0, done.output
    return out, done


def test_the_card_says_how_it_was_fitted_and_how_good_it_is(trained):
    out, done = trained
    card = load_model(out).card
    assert card["architecture"] == "dictionary"
    assert set(GENES) <= set(card["panel"])
    training = card["training"]
    assert training["gene_programmes"] == N_PROGRAMMES
    assert training["counts_only_sections"] == ["C1"]
    assert training["counts_only_patients"] == ["C"]
    assert "of 1 section without images, of 1 patient" in "\n".join(show_card(load_model(out)))
    assert not {"epochs", "learning_rate", "teach_patches"} & set(training)
    assert [fold["name"] for fold in card["held_out"]] == ["A", "B"]
    for fold in card["held_out"]:
        assert "ridge on colour and texture" in fold["rows"]
        assert fold["validation"] == []
    assert "epochs" not in done.stderr
    assert "counts of 1 more sections, without images" in done.stderr


def test_what_the_head_reads_of_the_training_patches_is_usual(trained):
    out, _ = trained
    model, tiles = load_model(out), read_tiles(out.with_suffix(".run") / "dataset.tiles.h5")
    patches = tiles.read_patches(range(len(tiles.spot)))
    noise = np.random.default_rng(0).integers(0, 256, (8, *patches.shape[1:]), np.uint8)
    with torch.inference_mode():
        own, others = (load_network(model)(torch.from_numpy(some)).numpy() for some in (patches, noise))
    assert (length(own[:, len(model.panel) :]) <= 1).mean() > 0.95
    assert (length(others[:, len(model.panel) :]) > 1).all()


def test_patients_whose_counts_were_used_are_no_test(trained):
    card = load_model(trained[0]).card
    with pytest.raises(UsageError, match="C"):
        check_training_patients("words", card, np.array(["C"]), allow=False)
    assert check_training_patients("words", card, np.array(["D"]), allow=False) == []


def test_it_predicts_what_follows_the_image(trained, dataset: Path, tmp_path: Path):
    model = load_model(trained[0])
    write_tiles(read_dataset(dataset), tmp_path / "t.h5", patch_px=PATCH_PX, report=print)
    tiles = read_tiles(tmp_path / "t.h5")
    patches = tiles.read_patches(range(len(tiles.spot)))
    with torch.inference_mode():
        predicted = load_network(model)(torch.from_numpy(patches)).numpy()[:, : len(model.panel)]
    np.testing.assert_allclose(predicted.mean(axis=0), model.card["genes"]["training_mean"], atol=0.5)
    # In the data made for these tests the last gene's share rises with darkness and the first one's falls.
    dark = -patches.mean(axis=(1, 2, 3))
    first, last = (model.panel.index(gene) for gene in (GENES[0], GENES[-1]))
    assert np.corrcoef(predicted[:, last] - predicted[:, first], dark)[0, 1] > 0.5


def test_it_predicts_a_slide(trained, tmp_path: Path):
    done = run("predict", str(SLIDE), "-m", str(trained[0]), "--pitch", "200", "--engine", "eager", "-o", str(tmp_path))
    assert done.exit_code == 0, done.output
    assert len(read_result(tmp_path / "CMU-1-Small-Region.h5ad").genes) == len(load_model(trained[0]).panel)


def test_tissue_of_known_colours_but_another_texture_is_unusual(trained, coarse_region: np.ndarray, tmp_path: Path):
    rng, side = np.random.default_rng(0), 40
    height, width = (length // side for length in coarse_region.shape[:2])
    blocks = coarse_region[: height * side, : width * side].reshape(height, side, width, side, 3).swapaxes(1, 2)
    mixed = rng.permuted(blocks.reshape(height, width, side * side, 3), axis=2).reshape(blocks.shape)
    images = {"known": coarse_region, "mixed": mixed.swapaxes(1, 2).reshape(height * side, width * side, 3)}
    share = {}
    for name, pixels in images.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        arguments = [str(tmp_path / f"{name}.png"), "--mpp", "1", "-m", str(trained[0]), "-o", str(tmp_path)]
        done = run("predict", *arguments, "--engine", "eager")
        assert done.exit_code == 0, done.output
        share[name] = (anndata.read_h5ad(tmp_path / f"{name}.h5ad").obs["unusual"] > 1).mean()
    assert share["known"] < 0.2
    assert share["mixed"] > 0.5


def test_windows_are_whitened_and_the_same_each_time(dataset: Path, tmp_path: Path):
    write_tiles(read_dataset(dataset), tmp_path / "t.h5", patch_px=PATCH_PX, unlabelled=12, report=print)
    tiles = read_tiles(tmp_path / "t.h5")
    network, again = (learn_windows(tiles, ["A1", "B1"], 2, seed=0) for _ in range(2))
    for name, tensor in network.state_dict().items():
        if name != "head.weight" and name != "head.bias":
            torch.testing.assert_close(tensor, again.state_dict()[name], rtol=0, atol=0)
    patches = torch.from_numpy(tiles.read_patches(np.flatnonzero(tiles.unlabelled_section == "A1"), True))
    density = -torch.log((patches.permute(0, 3, 1, 2).float() + 1) / 256)
    with torch.inference_mode():
        white = network.whiten(density).transpose(0, 1).flatten(1)
    # Of variance one, but for the floor under what is mostly noise, and for the second section.
    assert 0.3 < white.var(dim=1).min() < white.var(dim=1).max() < 2


def test_the_papers_objective_has_no_programmes(dataset: Path, tmp_path: Path):
    done = train(dataset, tmp_path / "m.safetensors", "--objective", "mse", "--folds", "none")
    assert done.exit_code == 0, done.output
    card = load_model(tmp_path / "m.safetensors").card
    assert "counts_only_sections" not in card["training"]


def test_a_panel_of_one_gene_and_those_required_with_it(dataset: Path, tmp_path: Path):
    (tmp_path / "genes.txt").write_text("GNAS\n")
    one = train(dataset, tmp_path / "one.safetensors", "--genes-file", tmp_path / "genes.txt")
    assert one.exit_code == 0, one.output
    assert load_model(tmp_path / "one.safetensors").panel == ["GNAS"]
    two = train(
        dataset, tmp_path / "two.safetensors", "--genes-file", tmp_path / "genes.txt", "--genes-required", "DDX5",
        "--folds", "none",
    )  # fmt: skip
    assert two.exit_code == 0, two.output
    assert load_model(tmp_path / "two.safetensors").panel == ["GNAS", "DDX5"]
    refused = train(dataset, tmp_path / "m.safetensors", "--genes-file", tmp_path / "genes.txt", "--panel-size", "9")
    assert refused.exit_code == 2
    assert "--genes-file names the panel" in refused.stderr


def test_a_data_set_that_was_corrected_is_another(dataset: Path, tmp_path: Path):
    corrected = tmp_path / "sections.csv"
    corrected.write_text("section,patient\nA1,P1\n")
    before = fingerprint(tmp_path)
    corrected.write_text("section,patient\nA1,P2\n")
    assert fingerprint(tmp_path) != before
    write_tiles(read_dataset(dataset), tmp_path / "a.tiles.h5", patch_px=PATCH_PX, mpp=2.5, report=print)
    before = fingerprint(tmp_path / "a.tiles.h5")
    with h5py.File(tmp_path / "a.tiles.h5", "r+") as file:
        file.attrs["mpp"] = 2.4
    assert fingerprint(tmp_path / "a.tiles.h5") != before


def test_what_would_not_be_used_is_refused(dataset: Path, counts_only: Path, tmp_path: Path):
    out = tmp_path / "m.safetensors"
    refused = train(dataset, out, "--counts-only", counts_only, "--arch", "m2ort-small", "--teach", "ridge")
    assert refused.exit_code == 2
    assert "learns nothing from counts alone" in refused.stderr
    refused = train(dataset, out, "--counts-only", counts_only, "--objective", "mse")
    assert refused.exit_code == 2
    assert "--objective mse fits each gene by itself" in refused.stderr
    tiles = tmp_path / "x.tiles.h5"
    tiles.touch()
    refused = train(tiles, out, "--counts-only", counts_only)
    assert refused.exit_code == 2
    assert "already cut" in refused.stderr
    missing = train(dataset, out, "--counts-only", tmp_path / "nowhere")
    assert missing.exit_code == 2
    assert "nowhere: no such file or folder" in missing.stderr
    write_tiles(read_dataset(dataset), tiles, patch_px=PATCH_PX, mpp=2.5, report=print)
    refused = train(tiles, out, "--mpp", 2)
    assert refused.exit_code == 2
    assert "was cut at 2.5 um per pixel" in refused.stderr
    refused = train(dataset, out, "--objective", "nb")
    assert refused.exit_code == 2
    assert "--objective nb: a ridge head takes squared error alone; --head linear" in refused.stderr
    refused = train(dataset, out, "--epochs", 3, "--learning-rate", 0.1)
    assert refused.exit_code == 2
    assert "--epochs, --learning-rate: not for a dictionary" in refused.stderr


def test_windows_lie_as_many_um_apart_on_coarse_patches_as_on_fine_ones():
    assert [stride_at(mpp) for mpp in (0.25, 0.5, 0.69, 1.38, 2.8, 10.0)] == [3, 3, 3, 2, 1, 1]
