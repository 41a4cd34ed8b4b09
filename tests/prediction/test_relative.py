from __future__ import annotations

import csv
from pathlib import Path

import anndata
import numpy as np
import pytest
from calls import run
from conftest import GENES, make_model
from predicting import predict

from stpredict.commands.predict import MAX_GENES_UNASKED, chosen_genes
from stpredict.errors import UsageError
from stpredict.model.file import load_model
from stpredict.prediction.relative import moments
from stpredict.result.file import read_result

UNKNOWN = {"training_mean": None, "training_spread": None, "display_range": None}


@pytest.fixture(scope="module")
def partly_measured(tmp_path_factory: pytest.TempPathFactory):
    """A model whose card tells no distribution, and two of whose genes no training section measured."""
    measured = [gene not in ("CD74", "KRT19") for gene in GENES]
    path = tmp_path_factory.mktemp("models") / "partly.safetensors"
    return load_model(make_model(path, genes={**UNKNOWN, "measured_in_training": measured}))


def test_relative_is_of_the_training_distribution_where_the_card_has_one(tiny_model, tmp_path: Path):
    (outcome,) = predict(tiny_model, tmp_path, genes=("DDX5", "GNAS"), relative=True)
    table = anndata.read_h5ad(outcome.job.result)
    np.testing.assert_allclose(table.layers["relative"], table.X - 5.0, atol=1e-5)  # mean 5, spread 1
    assert read_result(outcome.job.result).provenance["relative"]["of"] == "training"


def test_relative_is_of_the_slide_where_the_card_has_none_and_unmeasured_genes_are_nan(partly_measured, tmp_path: Path):
    (outcome,) = predict(partly_measured, tmp_path, relative=True)
    table = anndata.read_h5ad(outcome.job.result)
    measured = table.var["measured_in_training"]
    assert measured.dtype == bool
    assert set(table.var_names[~measured]) == {"CD74", "KRT19"}
    known = measured.to_numpy()
    assert np.isnan(table.X[:, ~known]).all()
    assert np.isfinite(table.X[:, known]).all()
    expected = (table.X - table.X.mean(axis=0)) / table.X.std(axis=0)
    np.testing.assert_allclose(table.layers["relative"][:, known], expected[:, known], atol=1e-3)
    result = read_result(outcome.job.result)
    assert result.provenance["relative"]["of"] == "slide"
    assert [gene.measured_in_training for gene in result.genes] == measured.astype(float).tolist()
    summed = run("summary", outcome.job.result, "--genes", "GNAS,CD74")
    assert summed.exit_code == 0, summed.output
    (row,) = csv.DictReader(summed.stdout.splitlines())
    assert row["spots_not_predicted"] == "0"
    assert float(row["GNAS.mean"]) == pytest.approx(float(np.mean(result.expression("GNAS"))), rel=1e-4)
    assert row["CD74.mean"] == ""
    assert "DDX5.mean" not in row
    drawn = run("render", outcome.job.result, "--genes", "GNAS", "-o", tmp_path / "maps", "--downsample", "16")
    assert drawn.exit_code == 0, drawn.output
    refused = run("render", outcome.job.result, "--genes", "CD74", "-o", tmp_path / "maps")
    assert refused.exit_code == 2
    assert "CD74: no section" in refused.stderr


def test_without_being_asked_for_there_is_neither(tiny_model, tmp_path: Path):
    (outcome,) = predict(tiny_model, tmp_path, genes=("GNAS",))
    table = anndata.read_h5ad(outcome.job.result)
    assert "relative" not in table.layers
    assert "measured_in_training" not in table.var


def test_moments_of_blocks_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    whole = (rng.normal(size=(300, 4)) * 3 + [0, 5, 100, 7]).astype(np.float32)
    whole[::7, 1], whole[:, 3] = np.nan, np.nan
    mean, spread = moments(np.split(whole, [10, 11, 200]), 4)
    np.testing.assert_allclose(mean[:3], np.nanmean(whole[:, :3], axis=0), rtol=1e-5)
    np.testing.assert_allclose(spread[:3], np.nanstd(whole[:, :3], axis=0), rtol=1e-4)
    assert np.isnan(mean[3])
    assert np.isnan(spread[3])


def test_whole_transcriptomes_are_predicted_only_when_that_is_said(tmp_path: Path):
    names = [f"G{i}" for i in range(MAX_GENES_UNASKED + 1)]
    count = len(names)
    held_out = [{"kind": "patient", "per_gene": {"correlation": [0.3] * count}}]
    model = load_model(make_model(tmp_path / "wide.safetensors", names=names, genes=UNKNOWN, held_out=held_out))
    with pytest.raises(UsageError, match=r"2,001 genes, .* --genes all"):
        chosen_genes((), model)
    assert chosen_genes(("all",), model) == ()
    assert chosen_genes(("G1",), model) == ("G1",)
