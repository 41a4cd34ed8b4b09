from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stpredict.data.panel import choose_panel, match_genes, read_gene_list
from stpredict.errors import UsageError


def test_panel_is_variable_in_every_section():
    rng = np.random.default_rng(0)
    genes = [f"G{i:04}" for i in range(2000)]
    counts = rng.poisson(np.linspace(0, 3, 2000), (60, 2000)).astype(float)
    section = np.repeat(["A", "B"], 30)
    counts[:30, 1990] = 0  # never seen in A
    panel = choose_panel(counts, section, genes, required=["G0001"])
    assert "G1990" not in panel
    assert "G1999" in panel
    assert "G0001" in panel
    assert panel == sorted(panel)
    assert len(panel) < 1500
    drawn = choose_panel(counts, section, genes, size=20, seed=3)
    assert len(drawn) == 20
    assert drawn == choose_panel(counts, section, genes, size=20, seed=3)
    assert set(drawn) <= set(panel)
    fewer = choose_panel(counts[:30], section[:30], genes, size=20, seed=3)
    assert len({*drawn, *fewer}) < 35  # of other sections mostly the same
    with pytest.raises(UsageError, match="no gene varies in every section"):
        choose_panel(np.ones((60, 2000)), section, genes)


def test_required_genes_must_have_been_measured():
    with pytest.raises(UsageError, match=r"not among the 2 measured genes: 'GNASS' \(nearest: GNAS\)"):
        choose_panel(np.ones((2, 2)), np.array(["A", "A"]), ["GNAS", "DDX5"], required=["GNASS"])


def test_matching_keeps_the_order_and_names_neighbours():
    panel = ["GNAS", "DDX5", "KRT19", "KRT18"]
    assert match_genes(["KRT19", "GNAS"], panel) == [2, 0]
    with pytest.raises(UsageError, match="KRT1"):
        match_genes(["krt1"], panel)


@pytest.mark.parametrize(
    ("name", "content"),
    [("g.txt", "A\nB\n\nC\n"), ("g.csv", "gene,mean\nA,1\nB,2\nC,3\n"), ("g.tsv", "\ufeffA\t1\nB\t2\nC\t3\n")],
)
def test_gene_lists(tmp_path: Path, name: str, content: str):
    (tmp_path / name).write_text(content)
    assert read_gene_list(tmp_path / name) == ["A", "B", "C"]


def test_numpy_gene_lists_hold_no_pickle(tmp_path: Path):
    np.save(tmp_path / "g.npy", np.array(["A", "B"]))
    assert read_gene_list(tmp_path / "g.npy") == ["A", "B"]
    np.save(tmp_path / "o.npy", np.array(["A", "B"], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match="cannot be read"):
        read_gene_list(tmp_path / "o.npy")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(UsageError, match="names no genes"):
        read_gene_list(tmp_path / "empty.txt")


def test_by_mean_takes_the_highest_that_every_section_has():
    rng = np.random.default_rng(0)
    genes = [f"G{i:03}" for i in range(300)]
    counts = rng.poisson(np.linspace(0.5, 9, 300), (80, 300)).astype(float)
    section = np.repeat(["A", "B"], 40)
    counts[:40, 299] = 0
    panel = choose_panel(counts, section, genes, size=5, rule="mean")
    means = counts.mean(axis=0)
    assert panel == sorted(genes[i] for i in np.argsort(-means[:299])[:5])
    assert len(choose_panel(counts, section, genes, rule="mean")) == 250
    with pytest.raises(UsageError, match="--panel biggest"):
        choose_panel(counts, section, genes, rule="biggest")


def test_variable_genes_are_those_of_scanpy():
    rng = np.random.default_rng(1)
    depth = rng.lognormal(0, 0.5, (200, 1))
    effect = np.exp(rng.normal(0, 1, (200, 300)) * np.where(np.arange(300) < 30, 0.8, 0.0))
    counts = rng.poisson(depth * effect * np.linspace(1, 20, 300)[rng.permutation(300)]).astype(float)
    genes = [f"G{i:03}" for i in range(300)]
    panel = choose_panel(counts, np.full(200, "A"), genes, size=30, rule="variable")
    assert len(set(panel) & set(genes[:30])) >= 28
    scanpy = pytest.importorskip("scanpy", reason="scanpy is not installed")
    table = scanpy.AnnData(counts)
    scanpy.experimental.pp.highly_variable_genes(table, n_top_genes=30, theta=100)
    assert panel == [gene for gene, chosen in zip(genes, table.var["highly_variable"], strict=True) if chosen]
