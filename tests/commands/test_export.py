from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from calls import run
from PIL import Image
from results_to_draw import made_up

from stpredict.result.file import spot_names
from stpredict.slides.lattice import lattice
from stpredict.slides.slide import Bounds, Mpp

SPOTS = lattice(Bounds(0, 0, 600, 400), Mpp(0.5, 0.5), 30.0)
GENES = ["GNAS", "A\tB", "DDX5"]


@pytest.fixture
def values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The expression of s.h5ad in a folder of its own, spots x genes."""
    monkeypatch.chdir(tmp_path)
    values = np.random.default_rng(0).normal(5, 1, (len(SPOTS), len(GENES))).astype(np.float32)
    values[3] = np.nan  # not predicted
    values[5, 0] = 0
    made_up(Path("s.h5ad"), SPOTS, values, genes=GENES)
    return values


def lines(path: Path) -> list[str]:
    with gzip.open(path, "rt") as file:
        return file.read().splitlines()


def test_seurat_finds_the_files_of_read10x_with_the_numbers_of_the_result(values):
    done = run("export", "s.h5ad", "--to", "seurat", "-o", "out")
    assert done.exit_code == 0, done.output
    assert done.stdout == "out/s.seurat\n"
    assert "s: 1 spot left out, not predicted" in done.stderr
    folder = Path("out/s.seurat")
    kept = np.isfinite(values).all(axis=1)
    with gzip.open(folder / "matrix.mtx.gz") as file:
        matrix = scipy.io.mmread(file)
    assert matrix.nnz == kept.sum() * len(GENES) - 1  # the zero takes no place
    np.testing.assert_allclose(matrix.toarray(), values[kept].T, rtol=1e-6)
    names = [name for name, is_kept in zip(spot_names("s", SPOTS), kept, strict=True) if is_kept]
    assert lines(folder / "barcodes.tsv.gz") == names
    assert [line.split("\t") for line in lines(folder / "features.tsv.gz")] == [
        [gene, gene, "Gene Expression"] for gene in ("GNAS", "A B", "DDX5")
    ]
    positions = [line.split(",") for line in (folder / "spatial/tissue_positions_list.csv").read_text().splitlines()]
    assert [row[0] for row in positions] == names
    np.testing.assert_allclose([[float(row[5]), float(row[4])] for row in positions], SPOTS.centres[kept], atol=0.5)
    factors = json.loads((folder / "spatial/scalefactors_json.json").read_text())
    assert factors["tissue_lowres_scalef"] == Image.open(folder / "spatial/tissue_lowres_image.png").width / 600
    assert factors["spot_diameter_fullres"] == 100
    assert (folder / "spots.csv").read_text().splitlines()[0] == "spot,tissue_fraction"
    assert json.loads((folder / "stpredict.json").read_text())["model"]["name"] == "made-up"


@pytest.mark.usefixtures("values")
def test_an_export_is_replaced_on_request_and_what_is_none_is_not():
    assert run("export", "s.h5ad", "--to", "seurat").exit_code == 0
    again = run("export", "s.h5ad", "--to", "seurat")
    assert again.exit_code == 1
    assert "s.seurat: exists; --overwrite replaces it." in again.stderr
    done = run("export", ".", "--to", "seurat", "--overwrite", "--genes", "DDX5")
    assert done.exit_code == 0, done.output
    assert lines(Path("s.seurat/features.tsv.gz")) == ["DDX5\tDDX5\tGene Expression"]
    Path("s.seurat/matrix.mtx.gz").unlink()
    refused = run("export", "s.h5ad", "--to", "seurat", "--overwrite")
    assert refused.exit_code == 1
    assert "is no export to seurat; move it away." in refused.stderr
    assert Path("s.seurat/features.tsv.gz").exists()
    assert sorted(path.name for path in Path().iterdir()) == ["s.h5ad", "s.seurat"]


@pytest.mark.usefixtures("values")
def test_calls_that_cannot_work():
    assert "--to csv: choose from spatialdata, seurat." in run("export", "s.h5ad", "--to", "csv").stderr
    unknown = run("export", "s.h5ad", "--to", "seurat", "--genes", "GNASS", "-o", "out")
    assert unknown.exit_code == 2
    assert "nearest: GNAS" in unknown.stderr
    assert not Path("out").exists()


@pytest.mark.usefixtures("values")
@pytest.mark.skipif(importlib.util.find_spec("spatialdata") is not None, reason="spatialdata is installed")
def test_spatialdata_is_named_where_it_is_not_installed():
    done = run("export", "s.h5ad", "--to", "spatialdata", "-o", "out")
    assert done.exit_code == 2
    assert "this needs spatialdata: install stpredict with its extra [spatialdata]." in done.stderr
    assert not Path("out").exists()


def test_spatialdata_reads_the_store(values):
    spatialdata = pytest.importorskip("spatialdata", reason="needs the extra [spatialdata]")
    done = run("export", "s.h5ad", "--to", "spatialdata")
    assert done.exit_code == 0, done.output
    store = spatialdata.read_zarr("s.zarr")
    np.testing.assert_array_equal(store["expression"].X, values)
    circles = store["spots"]
    np.testing.assert_array_equal(np.column_stack([circles.geometry.x, circles.geometry.y]), SPOTS.centres)
    assert set(circles.radius) == {50.0}
    extent = spatialdata.get_extent(store["thumbnail"])
    assert extent["x"] == (0, 600)
    assert extent["y"] == (0, 400)
