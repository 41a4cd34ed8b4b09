from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from calls import run
from scipy.optimize import minimize

from stpredict.data.tiles import read_tiles
from stpredict.model.file import load_model
from stpredict.statistics.objectives import OBJECTIVES, Objective, make_objective
from stpredict.training.linear_head import PENALTIES, USUAL_PENALTY, choose_penalty, fit_linear

CPU = torch.device("cpu")
N_SPOTS, N_GENES = 400, 5


def planted(strength: float, objective: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray, Objective]:
    """Features, the log of how expression varies with them (spots x genes), and an objective of counts drawn so.

    The last quarter of the spots are another section.
    """
    rng = np.random.default_rng(seed)
    features = rng.normal(3, [1, 2, 5, 1, 1, 1, 1, 1], (N_SPOTS, 8))
    signal = strength * (features[:, :2] - 3) @ rng.normal(0, 1, (2, N_GENES))
    depth = rng.uniform(500, 3000, N_SPOTS)
    counts = rng.poisson(depth[:, None] * 0.02 * np.exp(signal)).astype(float)
    section = np.repeat(["A", "A", "A", "B"], N_SPOTS // 4)
    return features, signal, make_objective(objective, counts, depth, section, np.ones(N_SPOTS, bool))


@pytest.mark.parametrize("name", ["residuals", "mse"])
def test_a_squared_error_is_solved_exactly(name: str):
    """As the normal equations have it, on standardised features."""
    features, _, objective = planted(0.3, name)
    rows, penalty = np.arange(50, 300), 0.7
    x = features[rows] - features[rows].mean(axis=0)
    x /= x.std(axis=0)
    y = objective.targets[rows] - objective.targets[rows].mean(axis=0)
    weight = np.linalg.solve(x.T @ x / len(x) + penalty * np.eye(8), x.T @ y / len(x))
    expected = x @ weight + objective.targets[rows].mean(axis=0)
    found = fit_linear(features[rows], rows, objective, penalty, CPU).predict(features[rows])
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("name", ["poisson", "nb"])
def test_a_likelihood_is_at_its_minimum(name: str):
    """Another optimiser, in other coordinates, finds no better."""
    features, _, objective = planted(0.3, name)
    rows, penalty = np.arange(N_SPOTS), 0.05
    standard = (features - features.mean(axis=0)) / features.std(axis=0)

    def penalised(weight: np.ndarray, bias: np.ndarray) -> float:
        z = torch.as_tensor(standard @ weight + bias)
        return float(objective.loss(z, torch.from_numpy(rows))) + penalty * (weight**2).sum() / N_GENES

    head = fit_linear(features, rows, objective, penalty, CPU)
    ours = penalised(head.weight, head.bias)
    other = minimize(lambda p: penalised(p[:-N_GENES].reshape(8, N_GENES), p[-N_GENES:]), np.zeros(9 * N_GENES))
    assert ours == pytest.approx(other.fun, abs=1e-4)
    assert penalised(np.zeros((8, N_GENES)), np.zeros(N_GENES)) > ours + 0.1


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_planted_signal_is_found_and_none_is_made_up(name: str):
    for strength in (0.3, 0.0):
        features, signal, objective = planted(strength, name)
        rows, tested = np.arange(300), np.repeat([False, True], [200, 100])
        penalty = choose_penalty(features[:300], rows, tested, objective, CPU)
        predicted = objective.expression(fit_linear(features[:300], rows, objective, penalty, CPU).predict(features))
        held_out = predicted[300:]
        if strength:
            assert penalty < 1
            correlation = [np.corrcoef(held_out[:, g], signal[300:, g])[0, 1] for g in range(N_GENES)]
            assert min(correlation) > 0.95
        else:
            assert penalty >= 1
            assert held_out.std(axis=0).max() < 0.05


def test_the_penalty_is_not_told_of_spots_that_are_not_tested_or_trained_on():
    features, _, objective = planted(0.3, "residuals")
    rows = np.arange(300)
    assert choose_penalty(features[:300], rows, np.zeros(300, bool), objective, CPU) == USUAL_PENALTY
    objective.targets[300:] = np.nan
    tested = np.repeat([False, True], [200, 100])
    assert choose_penalty(features[:300], rows, tested, objective, CPU) in PENALTIES


@pytest.mark.parametrize("name", ["residuals", "nb"])
def test_genes_of_some_spots_are_fitted_as_if_there_were_no_others(name: str):
    """Gene 0 was measured in section A alone, gene 4 nowhere."""
    features, signal, whole = planted(0.3, name)
    rng = np.random.default_rng(0)
    depth = rng.uniform(500, 3000, N_SPOTS)
    counts = rng.poisson(depth[:, None] * 0.02 * np.exp(signal)).astype(float)
    section, rows, fit = np.repeat(["A", "A", "A", "B"], N_SPOTS // 4), np.arange(N_SPOTS), np.ones(N_SPOTS, bool)
    own = section == "A"
    alone = make_objective(name, counts[own], depth[own], section[own], fit[own])
    expected = fit_linear(features[own], rows[own], alone, 0.1, CPU).predict(features)
    counts[~own, 0], counts[:, 4] = np.nan, np.nan
    partly = make_objective(name, counts, depth, section, fit)
    found = fit_linear(features, rows, partly, 0.1, CPU).predict(features)
    np.testing.assert_allclose(found[:, 0], expected[:, 0], atol=5e-3)
    assert (found[:, 4] == 0).all()
    assert np.corrcoef(found[:, 1], signal[:, 1])[0, 1] > 0.95
    assert choose_penalty(features, rows, ~own, partly, CPU) in PENALTIES
    assert whole.targets.shape == partly.targets.shape


@pytest.fixture(scope="module")
def trained(dataset: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("run") / "mine.safetensors"
    options = ("--mpp", "0.69", "--min-depth", "1", "--threads", "1")
    done = run("train", dataset, "-o", out, "--encoder", encoder, "--head", "linear", "--objective", "nb", *options)
    assert done.exit_code == 0, done.output
    return out, done


def test_card_and_folds_of_a_linear_head(trained):
    out, done = trained
    card = load_model(out).card
    training = card["training"]
    assert (training["head"], training["objective"]) == ("linear", "nb")
    assert training["penalty"] in PENALTIES
    assert "gene_programmes" not in training
    assert [(fold["train"], fold["validation"]) for fold in card["held_out"]] == [
        (["B1"], []),  # one section, and nothing to choose on
        (["A1", "A2"], ["A2"]),
    ]
    folds = [load_model(out.with_suffix(".run") / f"fold-{n}" / "model.safetensors").card["training"] for n in (1, 2)]
    assert folds[0]["penalty"] == USUAL_PENALTY
    assert "train on A1, A2, penalty chosen on A2" in done.stderr
    assert not any("leak" in fold for fold in card["held_out"])


def test_both_heads_learn_what_brightness_tells(trained, encoder: Path, tmp_path: Path):
    """The counts of the data set follow the brightness of the image, which the encoder's features hold."""
    tiles, out = trained[0].with_suffix(".run") / "dataset.tiles.h5", tmp_path / "ridge.safetensors"
    options = ("--mpp", "0.69", "--min-depth", "1", "--threads", "1")
    done = run("train", tiles, "-o", out, "--encoder", encoder, *options)
    assert done.exit_code == 0, done.output
    for model in (trained[0], out):
        fold = load_model(model).card["held_out"][1]
        assert fold["rows"]["model"]["depth_controlled"] > 0.3, model
    assert load_model(out).card["training"]["head"] == "ridge"
    assert set(read_tiles(tiles).section) == {"A1", "A2", "B1"}


def test_another_head_is_another_run(trained, dataset: Path, encoder: Path):
    again = run("train", dataset, "-o", trained[0], "--encoder", encoder, "--mpp", "0.69", "--min-depth", "1")
    assert again.exit_code == 1
    assert "head" in again.stderr


def test_a_protocol_that_chooses_on_the_test_says_so_of_the_penalty(trained, encoder: Path, tmp_path: Path):
    tiles = trained[0].with_suffix(".run") / "dataset.tiles.h5"
    out = tmp_path / "mine.safetensors"
    call = ("train", tiles, "-o", out, "--encoder", encoder, "--mpp", "0.69", "--protocol", "triplex", "--threads", "1")
    done = run(*call, "--head", "linear")
    assert done.exit_code == 0, done.output
    assert all(fold["leak"] and fold["validation"] == fold["test"] for fold in load_model(out).card["held_out"])


def test_a_dictionary_may_have_one_and_other_networks_have_no_choice(trained, tmp_path: Path):
    tiles, out = trained[0].with_suffix(".run") / "dataset.tiles.h5", tmp_path / "mine.safetensors"
    call = ("train", tiles, "-o", out, "--min-depth", "1", "--threads", "1")
    for more, said in (
        (("--head", "linear"), "--head linear: m2ort-small:depth=2:pool=mean:pixels=density has a head of its own"),
        (("--arch", "dictionary", "--head", "deep"), "--head deep: choose from ridge, linear"),
        (("--arch", "dictionary", "--head", "linear", "--counts-only", tmp_path), "learns nothing from counts"),
        (("--arch", "dictionary", "--head", "ridge", "--objective", "poisson"), "--head linear"),
        (("--arch", "dictionary", "--head", "linear", "--epochs", "3"), "--epochs: not for a dictionary"),
    ):
        refused = run(*call, *more)
        assert refused.exit_code == 2, refused.output
        assert said in refused.stderr
    done = run(*call, "--arch", "dictionary", "--head", "linear", "--objective", "poisson", "--folds", "none")
    assert done.exit_code == 0, done.output
    training = load_model(out).card["training"]
    assert training["head"] == "linear"
    assert training["penalty"] in PENALTIES
