from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from calls import run
from conftest import GENES, make_model
from encoders_to_try import Tiny, export

from stpredict.model.catalogue import KNOWN
from stpredict.model.file import load_model
from stpredict.model.known_models import KNOWN as READ


def test_what_is_known_is_listed_with_its_licence_and_how_to_bring_it_in():
    listed = run("models", "list", "--known")
    assert listed.exit_code == 0
    for entry in KNOWN:
        assert f"{entry.name} ({entry.kind})" in listed.stdout
        assert entry.licence in listed.stdout
        assert entry.bring_in in listed.stdout
    lines = listed.stdout.splitlines()
    assert max(len(line) for line in lines if not line.startswith("    stpredict")) <= 160
    sizes = [line for line in lines if "GMAC" in line or "cost not known here" in line]
    assert len(sizes) == len(KNOWN)
    of_both = "head of 1,757 million parameters, encoder of 27.5 million parameters, 7.1 GB in fp32"
    assert sum(of_both in line for line in sizes) == 1
    told = json.loads(run("models", "list", "--known", "--json").stdout)
    assert [(entry["name"], entry["size"]) for entry in told] == [(entry.name, entry.size) for entry in KNOWN]


def test_the_list_agrees_with_what_is_read_by_name():
    listed = {entry.name: entry for entry in KNOWN}
    assert set(READ) <= set(listed)
    for name, read in READ.items():
        entry = listed[name]
        assert read.origin.licence in entry.licence
        assert entry.commercial == read.origin.commercial
        assert entry.where in read.origin.source
        assert (read.origin.tissue or entry.tissue) in entry.tissue
        assert f"import-known {name}" in entry.bring_in


def test_import_lines_name_options_that_there_are():
    for entry in KNOWN:
        words = entry.bring_in.split()
        command = words[1 : 3 if words[1] == "models" else 2]
        offered = run(*command, "--help").stdout
        for option in re.findall(r"(?<= )--?[a-z-]+", entry.bring_in):
            assert option in offered, entry.name


@pytest.fixture(scope="module")
def own_models(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("installed")
    names = ["GNAS", "MARCHF1", "MATR3 (ENSG00000015479)", "ENSG00000141736.3"]
    genes = {"training_mean": None, "training_spread": None, "display_range": None}
    genes["measured_in_training"] = [True, True, False, True]
    held_out = [{"kind": "patient", "per_gene": {"correlation": [0.31, None, 0.2, 0.1]}}]
    make_model(folder / "mine.safetensors", names=names, genes=genes, held_out=held_out)
    return folder


def test_genes_are_found_by_name_case_new_name_and_id(own_models: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STPREDICT_MODELS", str(own_models))
    found = run("genes", "gnas", "MARCH1", "ENSG00000015479", "ENSG00000141736")
    assert found.exit_code == 0, found.output
    for line in (
        "gnas: mine as GNAS, held-out correlation 0.31",
        "MARCH1: mine as MARCHF1, not tested",
        "ENSG00000015479: mine as MATR3 (ENSG00000015479), measured in no section that it was trained on",
        "ENSG00000141736: mine as ENSG00000141736.3, held-out correlation 0.10",
    ):
        assert line in found.stdout
    assert re.search(r"gnas: dictionary-her2st as GNAS, held-out correlation .* ridge .*, reliable", found.stdout)
    lacking = run("genes", "GNAS", "NOSUCHGENE")
    assert lacking.exit_code == 1
    assert "NOSUCHGENE: in no installed model" in lacking.stdout
    assert "not known here; their authors' lists tell: path2space, 14,068 genes" in lacking.stderr


def test_an_imported_model_is_evaluated_and_its_scores_are_kept_in_its_file(dataset: Path, tmp_path: Path):
    export(tmp_path / "tiny.pt2", Tiny(), px=32)
    (tmp_path / "genes.txt").write_text("\n".join(GENES[:5]))
    np.savez(tmp_path / "ridge.npz", coef_=np.random.default_rng(0).normal(size=(5, 9)))
    sizes = ("--mpp", "3.5", "--tile-um", "112")
    files = ("--encoder", tmp_path / "tiny.pt2", "--head", tmp_path / "ridge.npz", "--genes", tmp_path / "genes.txt")
    model = tmp_path / "ridge.safetensors"
    done = run("models", "import", *files, *sizes, "--unit", "log2 of theirs", "-o", model)
    assert done.exit_code == 0, done.output
    before = load_model(model)
    scored = run("evaluate", model, dataset, "-o", tmp_path, "--min-depth", "1", "--engine", "eager")
    assert scored.exit_code == 0, scored.output
    assert "log2 of theirs" in scored.stdout
    (evaluation,) = tmp_path.glob("*.evaluation.json")
    noted = run("models", "note", model, evaluation, "--whose", "two patients of ours")
    assert noted.exit_code == 0, noted.output
    after = load_model(model)
    assert after.sha256 == before.sha256
    (note,) = after.card["notes"]
    assert (note["whose"], note["patients"]) == ("two patients of ours", 2)
    assert note["scores"]["depth_controlled"] == json.loads(evaluation.read_text())["rows"]["model"]["depth_controlled"]
    shown = run("models", "show", model).stdout
    assert "two patients of ours" in shown
    assert "tested by others than its authors" in shown
    other = make_model(tmp_path / "other.safetensors")
    refused = run("models", "note", other, evaluation, "--whose", "x")
    assert refused.exit_code == 2
    assert "scores another model" in refused.stderr
    refused = run("models", "note", model, tmp_path / "genes.txt", "--whose", "x")
    assert "not what evaluate writes" in refused.stderr


def test_models_and_genes_are_told_to_programs(monkeypatch, tmp_path: Path):
    path = make_model(tmp_path / "mine.safetensors")
    monkeypatch.setenv("STPREDICT_MODELS", str(tmp_path))
    listed = {entry["name"]: entry for entry in json.loads(run("models", "list", "--json").stdout)}
    assert [name for name, entry in listed.items() if entry["default"]] == ["dictionary-her2st"]
    assert (listed["mine"]["file"], listed["mine"]["genes"], listed["mine"]["mpp"]) == (str(path), len(GENES), 0.69)
    assert listed["mine"]["sha256"] == load_model(path).sha256
    shown = json.loads(run("models", "show", "dictionary-her2st", "--json").stdout)
    assert shown["sha256"] == listed["dictionary-her2st"]["sha256"]
    assert len(shown["genes"]) == listed["dictionary-her2st"]["genes"]
    assert "per_gene" not in shown["held_out"][0]
    (gnas,) = (gene for gene in shown["genes"] if gene["gene"] == "GNAS")
    asked, unknown = json.loads(run("genes", "gnas", "NOSUCHGENE", "--json").stdout)
    found = {each["model"]: each for each in asked["found"]}
    assert found["dictionary-her2st"].items() >= gnas.items()
    assert gnas["reliable"] is True
    assert gnas["low"] < gnas["held_out_correlation"] < gnas["high"]
    assert found["mine"]["held_out_correlation"] == 0.3
    assert found["mine"]["reliable"] is None
    assert unknown == {"asked": "NOSUCHGENE", "found": []}
