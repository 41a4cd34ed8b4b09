from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import csr_array, random_array

from stpredict.data import panel as panel_rules
from stpredict.data.panel import Coverage, choose_panel, match_genes, read_gene_list
from stpredict.errors import UsageError


def test_panel_is_variable_in_every_section():
    rng = np.random.default_rng(0)
    genes = [f"G{i:04}" for i in range(2000)]
    counts = rng.poisson(np.linspace(0, 3, 2000), (60, 2000)).astype(float)
    counts[:30, 1990] = 0  # never seen in A
    sections = [csr_array(counts[:30]), csr_array(counts[30:])]
    panel = choose_panel(sections, genes, required=["G0001"])
    assert "G1990" not in panel
    assert "G1999" in panel
    assert "G0001" in panel
    assert panel == sorted(panel)
    assert len(panel) < 1500
    drawn = choose_panel(sections, genes, size=20, seed=3)
    assert len(drawn) == 20
    assert drawn == choose_panel(sections, genes, size=20, seed=3)
    assert set(drawn) <= set(panel)
    fewer = choose_panel(sections[:1], genes, size=20, seed=3)
    assert len({*drawn, *fewer}) < 35  # of other sections mostly the same
    with pytest.raises(UsageError, match="no gene varies in every section"):
        choose_panel([csr_array(np.full((60, 2000), 0.1))], genes)


@settings(deadline=None)
@given(arrays(np.int64, st.tuples(st.integers(2, 8), st.just(40)), elements=st.integers(0, 9)))
def test_variable_genes_are_those_whose_counts_vary(counts):
    genes = [f"G{i:02}" for i in range(40)]
    varies = [gene for gene, own in zip(genes, counts.T, strict=True) if len(set(own)) > 1]
    assert choose_panel([csr_array(counts.astype(np.float32))], genes, required=["G00"]) == sorted({*varies, "G00"})


@pytest.mark.parametrize("rule", panel_rules.RULES)
def test_no_rule_makes_sparse_counts_dense(rule, monkeypatch):
    monkeypatch.setattr(panel_rules, "DENSE_VALUES", 20_000)
    sections = [random_array((300, 5000), density=0.02, format="csr", rng=seed) for seed in range(2)]
    tracemalloc.start()
    chosen = choose_panel(sections, [f"G{i:04}" for i in range(5000)], size=20, rule=rule)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(chosen) == 20
    assert peak < 4e6 < 300 * 5000 * 4


def test_required_genes_must_have_been_measured():
    with pytest.raises(UsageError, match=r"not among the 2 measured genes: 'GNASS' \(nearest: GNAS\)"):
        choose_panel([csr_array(np.ones((2, 2)))], ["GNAS", "DDX5"], required=["GNASS"])


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
    counts[:40, 299] = 0
    sections = [csr_array(counts[:40]), csr_array(counts[40:])]
    panel = choose_panel(sections, genes, size=5, rule="mean")
    means = counts.mean(axis=0)
    assert panel == sorted(genes[i] for i in np.argsort(-means[:299])[:5])
    assert len(choose_panel(sections, genes, rule="mean")) == 250
    with pytest.raises(UsageError, match="--panel biggest"):
        choose_panel(sections, genes, rule="biggest")


def test_variable_genes_are_those_of_scanpy(monkeypatch):
    rng = np.random.default_rng(1)
    depth = rng.lognormal(0, 0.5, (200, 1))
    effect = np.exp(rng.normal(0, 1, (200, 300)) * np.where(np.arange(300) < 30, 0.8, 0.0))
    counts = rng.poisson(depth * effect * np.linspace(1, 20, 300)[rng.permutation(300)]).astype(float)
    genes = [f"G{i:03}" for i in range(300)]
    monkeypatch.setattr(panel_rules, "DENSE_VALUES", 200 * 64)
    panel = choose_panel([csr_array(counts)], genes, size=30, rule="variable")
    assert len(set(panel) & set(genes[:30])) >= 28
    scanpy = pytest.importorskip("scanpy", reason="scanpy is not installed")
    table = scanpy.AnnData(counts)
    scanpy.experimental.pp.highly_variable_genes(table, n_top_genes=30, theta=100)
    assert panel == [gene for gene, chosen in zip(genes, table.var["highly_variable"], strict=True) if chosen]


def test_coverage_ranks_genes_where_they_were_measured():
    """G0 varies most on three sections, P0 on the two that measured it; in the third it would be noise."""
    rng = np.random.default_rng(0)
    genes = [*(f"G{i}" for i in range(20)), *(f"P{i}" for i in range(5))]
    spread = np.array([1.5, *[0.02] * 19, 1.5, *[0.02] * 4])
    sections, measured = [], np.ones((3, 25), dtype=bool)
    measured[2, 20:] = False
    for own in measured:
        counts = rng.poisson(30 * np.exp(spread * rng.normal(size=(300, 25)) - spread**2 / 2)) * own
        sections.append(csr_array(counts.astype(np.float32)))
    chosen = choose_panel(sections, genes, size=2, rule="coverage", coverage=Coverage(measured, ["a", "b", "c"], 2))
    assert chosen == ["G0", "P0"]
    of_one = Coverage(measured, ["a", "a", "b"], 3)
    assert "P0" not in choose_panel(sections, genes, size=2, rule="coverage", coverage=of_one)
    for rule in ("variance", "mean", "variable"):
        chosen = choose_panel(sections, genes, rule=rule, coverage=Coverage(measured, ["a", "b", "c"]))
        assert all(gene.startswith("G") for gene in chosen)
    with pytest.raises(UsageError, match="--min-sections asks for fewer"):
        choose_panel(sections, genes, rule="coverage", coverage=Coverage(measured, ["a", "b", "c"], 4))


def test_enough_is_a_quarter_of_the_sections_and_three_patients_or_half_of_them():
    measured = np.zeros((12, 4), dtype=bool)
    for gene, n in enumerate((2, 3, 4, 12)):
        measured[:n, gene] = True
    twos = [f"p{i // 2}" for i in range(12)]
    assert Coverage(measured, [f"p{i}" for i in range(12)]).enough.tolist() == [False, True, True, True]
    assert Coverage(measured, twos).enough.tolist() == [False, False, False, True]
    assert Coverage(measured, ["p"] * 12).enough.tolist() == [False, True, True, True]
    assert Coverage(measured[::4], ["a", "b", "c"]).enough.tolist() == [False, False, False, True]
    assert Coverage(measured[:4], ["a", "b", "c", "d"]).enough.tolist() == [True] * 4
    assert Coverage(measured, twos, least=2).enough.tolist() == [True] * 4
