from __future__ import annotations

from pathlib import Path

import anndata
import pytest
from calls import run
from conftest import SLIDE

from stpredict.data.gene_lists import genes_of_a_date
from stpredict.data.panel import match_genes, read_gene_list
from stpredict.errors import UsageError

THREE = ["GNAS", "DDX5", "HLA-A"]
BRACKETED = "MATR3 (ENSG00000015479)"


@pytest.mark.parametrize(
    "text",
    [
        "GNAS\nDDX5\nHLA-A\n",
        "GNAS DDX5 HLA-A",
        "GNAS\tDDX5\tHLA-A\n",
        "GNAS,DDX5,HLA-A\n",
        "GNAS; DDX5; HLA-A;\n",
        "'GNAS', 'DDX5', 'HLA-A'",
        "GNAS, DDX5,\nHLA-A\n",
        "GNAS DDX5\nHLA-A\n",
        "# mine\nGNAS\nDDX5\n\nHLA-A\n",
        "Gene Symbol\nGNAS\nDDX5\nHLA-A\n",
        "gene_symbol\r\nGNAS\r\nDDX5\r\nHLA-A\r\n",
        "rank;Gene;score\n1;GNAS;0,5\n2;DDX5;0,4\n3;HLA-A;0,1\n",
        "gene_id,gene_name\nENSG1,GNAS\nENSG2,DDX5\nENSG3,HLA-A\n",
        "gene score\nGNAS 1\nDDX5 2\nHLA-A 3\n",
        '"","x"\n"1","GNAS"\n"2","DDX5"\n"3","HLA-A"\n',
        ",0\n0,GNAS\n1,DDX5\n2,HLA-A\n",
        ",mean\nGNAS,1\nDDX5,2\nHLA-A,3\n",
        "GNAS,0.5\nDDX5,0.4\nHLA-A,1e-3\n",
        "GNAS,up\nDDX5,down\nHLA-A,up\n",
        "GNAS,alpha subunit\nDDX5,a helicase; of RNA\nHLA-A,one of class I\n",
        "GNAS\tENSG00000087460\nDDX5\tENSG00000108654\nHLA-A\tENSG00000206503\n",
        "gene,GNAS,DDX5,HLA-A\n",
        "GNAS,,\nDDX5,,\nHLA-A,,\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_names_are_found_on_one_line_on_many_and_in_tables(tmp_path: Path, text: str, encoding: str):
    (tmp_path / "genes.txt").write_bytes(text.encode(encoding))
    assert read_gene_list(tmp_path / "genes.txt") == THREE


def test_two_genes_of_one_symbol_stay_apart(tmp_path: Path):
    for text in (f"{BRACKETED}\nGNAS\n", f"{BRACKETED} GNAS", f"{BRACKETED},GNAS"):
        (tmp_path / "genes.txt").write_text(text)
        assert read_gene_list(tmp_path / "genes.txt") == [BRACKETED, "GNAS"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"GNAS\nDDX5\nGNAS\n", "names GNAS more than once"),
        (b"gene\n", "names no genes"),
        (b"# nothing\n", "names no genes"),
        (b'"GNAS,DDX5\nHLA-A,A\n', "a quotation mark in it has no other"),
        (b"PK\x03\x04", "a spreadsheet's own format"),
        (b"T\xfcbingen\n", "it is not UTF-8 text"),
    ],
)
def test_lists_that_cannot_be_are_refused(tmp_path: Path, content: bytes, says: str):
    (tmp_path / "genes.csv").write_bytes(content)
    with pytest.raises(UsageError, match=says):
        read_gene_list(tmp_path / "genes.csv")


def test_a_list_of_all_genes_keeps_its_order(tmp_path: Path):
    names = [f"G{i}" for i in range(30_000)]
    (tmp_path / "genes.txt").write_text("\n".join(names))
    assert read_gene_list(tmp_path / "genes.txt") == names


@pytest.mark.parametrize(
    ("date", "gene"),
    [
        ("1-Mar", "MARCHF1"), ("Mar-01", "MARCHF1"), ("1. Mrz", "MARCHF1"), ("01-Mar-21", "MARCHF1"),
        ("2-Sep", "SEPTIN2"), ("2001-09-02", "SEPTIN2"), ("2023-09-02 00:00:00", "SEPTIN2"),
        ("02/09/2023", "SEPTIN2"), ("2.9.", "SEPTIN2"),
        ("1-Dez", "DELEC1"), ("Oct-4", "OCT4"), ("1 March 2021", "MARCHF1"),
    ],
)  # fmt: skip
def test_dates_of_spreadsheets_lead_to_the_gene(date: str, gene: str):
    assert gene in genes_of_a_date(date)
    with pytest.raises(UsageError, match=rf"'{date}' \(a date, which a spreadsheet made of {gene}\)"):
        match_genes([date], ["GNAS", gene])


def test_genes_are_no_dates(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("GNAS", "MARCH1", "SEPTIN2", "DEC1", "H2-K1", "9.2", "C1orf12", "HLA-A", "1-8U"):
        assert genes_of_a_date(name) == []
    (tmp_path / "genes.csv").write_text("GNAS\n1-Mar\n2-Sep\n")
    assert read_gene_list(tmp_path / "genes.csv") == ["GNAS", "1-Mar", "2-Sep"]
    assert "made dates of genes, 1-Mar of MARCH1 or MARCHF1 (2 in all)" in capsys.readouterr().err


def test_other_letter_case_and_names_of_today_are_hinted_at():
    with pytest.raises(
        UsageError, match=r"'Gnas' \(here GNAS\), 'Ddx5' \(here DDX5\); capital and small letters count"
    ):
        match_genes(["Gnas", "Ddx5"], ["GNAS", "DDX5"])
    with pytest.raises(UsageError, match=r"'MARCH1' \(nearest: MARCHF1"):
        match_genes(["MARCH1"], ["GNAS", "MARCHF1"])


def test_genes_may_be_named_each_with_an_option_of_its_own(tiny_model_path: Path, tmp_path: Path):
    options = ("--genes", "GNAS;CD74", "--genes", "DDX5, KRT19")
    done = run("predict", SLIDE, "-m", tiny_model_path, "-o", tmp_path, "--engine", "eager", "--pitch", "600", *options)
    assert done.exit_code == 0, done.output
    (result,) = tmp_path.glob("*.h5ad")
    assert list(anndata.read_h5ad(result).var_names) == ["GNAS", "CD74", "DDX5", "KRT19"]
