from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from stpredict.data.counts import in_memory
from stpredict.data.coverage import about_panel, demand_genes, demand_spots
from stpredict.data.gene_mask import measured_genes
from stpredict.data.section import Section
from stpredict.data.tiles import measured_in, shared_genes
from stpredict.errors import DatasetError, UsageError
from stpredict.slides.slide import Mpp

WIDE = [f"G{i:03}" for i in range(120)]


def section(name: str, genes: list[str], patient: str = "p") -> Section:
    """A section of four spots whose counts are all 1, and whose table names all genes that were measured."""
    spots = np.array([(x, y) for x in (0, 100) for y in (0, 100)], dtype=float)
    counts = csr_array(np.ones((4, len(genes)), np.float32))
    return Section(name, patient, Path(f"{name}.tif"), Mpp(0.5, 0.5), list("abcd"), spots, genes, in_memory(counts),
                   names_all_genes=True)  # fmt: skip


def test_a_panel_is_told_in_a_sentence():
    everywhere, partly = np.ones((35, 1284), dtype=bool), np.ones((35, 1284), dtype=bool)
    partly[8:, :700] = False
    assert about_panel(everywhere) == "panel: 1,284 genes, measured in all 35 sections"
    assert about_panel(everywhere[:1, :1]) == "panel: 1 gene, measured in the only section"
    assert about_panel(partly) == "panel: 1,284 genes, each measured in 8 to 35 of 35 sections"
    assert about_panel(partly[:, :2]) == "panel: 2 genes, each measured in 8 of 35 sections"


@pytest.mark.parametrize(("n", "most", "refused"), [(1, 18000, True), (49, 50, True), (50, 99, False), (8, 49, False)])
def test_few_genes_are_refused_where_a_section_measured_more(n: int, most: int, refused: bool):
    if not refused:
        demand_genes(n, most, "the panel has")
        return
    with pytest.raises(UsageError, match=rf"^the panel has {n} genes?, though one section measured .*--genes-file"):
        demand_genes(n, most, "the panel has")


def test_a_tenth_of_the_spots_may_lack_counts_and_no_more():
    counted = np.ones(10, bool)
    demand_spots(np.array([0, *[5] * 9], dtype=float), counted, "the panel")
    with pytest.raises(UsageError, match=r"^2 of 10 spots have no counts in the panel; take genes that only some"):
        demand_spots(np.array([0, 0, *[5] * 8], dtype=float), counted, "the panel")
    counted[0] = False  # nothing was counted in it at all, and no panel would help
    demand_spots(np.array([0, *[5] * 9], dtype=float), counted, "the panel")


def test_the_most_genes_of_a_section_are_known_where_few_are_shared():
    found = measured_in([section("a", WIDE), section("b", ["G003", "OTHER"], "q")], ())
    assert (found.counted_genes, found.most_genes) == ([*WIDE, "OTHER"], 120)
    assert (shared_genes(found), found.differs) == (["G003"], True)


def test_ids_are_suspected_only_where_there_are_some():
    symbols, panel = section("a", WIDE), section("b", ["A", "B"])
    with pytest.raises(DatasetError, match=r"all sections; fewest were measured in b \(2\); choose sections"):
        measured_genes([symbols, panel])
    ids = section("c", [f"ENSG{i:011}" for i in range(100)])
    with pytest.raises(DatasetError, match="do some name symbols, and others Ensembl ids"):
        measured_genes([symbols, ids])
