from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from calls import run
from conftest import SLIDE
from scipy.io import mmwrite
from scipy.sparse import coo_array
from test_visium import ARRAY, FORMS, GENES, barcode, centre, name_patient, write_10x, write_outs

from stpredict.data.dataset import read_dataset
from stpredict.errors import DatasetError

SYMBOLS = ["GNAS", "DDX5", "MATR3 (ENSG00000015479)", "MATR3 (ENSG00000280987)"]
#: A sample of GEO, whose files lie in one folder.
SAMPLE = "GSM1234_S1"


def pack(path: Path, packed: bool) -> None:
    if packed:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


def write_market(
    folder: Path, counts: np.ndarray, barcodes: list[str], prefix: str = "", packed: bool = True, version: int = 3
) -> None:
    """Barcodes x genes as the three files of 10x; of version 2 without kinds of features."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{prefix}barcodes.tsv").write_text("".join(f"{name}\n" for name in barcodes))
    kinds = ["Gene Expression"] * 4 + ["Antibody Capture"]
    lines = [
        f"{gene}\t{name}" + (f"\t{kind}" if version == 3 else "")
        for (gene, name), kind in zip(GENES, kinds, strict=True)
    ]
    features = f"{prefix}{'features' if version == 3 else 'genes'}.tsv"
    (folder / features).write_text("\n".join(lines) + "\n")
    with (folder / f"{prefix}matrix.mtx").open("wb") as file:
        mmwrite(file, coo_array(counts.T), field="integer")
    for name in ("barcodes.tsv", features.removeprefix(prefix), "matrix.mtx"):
        pack(folder / f"{prefix}{name}", packed)


def outs_without_matrix(outs: Path, form: str = FORMS[1]) -> tuple[np.ndarray, list[str]]:
    counts = write_outs(outs, form)
    (outs / "filtered_feature_bc_matrix.h5").unlink()
    return counts, [barcode(i) for i in range(len(counts))]


def the_only(folder: Path):
    (section,) = read_dataset(folder)
    return section


@pytest.mark.parametrize(
    ("within", "packed", "version"),
    [
        ("filtered_feature_bc_matrix", True, 3),
        ("filtered_feature_bc_matrix", False, 3),
        ("filtered_gene_bc_matrices/GRCh38", False, 2),
        ("matrix", True, 3),
        (".", True, 3),
    ],
)
def test_folders_of_three_files(tmp_path: Path, within: str, packed: bool, version: int):
    counts, barcodes = outs_without_matrix(tmp_path / "S1" / "outs")
    write_market(tmp_path / "S1" / "outs" / within, counts, barcodes, packed=packed, version=version)
    name_patient(tmp_path)
    section = the_only(tmp_path)
    assert (section.name, section.lost_spots, section.image.name) == ("S1", 0, SLIDE.name)
    n_genes = 4 if version == 3 else 5
    assert section.genes[:4] == SYMBOLS
    np.testing.assert_array_equal(section.counts.rows().toarray(), counts[:, :n_genes])
    np.testing.assert_allclose(section.centres[7], centre(*ARRAY[7]))


@pytest.mark.parametrize("form", ["h5", "market", "spatial"])
def test_samples_of_geo_in_one_folder(tmp_path: Path, form: str):
    wanted = {}
    for seed, sample in enumerate((SAMPLE, "GSM1235_S2")):
        made = tmp_path / "made" / sample
        counts = write_outs(made, FORMS[0], None, seed)
        wanted[sample] = counts
        barcodes = [barcode(i) for i in range(len(counts))]
        folder = tmp_path / "geo"
        folder.mkdir(exist_ok=True)
        if form == "h5":
            write_10x(folder / f"{sample}_filtered_feature_bc_matrix.h5", counts, barcodes)
        else:
            write_market(folder, counts, barcodes, f"{sample}_")
        into = folder / f"{sample}_spatial" if form == "spatial" else folder
        into.mkdir(exist_ok=True)
        for name in (FORMS[0], "scalefactors_json.json"):
            shutil.copy(made / "spatial" / name, into / f"{sample}_{name}")
            pack(into / f"{sample}_{name}", packed=form == "market")
        shutil.copy(SLIDE, folder / f"{sample}.svs")
        shutil.copy(made / "spatial" / "tissue_hires_image.png", folder / f"{sample}_tissue_hires_image.png")
    name_patient(folder, f"{SAMPLE},first\nGSM1235_S2,second\n")
    sections = read_dataset(folder)
    assert [section.name for section in sections] == list(wanted)
    for section in sections:
        assert section.image.name == f"{section.name}.svs"
        np.testing.assert_array_equal(section.counts.rows().toarray()[:, :4], wanted[section.name][:, :4])
        assert not any("scalefactors" in note for note in section.notes)


def test_a_sample_of_geo_in_a_folder_of_its_own(tmp_path: Path):
    counts = write_outs(tmp_path / SAMPLE, FORMS[0])
    expected = write_outs(tmp_path / "made" / "S9", FORMS[0], seed=9)
    for name in (FORMS[0], "scalefactors_json.json"):
        (tmp_path / SAMPLE / "spatial" / name).rename(tmp_path / SAMPLE / "spatial" / f"{SAMPLE}_{name}")
    name_patient(tmp_path, f"{SAMPLE},first\nS9,second\n")
    found = {section.name: section for section in read_dataset(tmp_path)}
    np.testing.assert_array_equal(found[SAMPLE].counts.rows().toarray(), counts[:-1, :4])
    np.testing.assert_array_equal(found["S9"].counts.rows().toarray(), expected[:-1, :4])


@pytest.mark.parametrize("kind", ["h5", "folder"])
def test_a_raw_matrix_is_read_for_the_spots_on_tissue(tmp_path: Path, kind: str):
    outs_without_matrix(tmp_path / "S1")
    everywhere = np.random.default_rng(1).poisson(3, (len(ARRAY), len(GENES)))
    barcodes = [barcode(i) for i in range(len(ARRAY))]
    if kind == "h5":
        write_10x(tmp_path / "S1" / "raw_feature_bc_matrix.h5", everywhere, barcodes)
    else:
        write_market(tmp_path / "S1" / "raw_feature_bc_matrix", everywhere, barcodes)
    name_patient(tmp_path)
    section = the_only(tmp_path)
    np.testing.assert_array_equal(section.counts.rows().toarray(), everywhere[:-2, :4])
    assert "2 spots not in tissue (in_tissue is 0), left out" in section.notes
    assert section.lost_spots == 0
    write_10x(tmp_path / "S1" / "filtered_feature_bc_matrix.h5", everywhere[:25] + 1, barcodes[:25])
    np.testing.assert_array_equal(the_only(tmp_path).counts.rows().toarray(), everywhere[:25, :4] + 1)


def write_version_2(path: Path, counts: np.ndarray, barcodes: list[str], *genomes: str) -> None:
    write_10x(path, counts, barcodes)
    with h5py.File(path, "r+") as file:
        matrix = file["matrix"]
        matrix["genes"], matrix["gene_names"] = matrix["features/id"][:], matrix["features/name"][:]
        del matrix["features"]
        for genome in genomes:
            file.copy("matrix", genome)
        del file["matrix"]


def test_version_2_of_10x(tmp_path: Path):
    counts, barcodes = outs_without_matrix(tmp_path / "S1")
    path = tmp_path / "S1" / "filtered_gene_bc_matrices_h5.h5"
    name_patient(tmp_path)
    write_version_2(path, counts, barcodes, "GRCh38")
    assert the_only(tmp_path).genes[:4] == SYMBOLS
    np.testing.assert_array_equal(the_only(tmp_path).counts.rows().toarray(), counts)
    write_version_2(path, counts, barcodes, "hg19", "mm10")
    with pytest.raises(DatasetError, match="counts of several genomes, hg19, mm10, and one is needed"):
        read_dataset(tmp_path)
    with h5py.File(path, "w") as file:
        file["X"] = 1
    with pytest.raises(DatasetError, match=r"matrices_h5\.h5: .*no matrix of 10x Genomics, only X"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("words", [("True", "False"), ("TRUE", "FALSE"), ("yes", "no")])
def test_columns_of_spots_go_by_their_names(tmp_path: Path, words: tuple[str, str]):
    write_outs(tmp_path / "S1")
    name_patient(tmp_path)
    expected = the_only(tmp_path)
    path = tmp_path / "S1" / "spatial" / FORMS[1]
    table = pd.read_csv(path)
    table["in_tissue"] = [words[not value] for value in table["in_tissue"]]
    table[table.columns[::-1]].to_csv(path, sep="\t", encoding="utf-16")
    found = the_only(tmp_path)
    np.testing.assert_allclose(found.centres, expected.centres)
    assert (found.spot_names, found.lost_spots) == (expected.spot_names, expected.lost_spots)
    table.assign(more=1).to_csv(path, index=False, header=False)
    with pytest.raises(DatasetError, match="has 7 columns and no header"):
        read_dataset(tmp_path)
    table.drop(columns="array_row").to_csv(path, index=False)
    with pytest.raises(DatasetError, match="names the column array_row 0 times"):
        read_dataset(tmp_path)


def test_a_matrix_without_spots_says_what_it_lacks(tmp_path: Path):
    counts, barcodes = outs_without_matrix(tmp_path / "made")
    write_market(tmp_path / "geo", counts, barcodes, f"{SAMPLE}_")
    with pytest.raises(
        DatasetError, match=rf"{SAMPLE}_matrix\.mtx\.gz has no table of spots, spatial/tissue_positions"
    ):
        read_dataset(tmp_path / "geo")
    (tmp_path / "geo" / f"{SAMPLE}_spatial.tar.gz").write_bytes(b"")
    done = run("tile", tmp_path / "geo", "-o", tmp_path)
    assert done.exit_code == 2
    assert f"unpack {SAMPLE}_spatial.tar.gz" in done.stderr
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "GSE1_RAW.tar").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"is packed; unpack GSE1_RAW\.tar"):
        read_dataset(tmp_path / "packed")
    (tmp_path / "packed" / "GSE1_RAW.tar").rename(tmp_path / "packed" / "GSM1_S1.h5ad.gz")
    with pytest.raises(DatasetError, match=r"is packed; unpack GSM1_S1\.h5ad\.gz"):
        read_dataset(tmp_path / "packed")


def change(name: str, content: bytes):
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(gzip.compress(content))

    return apply


HEADER = b"%%MatrixMarket matrix coordinate integer general\n"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (change("matrix.mtx.gz", HEADER + b"5 98 999999999999\n1 1 1\n"), "claims more entries than the file can hold"),
        (change("matrix.mtx.gz", HEADER + b"7 98 1\n1 1 1\n"), "it is 7 x 98, with 5 genes in features.tsv.gz and 98"),
        (change("matrix.mtx.gz", HEADER + b"5 98 1\n9 1 1\n"), "cannot be read as a matrix of counts"),
        (change("matrix.mtx.gz", HEADER + b"5 98 1\n1 1 -3\n"), "finite and not negative"),
        (change("matrix.mtx.gz", HEADER.replace(b"integer", b"real") + b"5 98 1\n1 1 0.5\n"), "raw counts are needed"),
        (change("matrix.mtx.gz", HEADER.replace(b"coordinate", b"array") + b"5 98\n1\n"), "not a sparse matrix"),
        (change("matrix.mtx.gz", b"nothing"), "cannot be read as a matrix of counts"),
        (lambda folder: (folder / "matrix.mtx.gz").write_bytes(b"\x1f\x8bnothing"), "cannot be read as a matrix"),
        (lambda folder: (folder / "features.tsv.gz").unlink(), r"needs features\.tsv or genes\.tsv beside it"),
        (lambda folder: (folder / "barcodes.tsv.gz").unlink(), r"needs barcodes\.tsv beside it"),
        (change("features.tsv.gz", b"A\tA\tPeaks\n" * 5), "holds no gene expression"),
    ],
)
def test_damaged_and_hostile_matrices_are_refused(tmp_path: Path, damage, says: str):
    counts, barcodes = outs_without_matrix(tmp_path / "S1")
    write_market(tmp_path / "S1" / "filtered_feature_bc_matrix", counts, barcodes)
    name_patient(tmp_path)
    damage(tmp_path / "S1" / "filtered_feature_bc_matrix")
    with pytest.raises(DatasetError, match=says):
        read_dataset(tmp_path)
