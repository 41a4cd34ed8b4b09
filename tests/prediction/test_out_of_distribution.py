"""What a network makes of patches, compared with what it made of those that it was trained on."""

from __future__ import annotations

import numpy as np
import pytest

from stpredict.errors import ModelFileError
from stpredict.prediction.out_of_distribution import make_output_reference, output_reference_of, unusual
from stpredict.weights import REFERENCE_OUTPUT_MEAN, REFERENCE_OUTPUT_WHITENING, load_model, save_model


def outputs(n: int, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    """What a linear head with 30 genes makes of five features."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 5)) + shift) @ np.random.default_rng(9).normal(size=(5, 30))


def test_the_bound_is_what_sections_left_out_reach():
    section = np.repeat(["A", "B"], 200)
    alike = make_output_reference(outputs(400), section)
    assert 0.97 <= (unusual(outputs(2000, seed=1), alike) <= 1).mean() < 1
    assert (unusual(outputs(50, shift=8), alike) > 1).all()
    # Where sections differ, other sections may differ as much.
    apart = make_output_reference(np.concatenate([outputs(200), outputs(200, shift=8, seed=1)]), section)
    assert (unusual(outputs(50, shift=8), apart) < 1).all()


def test_one_section_is_left_out_in_parts():
    reference = make_output_reference(outputs(400), np.repeat("A", 400))
    assert 0.97 <= (unusual(outputs(2000, seed=1), reference) <= 1).mean() < 1


def test_a_few_patches_are_no_reference():
    assert make_output_reference(outputs(12), np.array(["A", "B"] * 6)) is None


def test_a_patch_has_the_same_distance_alone_and_among_others():
    reference = make_output_reference(outputs(400), np.repeat(["A", "B"], 200))
    some = outputs(64, seed=2).astype(np.float32)
    np.testing.assert_array_equal(unusual(some, reference), [unusual(one[None], reference)[0] for one in some])


def test_a_model_file_is_refused_whose_reference_is_not_of_its_genes(tiny_model, tmp_path):
    reference = make_output_reference(outputs(400)[:, : len(tiny_model.panel)], np.repeat(["A", "B"], 200))
    tensors = {
        **tiny_model.tensors,
        REFERENCE_OUTPUT_MEAN: reference.mean.astype(np.float32),
        REFERENCE_OUTPUT_WHITENING: reference.whitening.astype(np.float32),
    }
    save_model(tmp_path / "whole.safetensors", tensors, tiny_model.card)
    found = output_reference_of(load_model(tmp_path / "whole.safetensors"))
    np.testing.assert_allclose(found.whitening, reference.whitening, rtol=1e-6)
    for wrong in (reference.mean[1:].astype(np.float32), np.full(len(reference.mean), np.nan, np.float32)):
        save_model(tmp_path / "wrong.safetensors", {**tensors, REFERENCE_OUTPUT_MEAN: wrong}, tiny_model.card)
        with pytest.raises(ModelFileError, match="reference of outputs"):
            load_model(tmp_path / "wrong.safetensors")
