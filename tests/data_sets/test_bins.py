from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from calls import run
from conftest import SLIDE
from scipy.sparse import csr_matrix
from test_visium import GENES, name_patient, write_10x, write_outs

from stpredict.data.bins import Bins
from stpredict.data.dataset import read_dataset
from stpredict.data.reading import Reading
from stpredict.data.tiles import read_tiles
from stpredict.errors import UsageError

MPP = 0.499
N_BINS = 60


def write_bins(folder: Path, bin_um: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A folder of bins of Visium HD on the example slide's tissue. Returns their rows and columns, and counts."""
    name = f"square_{round(bin_um):03d}um"
    place = folder / "CRC" / "outs" / "binned_outputs" / name
    (place / "spatial").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    at = np.array([(row, column) for row in range(N_BINS) for column in range(N_BINS)])
    at = at[rng.random(len(at)) < 0.6]
    codes = [f"s_{row:05d}_{column:05d}-1" for row, column in at]
    pixels = 600 + (at + 0.5) * bin_um / MPP
    table = pd.DataFrame({"barcode": codes, "in_tissue": 1, "array_row": at[:, 0], "array_col": at[:, 1]})
    table["pxl_row_in_fullres"], table["pxl_col_in_fullres"] = pixels.T
    table.to_parquet(place / "spatial" / "tissue_positions.parquet", index=False)
    scale = {"bin_size_um": bin_um, "microns_per_pixel": MPP, "spot_diameter_fullres": bin_um / MPP}
    (place / "spatial" / "scalefactors_json.json").write_text(json.dumps(scale))
    counts = rng.poisson(1, (len(at), len(GENES)))
    write_10x(place / "filtered_feature_bc_matrix.h5", counts, codes)
    name_patient(folder, f"CRC_{name},first,{SLIDE}\n", "section,patient,image\n")
    return at, counts


@pytest.mark.parametrize(
    ("own_um", "asked_um", "factor"), [(2, None, 4), (2, 16, 8), (2, 2, 1), (8, None, 1), (8, 24, 3)]
)
def test_squares_have_the_sum_of_their_bins_and_a_centre_of_their_own(tmp_path, own_um, asked_um, factor):
    at, counts = write_bins(tmp_path, own_um)
    (section,) = read_dataset(tmp_path, Reading(Bins(asked_um)))
    side = own_um * factor
    assert (section.spot_diameter_um, section.pitch_um) == (side, side)
    squares = sorted({(row // factor, column // factor) for row, column in at}, key=lambda square: square[::-1])
    found = dict(zip(section.spot_names, range(len(squares)), strict=True))
    for row, column in squares:
        i = found[f"s_{row:05d}_{column:05d}-1" if factor == 1 else f"s_{side:03d}um_{row:05d}_{column:05d}-1"]
        own = (at // factor == (row, column)).all(axis=1)
        np.testing.assert_array_equal(section.counts.rows([i]).toarray()[0], counts[own, :4].sum(axis=0))
        middle = 600 + (np.array([column, row]) + 0.5) * side / MPP
        np.testing.assert_allclose(section.centres[i], middle, atol=1e-6)
    assert section.counts.per_spot.sum() == counts[:, :4].sum()
    told = [note for note in section.notes if "pooled" in note]
    how = "" if asked_um else "; --bin-um asks for another size"
    pooled = f"{len(at)} bins of {own_um} um are pooled to {len(squares)} squares of {side} um{how}"
    assert told == ([] if factor == 1 else [pooled])


def test_bins_are_pooled_to_what_a_model_learnt_from(tmp_path: Path):
    write_bins(tmp_path, 2)
    (section,) = read_dataset(tmp_path, Reading(Bins(like_um=16.0)))
    assert section.spot_diameter_um == 16
    assert any(note.endswith("squares of 16 um, as large as the model's spots") for note in section.notes)
    (section,) = read_dataset(tmp_path, Reading(Bins(like_um=55.0)))
    assert section.spot_diameter_um == 8


def test_sizes_that_cannot_be_are_refused(tmp_path: Path):
    write_bins(tmp_path / "hd", 8)
    for side in (12, 2, float("inf"), float("nan")):
        with pytest.raises(
            UsageError, match="bins of 8 um, as of section CRC_square_008um, pool to multiples of that, as 16"
        ):
            read_dataset(tmp_path / "hd", Reading(Bins(side)))
    write_outs(tmp_path / "visium" / "S1")
    name_patient(tmp_path / "visium")
    with pytest.raises(UsageError, match="--bin-um: pools the bins of Visium HD, and section S1 has spots"):
        read_dataset(tmp_path / "visium", Reading(Bins(8)))


def test_bins_of_anndata_are_pooled_too(tmp_path: Path):
    at, counts = write_bins(tmp_path / "hd", 2)
    (expected,) = read_dataset(tmp_path / "hd")
    obs = pd.DataFrame({"array_row": at[:, 0], "array_col": at[:, 1]}, index=[f"b{i}" for i in range(len(at))])
    var = pd.DataFrame({"gene_ids": [gene for gene, _ in GENES[:4]]}, index=[name for _, name in GENES[:4]])
    data = anndata.AnnData(csr_matrix(counts[:, :4].astype(np.float32)), obs, var)
    data.obsm["spatial"] = 600 + (at[:, ::-1] + 0.5) * 2 / MPP
    (tmp_path / "h5ad").mkdir()
    data.write_h5ad(tmp_path / "h5ad" / "s.h5ad")
    (tmp_path / "h5ad" / "sections.csv").write_text(f"section,patient,image,counts\ns,first,{SLIDE},s.h5ad\n")
    (found,) = read_dataset(tmp_path / "h5ad")
    assert found.spot_names == expected.spot_names
    np.testing.assert_allclose(found.centres, expected.centres)
    np.testing.assert_array_equal(found.counts.rows().toarray(), expected.counts.rows().toarray())
    assert found.spot_diameter_um == 8


def test_tile_pools_bins_and_draws_places_for_small_ones(tmp_path: Path, tiny_model_path: Path):
    write_bins(tmp_path / "hd", 2)
    options = ("-m", tiny_model_path, "-o", tmp_path, "--unlabelled", "50", "--overwrite", "--mpp", "0.5")
    for more, side in (((), 8), (("--bin-um", "16"), 16)):
        done = run("tile", tmp_path / "hd", *options, *more)
        assert done.exit_code == 0, done.output
        assert f"squares of {side} um" in done.stderr
        tiles = read_tiles(tmp_path / "hd.tiles.h5")
        assert (tiles.spot_diameter_um, len(tiles.unlabelled_section)) == (side, 50)
        assert tiles.read_patches(range(50), unlabelled=True).std(axis=(1, 2, 3)).mean() > 3
    done = run("tile", SLIDE, "--bin-um", "8", "-o", tmp_path)
    assert done.exit_code == 2
    assert "--bin-um: a slide has no measured spots" in done.stderr
