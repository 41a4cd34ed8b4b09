"""Prediction intervals in a model's card: from the folds' errors to what a result says of a gene."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
from calls import run
from conftest import GENES, SLIDE, write_section

from stpredict.errors import ModelFileError
from stpredict.model.file import load_model, save_model
from stpredict.model.show import show_card
from stpredict.statistics.conformal import half_widths
from stpredict.training.intervals import calibrate, save_errors

PANEL = ["A", "B", "C"]


def folds(tmp_path, n: int):
    """Errors of `n` held-out patients; the first fold's panel is in another order, the last one's lacks a gene."""
    rng = np.random.default_rng(0)
    errors = [rng.uniform(0, 2, (10 + i, 3)) for i in range(n)]
    files = [tmp_path / f"{i}.npz" for i in range(n)]
    for i, (file, error) in enumerate(zip(files, errors, strict=True)):
        columns = {0: [2, 0, 1], n - 1: [0, 1]}.get(i, [0, 1, 2])
        patient = np.repeat(np.array([f"P{i}"], dtype=object), len(error))
        save_errors(file, error[:, columns], patient, [PANEL[column] for column in columns])
    return files, errors


def test_a_level_needs_patients_who_were_tested_on_the_gene(tmp_path):
    files, errors = folds(tmp_path, 4)
    (found,) = calibrate(files, PANEL)
    patient = np.repeat([f"P{i}" for i in range(4)], [len(error) for error in errors])
    expected = half_widths(np.concatenate(errors)[:, :2], patient, 0.8)
    assert found["level"] == 0.8
    np.testing.assert_allclose(found["half_width"][:2], expected, atol=1e-4)
    assert found["half_width"][2] is None  # three patients
    assert found["median_half_width"] == pytest.approx(np.median(expected), abs=1e-4)
    assert found["coverage"] is None
    assert calibrate(files[:3], PANEL) == []
    assert calibrate([], PANEL) == []


def test_coverage_is_of_patients_left_out(tmp_path):
    files, _ = folds(tmp_path, 9)
    eighty, ninety = calibrate(files, PANEL)
    assert 0.7 < eighty["coverage"] <= 1
    assert ninety["coverage"] is None
    assert ninety["half_width"][0] > eighty["half_width"][0]
    assert eighty["half_width"][2] is not None


@pytest.fixture(scope="module")
def trained(coarse_region, request, tmp_path_factory):
    """A model of five patients of a section each."""
    request.getfixturevalue("small_patches")
    folder, out = tmp_path_factory.mktemp("patients"), tmp_path_factory.mktemp("run") / "five.safetensors"
    for seed, letter in enumerate("ABCDE"):
        write_section(folder, f"{letter}1", np.ascontiguousarray(np.rot90(coarse_region, 2 * seed)[seed:]), seed, mpp=1)
    options = ["--arch", "dictionary", "--unlabelled", "20", "--threads", "1", "--min-depth", "1"]
    done = run("train", str(folder), "-o", str(out), *options)
    assert done.exit_code == 0, done.output
    return out, done


def test_the_card_and_the_result_say_what_would_hold_a_new_patients_measurements(trained, tmp_path):
    out, done = trained
    line = "intervals to hold 80% of the noisy measurements, ln(1 + CPM)"
    assert line in done.stderr
    model = load_model(out)
    (found,) = model.card["intervals"]
    assert 0.6 < found["coverage"] <= 1
    assert line in "\n".join(show_card(model))
    done = run("predict", str(SLIDE), "-m", str(out), "--genes", GENES[1], "--pitch", "300", "-o", str(tmp_path))
    assert done.exit_code == 0, done.output
    table = anndata.read_h5ad(tmp_path / "CMU-1-Small-Region.h5ad")
    np.testing.assert_allclose(table.var["half_width_80"], found["half_width"][model.panel.index(GENES[1])], rtol=1e-6)
    assert "half_width_90" not in table.var
    assert '"half_width"' not in table.uns["stpredict"]  # of the other genes


def test_a_card_is_refused_whose_intervals_do_not_fit(trained, tmp_path):
    model = load_model(trained[0])
    for wrong in ({"level": 0.7}, {"half_width": [1.0]}, {"coverage": "most"}, {"median_half_width": None}):
        card = {**model.card, "intervals": [{**model.card["intervals"][0], **wrong}]}
        save_model(tmp_path / "wrong.safetensors", model.tensors, card)
        with pytest.raises(ModelFileError, match="intervals"):
            load_model(tmp_path / "wrong.safetensors")
