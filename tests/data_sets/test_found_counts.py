from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from test_annotated import CENTRES, COUNTS, IDS, make_data, write_folder

from stpredict.data.dataset import read_dataset
from stpredict.data.genes import why_not_shared
from stpredict.data.h5ad import read_h5ad
from stpredict.errors import DatasetError

pytestmark = pytest.mark.filterwarnings("ignore:Variable names are not unique", "ignore:Transforming to str index")
LOGS = csr_matrix(np.log1p(COUNTS))
SYMBOLS = ["GNAS", "DDX5", "MATR3", "KRT19"]


def read(folder: Path, data: anndata.AnnData):
    (section,) = read_dataset(write_folder(folder, data))
    return section


@pytest.mark.parametrize("layer", ["counts", "raw_counts", "raw", "Counts", "umi", "mine"])
def test_raw_counts_are_found_in_a_layer(tmp_path: Path, layer: str):
    data = make_data(counts=LOGS)
    data.layers["binary"] = csr_matrix((COUNTS > 1).astype(np.float32))
    data.layers["scaled"] = (COUNTS - COUNTS.mean()).astype(np.float32)
    data.layers[layer] = csr_matrix(COUNTS)
    section = read(tmp_path, data)
    np.testing.assert_array_equal(section.counts.rows().toarray(), COUNTS)
    assert (f"counts are those of layers['{layer}'], as X holds none" in section.notes) == (layer.lower() != "counts")


def test_raw_counts_are_found_in_raw_with_its_own_genes(tmp_path: Path):
    data = make_data(pd.DataFrame(index=SYMBOLS), counts=csr_matrix(COUNTS))
    data.raw = data
    data = data[:, :2].copy()
    data.X = np.log1p(data.X.toarray())
    section = read(tmp_path, data)
    assert section.genes == SYMBOLS
    np.testing.assert_array_equal(section.counts.rows().toarray(), COUNTS)
    assert "counts are those of raw.X, as X holds none" in section.notes


def test_raw_counts_without_x(tmp_path: Path):
    data = anndata.AnnData(None, make_data().obs, pd.DataFrame(index=SYMBOLS), obsm={"spatial": CENTRES})
    with pytest.raises(DatasetError, match=r"needs raw counts in X, a layer or raw, and holds none of them"):
        read(tmp_path, data)
    data.layers["raw"] = COUNTS
    np.testing.assert_array_equal(read(tmp_path, data).counts.rows().toarray(), COUNTS)


def test_it_is_said_where_counts_were_looked_for(tmp_path: Path):
    data = make_data(counts=LOGS)
    data.layers["scaled"] = csr_matrix(COUNTS * 2 - 3)
    data.raw = data
    says = r"X: not whole numbers; raw.X: not whole numbers; layers\['scaled'\]: negative"
    with pytest.raises(DatasetError, match=says):
        read(tmp_path, data)


def test_what_is_missing_is_named_with_what_there_is(tmp_path: Path):
    data = make_data()
    data.obsm = {"X_pca": CENTRES, "X_umap": CENTRES}
    with pytest.raises(DatasetError, match=r"pixels in obsm\['spatial'\]; obsm holds X_pca, X_umap"):
        read(tmp_path, data)


@pytest.mark.parametrize(
    ("yes", "no"),
    [
        (True, False), (1, 0), (1.0, 0.0), ("True", "False"), ("TRUE", "FALSE"), ("1", "0"), ("1.0", "0.0"),
        ("yes", "no"), ("t", "f"), ("in", "out"), ("Tissue", "background"), ("", "0"), (None, "False"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("categorical", [False, True])
def test_spots_off_the_tissue_are_left_out_however_it_is_written(tmp_path: Path, yes, no, categorical: bool):
    data = make_data()
    words = pd.Series([no if i % 3 == 0 else yes for i in range(len(CENTRES))], index=data.obs_names)
    data.obs["in_tissue"] = words.astype("category") if categorical else words
    section = read(tmp_path, data)
    kept = np.arange(len(CENTRES)) % 3 != 0
    np.testing.assert_array_equal(section.centres, CENTRES[kept])
    np.testing.assert_array_equal(section.counts.rows().toarray(), COUNTS[kept])
    assert f"{(~kept).sum()} spots not in tissue (in_tissue is 0), left out" in section.notes


@pytest.mark.parametrize(("word", "says"), [("maybe", "'maybe', which is neither yes nor no"), ("no", "no spot is in")])
def test_a_column_of_tissue_that_says_nothing_is_refused(tmp_path: Path, word: str, says: str):
    data = make_data()
    data.obs["in_tissue"] = word
    with pytest.raises(DatasetError, match=says):
        read(tmp_path, data)


@pytest.mark.parametrize(
    "var",
    [
        pd.DataFrame({"feature_name": SYMBOLS}, index=IDS),
        pd.DataFrame({"SYMBOL": SYMBOLS, "gene": IDS}, index=IDS),
        pd.DataFrame({"Gene Symbol": SYMBOLS, "gene_symbols": IDS}, index=IDS),
        pd.DataFrame({"gene_ids": range(4), "ensembl_id": IDS}, index=SYMBOLS),
        pd.DataFrame({"feature.id": IDS}, index=SYMBOLS),
        pd.DataFrame({"gene_name": SYMBOLS, "ENSEMBL": IDS}, index=[str(i) for i in range(4)]),
    ],
)
def test_symbols_and_ids_are_found_under_many_names(tmp_path: Path, var: pd.DataFrame):
    write_folder(tmp_path, make_data(var))
    found = read_h5ad(tmp_path / "s.h5ad")
    assert found.genes == SYMBOLS
    assert found.symbols == {gene.split(".")[0]: name for gene, name in zip(IDS, SYMBOLS, strict=True)}


def test_other_species_and_cases_are_told():
    assert "the case of letters, as Gnas and GNAS do" in why_not_shared(["Xkr4", "Gnas"], ["GNAS", "DDX5"])
    assert "different species, ENSMUSG and ENSG" in why_not_shared(["ENSMUSG00000027523"], ["ENSG00000087460"])
    assert why_not_shared(["GNAS"], ["ENSG00000087460"]) == ""
