from __future__ import annotations

import csv

import numpy as np
import pytest
from results_to_draw import draw, made_up

from stpredict.slides.lattice import lattice
from stpredict.slides.slide import Bounds, Mpp

SPOTS = lattice(Bounds(0, 0, 600, 400), Mpp(0.5, 0.49), 40.0, "hex")


def rows(path):
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def test_the_table_holds_every_spot_with_its_place_and_genes(tmp_path):
    values = np.random.default_rng(0).normal(5, 1, (len(SPOTS), 2))
    values[3, 1] = np.nan
    result = made_up(tmp_path / "s.h5ad", SPOTS, values, Mpp(0.5, 0.49))
    (path,) = draw(result, tmp_path, "csv", genes=())
    assert path.name == "s.expression.csv"
    found = rows(path)
    assert len(found) == len(SPOTS)
    for i, row in enumerate(found):
        assert row["spot"] == f"s:r{SPOTS.row[i]}c{SPOTS.column[i]}"
        x, y = SPOTS.centres[i]
        assert [float(row[key]) for key in ("x_px", "y_px")] == pytest.approx([x, y], abs=0.005)
        assert [float(row[key]) for key in ("x_um", "y_um")] == pytest.approx([x * 0.5, y * 0.49], abs=0.005)
        np.testing.assert_allclose([float(row["G0"]), float(row["G1"])], values[i], atol=1e-4)


def test_no_cell_is_a_formula(tmp_path):
    genes = ["=HYPERLINK(1)", "+G", "-G", "@G", "\tG", "A,B", 'say "x"', "A=B"]
    result = made_up(tmp_path / "=1+1.h5ad", SPOTS, np.ones((len(SPOTS), len(genes))), genes=genes)
    (path,) = draw(result, tmp_path, "csv", genes=())
    found = rows(path)
    assert list(found[0])[8:] == [f"'{gene}" if gene[0] in "=+-@\t" else gene for gene in genes]
    assert found[0]["spot"] == "'=1+1:r0c0"
    for row in found:
        assert not any(cell.startswith(("=", "+", "@", "\t", "\r")) for cell in (*row, *row.values()))
