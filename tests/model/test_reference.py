"""What a network's head reads of patches, compared with what it read of those that it was trained on."""

from __future__ import annotations

import numpy as np
import pytest
from results_to_draw import predict

from stpredict.errors import ModelFileError
from stpredict.model.file import REFERENCE_BIAS, REFERENCE_WEIGHT, load_model, save_model
from stpredict.model.reference import UNUSUAL_QUANTILE, make_feature_reference, parts_left_out, unusual


def features(n: int, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    """Thirty features in which five vary."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 5)) + shift) @ np.random.default_rng(9).normal(size=(5, 30))


def with_reference(model, path, weight, bias):
    tensors = {REFERENCE_WEIGHT: weight.astype(np.float32), REFERENCE_BIAS: bias.astype(np.float32)}
    save_model(path, {**model.tensors, **tensors}, model.card)
    return load_model(path)


def test_the_bound_is_what_parts_left_out_reach():
    part = np.repeat([0, 1], 200)
    alike = make_feature_reference(features(400), part)
    assert 0.97 <= (unusual(features(2000, seed=1), alike) <= 1).mean() < 1
    assert (unusual(features(50, shift=8), alike) > 1).all()
    # Where parts differ, other sections or patients may differ as much.
    apart = make_feature_reference(np.concatenate([features(200), features(200, shift=8, seed=1)]), part)
    assert (unusual(features(50, shift=8), apart) < 1).all()


def test_each_part_is_measured_by_the_directions_of_all_others():
    read, part = np.random.default_rng(3).normal(40, 5, (90, 12)) * np.arange(1, 13), np.arange(90) % 3

    def distance(values, others):
        _, spread, directions = np.linalg.svd(others - others.mean(axis=0), full_matrices=False)
        return np.linalg.norm((values - others.mean(axis=0)) @ directions.T / spread * np.sqrt(len(others) - 1), axis=1)

    bound = np.quantile(
        np.concatenate([distance(read[part == p], read[part != p]) for p in range(3)]), UNUSUAL_QUANTILE
    )
    new = np.random.default_rng(4).normal(40, 9, (20, 12))
    np.testing.assert_allclose(unusual(new, make_feature_reference(read, part)), distance(new, read) / bound)


def test_the_widest_directions_are_those_that_many_features_have(monkeypatch: pytest.MonkeyPatch):
    """Of 40 features the five widest directions, in each of seven parts."""
    monkeypatch.setattr("stpredict.model.reference.N_DIRECTIONS", 5)
    rng = np.random.default_rng(5)
    read, part = rng.normal(size=(210, 40)) * np.geomspace(8, 1, 40) + 3, np.arange(210) % 7

    def distance(values, others):
        variance, directions = np.linalg.eigh(np.cov(others.T))
        away = (values - others.mean(axis=0)) @ directions[:, -5:]
        return np.linalg.norm(away / np.sqrt(variance[-5:]), axis=1)

    far = np.concatenate([distance(read[part == p], read[part != p]) for p in range(7)])
    found = make_feature_reference(read, part)
    assert found is not None
    assert found.whitening.shape == (40, 5)
    np.testing.assert_allclose(unusual(read, found), distance(read, read) / np.quantile(far, UNUSUAL_QUANTILE))


def test_of_features_that_are_not_finite_there_is_no_finite_reference(tiny_model, tmp_path):
    read = features(60)
    read[3, 4] = np.inf
    found = make_feature_reference(read, np.arange(60) % 3)
    assert found is not None
    with pytest.raises(ModelFileError):
        width = tiny_model.tensors["head.weight"].shape[1]
        weight = np.resize(found.whitening.T, (len(found.whitening.T), width))
        with_reference(tiny_model, tmp_path / "m.safetensors", weight, found.mean @ found.whitening)


def test_patients_are_left_out_or_sections_or_fifths_of_one():
    patient, section = np.repeat(["A", "B", "C"], 20), np.repeat(["A1", "A2", "B1", "B2", "C1", "C2"], 10)
    np.testing.assert_array_equal(parts_left_out(patient, section), np.repeat([0, 1, 2], 20))
    np.testing.assert_array_equal(parts_left_out(patient[:40], section[:40]), np.repeat([0, 1, 2, 3], 10))
    np.testing.assert_array_equal(parts_left_out(patient[:10], section[:10]), np.repeat([0, 1, 2, 3, 4], 2))
    # Leaving nearly everything out would leave no reference.
    uneven = np.array(["A1"] * 45 + ["A2"] * 5)
    np.testing.assert_array_equal(parts_left_out(np.repeat("A", 50), uneven), np.repeat([0, 1, 2, 3, 4], 10))


def test_a_few_patches_are_no_reference():
    assert make_feature_reference(features(8), np.arange(8) % 2) is None


def test_a_result_tells_of_what_lies_further_in_either(tiny_model, model_with_reference_path, tmp_path, capsys):
    """Colours of the example slide's patches are usual to this model, and its head reads the same of all patches."""
    model, width = load_model(model_with_reference_path), tiny_model.tensors["head.weight"].shape[1]
    distances = []
    for number, bias in enumerate((np.zeros(2), np.array([3.0, 4.0]))):
        changed = with_reference(model, tmp_path / f"{number}.safetensors", np.zeros((2, width)), bias)
        result = predict(changed, tmp_path / str(number), genes=("GNAS",), pitch_um=200.0)
        distances.append(result.quality["unusual"])
    assert ((distances[0] > 0) & (distances[0] < 5)).all()
    np.testing.assert_allclose(distances[1], 5)
    assert "100% of patches look unlike those the model was trained on; expect little" in capsys.readouterr().err


def test_a_model_file_is_refused_whose_reference_does_not_fit(tiny_model, tmp_path):
    width = tiny_model.tensors["head.weight"].shape[1]
    weight, bias = np.ones((3, width)), np.ones(3)
    with_reference(tiny_model, tmp_path / "whole.safetensors", weight, bias)
    for wrong in ((weight[:, 1:], bias), (weight, bias[1:]), (weight, np.full(3, np.nan))):
        with pytest.raises(ModelFileError, match="what the head reads"):
            with_reference(tiny_model, tmp_path / "wrong.safetensors", *wrong)
