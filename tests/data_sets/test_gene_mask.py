"""Sections that measured different genes: which, and of what their spots' shares are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from stpredict.data.counts import in_memory
from stpredict.data.gene_mask import GeneMask, differ, measured_genes
from stpredict.data.section import Section
from stpredict.data.tiles import Tiles
from stpredict.data.whole_depth import whole_depth
from stpredict.errors import DatasetError
from stpredict.slides.slide import Mpp

GENES = ["A", "B", "C", "D"]


def section(name: str, genes: list[str], names_all_genes: bool = True) -> Section:
    """A section of two spots without counts."""
    counts = csr_array((2, len(genes)), dtype=np.float32)
    spots = np.zeros((2, 2))
    return Section(
        name, name, Path(f"{name}.tif"), Mpp(0.5, 0.5), ["a", "b"], spots, genes, in_memory(counts),
        names_all_genes=names_all_genes,
    )  # fmt: skip


def test_tables_that_list_counted_genes_alone_stand_together():
    wide, listed = section("wide", GENES), [section("s1", ["A"], False), section("s2", ["B"], False)]
    genes, mask = measured_genes([wide, *listed])
    assert genes == GENES
    assert mask is not None
    np.testing.assert_array_equal(mask.of(["s1", "s2", "wide"]), [[1, 1, 0, 0]] * 2 + [[1] * 4])
    assert measured_genes(listed) == (["A", "B"], None)  # whatever one lists, the other did not count


def test_panels_that_nothing_links_are_refused():
    one, other, bridge = section("a", ["A", "B"]), section("b", ["C", "D"]), section("c", ["B", "C"])
    with pytest.raises(
        DatasetError, match="no gene was measured in all sections; their panels differ; choose sections"
    ):
        measured_genes([one, other])
    assert measured_genes([one, other, bridge])[0] == GENES


def test_sections_differ_if_one_lacks_more_than_a_tenth_of_what_is_counted():
    table = np.ones((2, 100), dtype=bool)
    table[1, :10] = False
    counted = np.ones(100, dtype=bool)
    assert not differ(GeneMask(["a", "b"], table), ["a", "b"], counted)
    table[1, 10] = False
    assert differ(GeneMask(["a", "b"], table), ["a", "b"], counted)
    assert not differ(GeneMask(["a", "b"], table), ["a"], counted)  # as b has no image
    counted[:50] = False
    assert not differ(GeneMask(["a", "b"], table), ["a", "b"], counted)
    assert not differ(None, ["a"], counted)


def make_tiles(counts: np.ndarray, table: list[list[int]]) -> Tiles:
    """Sections of two spots each, over GENES."""
    names = np.array([f"S{i}" for i in range(len(table))], dtype=object)
    section = np.repeat(names, 2)
    mask = GeneMask(names.tolist(), np.array(table, dtype=bool))
    return Tiles(
        None, 64, 0.5, 55.0, 100.0, section, section, section, np.zeros((len(section), 2)), GENES,
        in_memory(counts.astype(np.float32)), np.array([], dtype=object), measured=mask,
    )  # fmt: skip


def test_panel_counts_are_nan_where_a_section_did_not_measure_a_gene():
    tiles = make_tiles(np.array([[1, 2, 3, 4]] * 2 + [[5, 0, 0, 0]] * 2), [[1, 1, 1, 1], [1, 1, 0, 0]])
    expected = [[4, 1, 2, np.nan]] * 2 + [[np.nan, 5, 0, np.nan]] * 2
    np.testing.assert_array_equal(tiles.panel_counts(["D", "A", "B", "NOWHERE"]), expected)


def test_depths_are_of_what_the_reference_measured():
    """S0 counted A, B, C as 4:3:2. S1 measured A and B, S2 of these A alone, and as often D."""
    counts = np.array([[4, 3, 2, 0], [8, 6, 4, 0], [70, 0, 0, 0], [0, 7, 0, 0], [4, 0, 0, 0], [0, 0, 0, 4]])
    tiles = make_tiles(counts, [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 1]])
    parts = np.array([1, 1, 7 / 9, 7 / 9, 8 / 9, 8 / 9])
    np.testing.assert_allclose(whole_depth(tiles), np.array([9, 18, 70, 7, 4, 4]) / parts)
    np.testing.assert_array_equal(whole_depth(tiles)[:2], tiles.depth[:2])
    # Where S1 alone is known, A and B are the whole, of which A was 70 of 77.
    np.testing.assert_allclose(whole_depth(tiles, ["S1"])[2:], [70, 7, *[4 * 77 / 140] * 2])
    np.testing.assert_array_equal(whole_depth(replace(tiles, measured=None)), tiles.depth)


def test_sections_without_counts_in_common_with_the_reference_keep_their_depths():
    tiles = make_tiles(np.array([[1, 2, 3, 0]] * 2 + [[0, 0, 0, 4]] * 2), [[1, 1, 1, 0], [0, 0, 1, 1]])
    np.testing.assert_array_equal(whole_depth(tiles), tiles.depth)
