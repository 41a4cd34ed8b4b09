from __future__ import annotations

from pathlib import Path

import h5py
import pandas as pd
import pytest
from calls import run
from conftest import make_quick_model
from test_annotated import IDS, SYMBOLS, make_data, write_folder
from test_assessment import assess_quietly

from stpredict.errors import DatasetError
from stpredict.model.file import load_model

UNVERSIONED = [gene.split(".")[0] for gene in IDS]
BY_SYMBOL = [*SYMBOLS[:2], *(f"MATR3 ({gene})" for gene in UNVERSIONED[2:])]

pytestmark = pytest.mark.filterwarnings("ignore:Variable names are not unique", "ignore:Transforming to str index")


def model_of(folder: Path, names: list[str]):
    return load_model(make_quick_model(folder / f"m{len(list(folder.iterdir()))}.safetensors", names=names))


@pytest.fixture
def with_table(tmp_path: Path) -> Path:
    """A data set of symbols, which also knows the Ensembl ids."""
    return write_folder(tmp_path / "table", make_data())


@pytest.fixture
def by_id(tmp_path: Path) -> Path:
    """The same data set, of Ensembl ids alone."""
    return write_folder(tmp_path / "ids", make_data(pd.DataFrame(index=IDS)))


def test_a_panel_of_ids_is_scored_on_symbols_as_a_panel_of_symbols_is(with_table: Path, tmp_path: Path):
    ids = assess_quietly(model_of(tmp_path, [*UNVERSIONED, "ENSG00000999999"]), with_table)
    symbols = assess_quietly(model_of(tmp_path, [*BY_SYMBOL, "NOWHERE"]), with_table)
    assert ids.rows == symbols.rows
    assert ids.per_gene["depth_controlled"].tolist() == symbols.per_gene["depth_controlled"].tolist()
    pairs = [f"{gene} as {name}" for gene, name in zip(UNVERSIONED, BY_SYMBOL, strict=True)]
    assert f"4 genes of other names there, paired by Ensembl id: {', '.join(pairs)}" in ids.notes
    assert "1 of the 5 predicted genes were not measured there" in ids.notes
    assert any("named by symbols there, by Ensembl ids in the panel" in note for note in ids.notes)
    assert not any("Ensembl" in note for note in symbols.notes)


def test_tiles_know_the_ids_and_older_ones_are_still_read(with_table: Path, tmp_path: Path):
    model = model_of(tmp_path, UNVERSIONED)
    done = run("tile", with_table, "-m", model.path, "--mpp", "0.69", "-o", tmp_path)
    assert done.exit_code == 0, done.output
    tiles = tmp_path / "table.tiles.h5"
    whole = assess_quietly(model, with_table)
    assert assess_quietly(model, tiles).rows == whole.rows
    with h5py.File(tiles, "r+") as file:
        del file["gene_ids"]
    older = assess_quietly(model, tiles)
    assert any(note.startswith("2 genes of other names there") for note in older.notes)  # those with ids in brackets
    with h5py.File(tiles, "r+") as file:
        file["gene_ids"] = ["ENSG00000087460"]
    with pytest.raises(DatasetError, match=r"table.tiles.h5: cannot be read, or is damaged \(1 ids of 4 genes\)"):
        assess_quietly(model, tiles)


def test_a_symbol_of_several_ids_is_not_guessed(with_table: Path, tmp_path: Path):
    found = assess_quietly(model_of(tmp_path, ["GNAS", "MATR3", "DDX5"]), with_table)
    assert "1 gene left out because a name or id could mean several there: MATR3" in found.notes


def test_a_gene_that_the_panel_names_twice_is_not_guessed(with_table: Path, tmp_path: Path):
    found = assess_quietly(model_of(tmp_path, ["GNAS", UNVERSIONED[0], "DDX5"]), with_table)
    assert f"1 gene left out because a name or id could mean several there: {UNVERSIONED[0]}" in found.notes


def test_a_panel_of_symbols_on_data_of_ids_says_what_is_missing(by_id: Path, tmp_path: Path):
    with pytest.raises(DatasetError, match=r"none of its genes was measured there, or .* by symbols, the data by "
                       r"Ensembl ids, and no table there has both, as .* of an .h5ad's var do\.$"):  # fmt: skip
        assess_quietly(model_of(tmp_path, ["GNAS", "DDX5"]), by_id)
    found = assess_quietly(model_of(tmp_path, BY_SYMBOL), by_id)  # of two genes the model itself knows the ids
    assert any(note.startswith("2 genes of other names there") for note in found.notes)
    assert any("named by Ensembl ids there, by symbols in the panel" in note for note in found.notes)


def test_data_of_ids_and_a_section_with_a_table_are_scored_by_symbols(by_id: Path, with_table: Path, tmp_path: Path):
    model = model_of(tmp_path, ["GNAS", "DDX5"])
    for name, folder in (("s", with_table), ("t", by_id)):
        (folder / "s.h5ad").rename(tmp_path / f"{name}.h5ad")
    lines = (with_table / "sections.csv").read_text().splitlines()
    (tmp_path / "sections.csv").write_text(
        "\n".join([*lines, lines[1].replace("s,first", "t,second").replace("s.h5ad", "t.h5ad")]) + "\n"
    )
    found = assess_quietly(model, tmp_path)
    assert {one["section"] for one in found.sections} == {"s", "t"}
    assert not any("Ensembl" in note or "not measured" in note for note in found.notes)


def test_a_result_of_ids_is_scored_on_symbols(with_table: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    slide = (with_table / "sections.csv").read_text().splitlines()[1].split(",")[2]
    scored = []
    for names in (UNVERSIONED, BY_SYMBOL):
        model = model_of(tmp_path, names)
        done = run("predict", slide, "-m", model.path, "--pitch", "100", "--engine", "eager", "--overwrite")
        assert done.exit_code == 0, done.output
        done = run("evaluate", Path(slide).stem + ".h5ad", with_table, "--min-depth", "1", "--overwrite")
        assert done.exit_code == 0, done.output
        scored.append([line for line in done.stdout.splitlines() if line.startswith(("model", "ridge"))])
    assert scored[0] == scored[1]
