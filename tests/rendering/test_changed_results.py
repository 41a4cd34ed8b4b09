"""Results that were moved, or changed in another program, since they were made."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import anndata
import h5py
import pytest
from results_to_draw import draw, predict

from stpredict.errors import ResultError, SlideError
from stpredict.rendering.colour import ScaleRequest, colour_scale
from stpredict.result.file import read_result


@pytest.fixture(scope="module")
def result(tiny_model, tmp_path_factory):
    return predict(tiny_model, tmp_path_factory.mktemp("out"), genes=("GNAS", "A/../B", "CD74"))


def test_a_slide_that_is_gone_costs_only_what_needs_it(result, tmp_path):
    (tmp_path / "far" / "away").mkdir(parents=True)
    moved = Path(shutil.copy(result.path, tmp_path / "far" / "away"))
    with pytest.raises(SlideError, match="name the slide of CMU-1-Small-Region"):
        draw(read_result(moved), tmp_path, "overlay", "report", "heatmap")
    assert [path.name for path in tmp_path.glob("*.tif")] == ["CMU-1-Small-Region.GNAS.heatmap.tif"]
    assert not list(tmp_path.glob("*.html"))


def test_genes_keep_their_colours_when_a_table_is_put_in_another_order(result, tmp_path):
    table = anndata.read_h5ad(result.path)
    for genes in (["CD74", "GNAS", "A/../B"], ["GNAS"]):
        table[:, genes].write_h5ad(tmp_path / "changed.h5ad")
        changed = read_result(tmp_path / "changed.h5ad")
        for index, gene in enumerate(genes):
            place = [known.name for known in result.genes].index(gene)
            assert colour_scale(changed, index, ScaleRequest()) == colour_scale(result, place, ScaleRequest())
    table.var_names = ["GNAS", "X", "CD74"]
    table.write_h5ad(tmp_path / "changed.h5ad")
    with pytest.raises(ResultError, match="changed"):
        read_result(tmp_path / "changed.h5ad")


def test_pictures_of_a_table_that_was_changed_are_others(result, tmp_path):
    draw(result, tmp_path, "heatmap")
    table = anndata.read_h5ad(result.path)
    table[table.obs["tissue_fraction"] > 0.9].write_h5ad(tmp_path / "fewer.h5ad")
    table.X[:] = 0
    table.write_h5ad(tmp_path / "zero.h5ad")
    for name in ("fewer.h5ad", "zero.h5ad"):
        with pytest.raises(ResultError, match="exists with other settings"):
            draw(read_result(tmp_path / name), tmp_path, "heatmap")


def test_a_picture_stands_where_only_genes_that_it_does_not_show_were_changed(result, tmp_path):
    """So that a picture of one gene of a whole transcriptome does not wait for all of them to be read."""
    draw(result, tmp_path, "heatmap")  # of GNAS, the first
    changed = Path(shutil.copy(result.path, tmp_path / "changed.h5ad"))
    for gene, outcome in ((2, contextlib.nullcontext()), (0, pytest.raises(ResultError, match="other settings"))):
        with h5py.File(changed, "r+") as file:
            file["X"][:, gene] += 1
        with outcome:
            draw(read_result(changed), tmp_path, "heatmap")
