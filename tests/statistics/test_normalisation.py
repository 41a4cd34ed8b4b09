from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pytest
from calls import run
from conftest import GENES, make_model
from test_dictionary import train

from stpredict.data.dataset import read_dataset
from stpredict.model.file import load_model
from stpredict.model.show import show_card
from stpredict.result.file import read_provenance

OF_PANEL = "ln(1 + CPM of the panel)"


@pytest.fixture(scope="module")
def median_depth(dataset: Path) -> int:
    return int(np.median(np.concatenate([s.counts.per_spot for s in read_dataset(dataset)])))


@pytest.fixture(scope="module")
def trained(dataset: Path, median_depth: int, tmp_path_factory: pytest.TempPathFactory):
    """A model of shares of the panel, scored on the deeper half of the spots."""
    out = tmp_path_factory.mktemp("run") / "shares.safetensors"
    genes = out.with_name("genes.txt")
    genes.write_text("\n".join(GENES[:6]))
    done = train(dataset, out, "--normalisation", "panel", "--min-depth", median_depth, "--genes-file", genes)
    assert done.exit_code == 0, done.output
    return load_model(out)


def test_the_card_states_the_unit_and_shares_of_the_panel_add_up(trained):
    assert trained.card["expression_unit"] == f"{OF_PANEL} of the expected share"
    assert np.expm1(trained.card["genes"]["training_mean"]).sum() == pytest.approx(1e6, rel=0.01)
    assert trained.card["training"]["normalisation"] == "panel"


def test_shallow_spots_are_left_out_of_the_scores_and_counted(trained, dataset, median_depth):
    for fold in trained.card["held_out"]:
        depths = [s.counts.per_spot for s in read_dataset(dataset) if s.patient == fold["name"]]
        depth = np.concatenate(depths)
        assert fold["min_depth"] == median_depth
        assert fold["spots"] == (depth >= median_depth).sum()
        assert fold["spots_left_out"] == (depth < median_depth).sum() > 0
        said = f"{fold['spots']} spots of {median_depth} counts or more ({fold['spots_left_out']} left out)"
        assert said in "\n".join(show_card(trained))
    assert trained.card["training"]["spots"] == sum(len(s.spot_names) for s in read_dataset(dataset))


def test_cards_of_older_versions_say_that_all_spots_were_scored(trained):
    older = copy.deepcopy(trained.card)
    for fold in older["held_out"]:
        del fold["min_depth"], fold["spots_left_out"]
    said = "\n".join(show_card(replace(trained, card=older)))
    assert "(all, however few counts they have)" in said


def test_parts_without_spots_of_so_many_counts_are_refused(dataset, tmp_path):
    refused = train(dataset, tmp_path / "m.safetensors", "--min-depth", "500")
    assert refused.exit_code == 2
    assert "held-out A: 0 of its" in refused.stderr
    refused = train(dataset, tmp_path / "m.safetensors", "--normalisation", "cpm")
    assert refused.exit_code == 2
    assert "--normalisation cpm: choose total, panel, panel-1e4, 1e4" in refused.stderr


def test_a_model_and_its_result_are_scored_in_their_own_unit(trained, dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ("--min-depth", "1", "--allow-patient-leak")
    done = run("evaluate", trained.path, dataset, *asked, "--engine", "eager")
    assert done.exit_code == 0, done.output
    assert f"genes: 6; expression is {OF_PANEL}" in done.stdout
    assert "depth is the sum over the panel, of whose genes 0 were not measured" in done.stdout
    section = next(section for section in read_dataset(dataset) if section.name == "B1")
    Path("spots.csv").write_text("\n".join(["x,y", *(f"{x},{y}" for x, y in section.centres)]))
    done = run("predict", section.image, "-m", trained.path, "--spots", "spots.csv", "--genes", GENES[0],
               "--mpp", section.mpp.x, "--engine", "eager")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert read_provenance(Path("B1.h5ad"))["card"]["panel"] == trained.panel  # of which it holds one gene
    scored = run("evaluate", "B1.h5ad", dataset, *asked)
    assert scored.exit_code == 0, scored.output
    counts = section.counts.rows().toarray()[:, [section.genes.index(gene) for gene in trained.panel]]
    observed = np.log1p(1e6 * counts[:, trained.panel.index(GENES[0])] / counts.sum(axis=1))
    predicted = anndata.read_h5ad("B1.h5ad").X[:, 0]
    row = next(line for line in scored.stdout.splitlines() if line.startswith("model "))
    assert row.split()[-2] == f"{np.corrcoef(observed, predicted)[0, 1]:.3f}"


def test_of_a_unit_that_was_never_measured_what_needs_none_is_scored(dataset, tmp_path):
    odd = make_model(tmp_path / "odd.safetensors", expression_unit="protein")
    done = run("evaluate", odd, dataset, "--min-depth", "1", "-o", tmp_path)
    assert done.exit_code == 0, done.output
    assert "the model predicts 'protein', a unit that these measurements do not have: correlations of" in done.stdout
    papers = done.stdout.split("as the papers score")[1]
    (model,) = (line for line in papers.splitlines() if line.startswith("model "))
    assert model.split()[1:3] == model.split()[-2:] == ["-", "-"]  # per spot, RMSE, MSE, MAE need one unit
