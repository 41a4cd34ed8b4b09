"""Papers' recipes: their optimisers and schedules, and what training by one leaves in the card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import run
from patch_networks import PATCH_PX, TINY
from torch import nn

from stpredict.data.cutting import write_tiles
from stpredict.data.dataset import read_dataset
from stpredict.data.tiles import read_tiles
from stpredict.errors import UsageError
from stpredict.model.file import load_model
from stpredict.networks import ARCHITECTURES, FITTED, architecture_config, make_network
from stpredict.statistics.normalisation import check_normalisation
from stpredict.statistics.objectives import check_objective
from stpredict.training.augmentation import augment
from stpredict.training.fit import predict_z
from stpredict.training.optimisers import make_optimiser, make_schedule
from stpredict.training.recipes import M2ORT_PAPER, OURS, PUBLISHED, find_recipe
from stpredict.training.settings import Settings, with_recipe


def test_every_network_has_its_papers_recipe_and_what_it_names_exists():
    assert set(PUBLISHED) == set(ARCHITECTURES) - set(FITTED)
    for recipe in (OURS, M2ORT_PAPER, *PUBLISHED.values()):
        check_objective(recipe.objective, recipe.smooth_labels)
        check_normalisation(recipe.normalisation)


@pytest.mark.parametrize(
    ("name", "architecture", "said"),
    [
        ("theirs", "stnet", "choose ours, published, m2ort-paper"),
        ("published", "dictionary", "fitted at once"),
        ("m2ort-paper", "encoder", "fitted at once"),
    ],
)
def test_recipes_that_are_none(name: str, architecture: str, said: str):
    with pytest.raises(UsageError, match=said):
        find_recipe(name, architecture)


def test_a_recipe_sets_the_settings_and_keeps_epochs_that_were_asked_for():
    asked = Settings("deepspace", epochs=2)
    adopted = with_recipe(asked, "published")
    assert (adopted.objective, adopted.batch_size, adopted.weight_decay) == ("smooth-l1", 128, 1e-4)
    assert (adopted.epochs, adopted.teach_patches, adopted.stain_jitter) == (2, 0, 0)
    assert with_recipe(replace(asked, epochs=Settings.epochs), "published").epochs == 10
    assert with_recipe(asked, "ours") == asked


def rates(how, epochs: int, steps: int) -> list[float]:
    """The learning rate of each step."""
    optimiser = make_optimiser(nn.Linear(1, 1), how, how.learning_rate, how.weight_decay)
    schedule = make_schedule(optimiser, how, how.learning_rate, steps, epochs)
    found = []
    for _ in range(epochs * steps):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return found


def test_schedules():
    triplex = rates(PUBLISHED["triplex"], 101, 2)
    assert triplex[:100] == [1e-4] * 100
    assert triplex[100:200] == pytest.approx([9e-5] * 100)
    assert triplex[200] == pytest.approx(8.1e-5)
    assert rates(M2ORT_PAPER, 3, 2) == [1e-4] * 6
    ours = rates(OURS, 5, 4)
    assert max(ours) == pytest.approx(1e-4, rel=0.02)
    assert ours[-1] < ours[0] < 1e-5


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (PUBLISHED["stnet"], 1 - 32e-6 * (2 + 2 + 0.9 * 2)),  # the second step has the first one's momentum
        (
            replace(OURS, weight_decay=0.5),
            (1 - 0.5e-4) * ((1 - 0.5e-4) - 1e-4) - 1e-4,
        ),  # decay beside the steps
        (PUBLISHED["deepspace"], 1 - 2e-4),
    ],
)
def test_two_steps_of_each_optimiser(how, expected: float):
    weight = nn.Linear(1, 1, bias=False)
    nn.init.ones_(weight.weight)
    optimiser = make_optimiser(weight, how, how.learning_rate, how.weight_decay)
    for _ in range(2):
        optimiser.zero_grad()
        weight.weight.grad = torch.full((1, 1), 2.0)
        optimiser.step()
    assert weight.weight.item() == pytest.approx(expected, abs=1e-7)


@pytest.fixture(scope="module")
def tiles(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiles") / "small.tiles.h5"
    sections = [section for section in read_dataset(dataset) if section.name != "A2"]
    write_tiles(sections, path, patch_px=PATCH_PX, mpp=2, threads=1, report=print)
    return path


def test_the_mean_over_turns_is_that_of_turned_patches(tiles: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(ARCHITECTURES, "stnet", TINY["stnet"])
    network = make_network(architecture_config("stnet", n_genes=3, patch_px=PATCH_PX)).eval()
    nn.init.normal_(network.head.weight)
    opened, rows = read_tiles(tiles), np.array([4, 1])
    patches = opened.read_patches(rows)
    with torch.inference_mode():
        each = [network(torch.from_numpy(augment(patches, np.full(2, code)))).double().numpy() for code in range(8)]
    found = predict_z(network, opened, rows, torch.device("cpu"), turns=8)
    np.testing.assert_allclose(found, np.mean(each, axis=0), atol=1e-6)
    assert abs(found - each[0]).max() > 1e-4


def test_the_card_says_which_recipe_trained_it(tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(ARCHITECTURES, "stnet", TINY["stnet"])
    out = tmp_path / "mine.safetensors"
    call = ("train", tiles, "-o", out, "--arch", "stnet", "--recipe", "published", "--epochs", 1, "--folds", "none",
            "--panel-size", 4, "--threads", 1)  # fmt: skip
    done = run(*call)
    assert done.exit_code == 0, done.output
    training = load_model(out).card["training"]
    assert training["recipe"]["optimiser"] == "sgd"
    assert (training["learning_rate"], training["batch_size"], training["epochs"]) == (32e-6, 32, 1)
    assert load_model(out).card["objective"] == "mse"
    assert "recipe: published, of ST-Net (He et al. 2020); ours: " in run("models", "show", out).stdout
    refused = run(*call, "--learning-rate", 1e-3)
    assert refused.exit_code == 2
    assert "--learning-rate: --recipe published has its own" in refused.output
    for more, said in (
        (("--teach", "ridge"), "--teach or --teach-...: --recipe published has its own"),
        (("--recipe", "ours", "--arch", "dictionary", "--teach", "ridge"), "--teach: not for a dictionary"),
        (("--recipe", "ours", "--arch", "histogene", "--teach", "ridge"), "leave --unlabelled, --teach, --teach-..."),
    ):
        refused = run(*call, *more)
        assert refused.exit_code == 2
        assert said in refused.output
