from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from PIL import Image
from scipy.io import mmwrite
from scipy.sparse import coo_array, csc_array

from stpredict.data import xenium_counts
from stpredict.data.bins import Bins
from stpredict.data.dataset import read_dataset
from stpredict.data.reading import Reading
from stpredict.errors import DatasetError

#: From pixels of the H&E to those of the morphology image: turned by a right angle, twice as fine, and shifted.
TO_MORPHOLOGY = np.array([[0.0, -2.0, 4000.0], [2.0, 0.0, 100.0], [0.0, 0.0, 1.0]])
MORPHOLOGY_UM = 0.2125
FEATURES = [
    ("ENSG00000087460", "GNAS", "Gene Expression"), ("ENSG00000108654", "DDX5", "Gene Expression"),
    ("NegControlProbe_00042", "NegControlProbe_00042", "Negative Control Probe"),
    ("BLANK_0037", "BLANK_0037", "Gene Expression"),  # as in the first releases
]  # fmt: skip
AT_UM = np.array([(110.0, 120.0), (190.0, 199.0), (210.0, 120.0), (250.0, 260.0), (310.0, 150.0)])
COUNTS = np.arange(1, 21, dtype=np.int32).reshape(5, 4)


def write_run(place: Path, image_px: int = 2000, parquet: bool = True) -> None:
    """A run's output, its H&E and alignment, in the published format."""
    place.mkdir(parents=True)
    (place / "experiment.xenium").write_text(json.dumps({"pixel_size": MORPHOLOGY_UM, "panel_organism": "Human"}))
    cells = pd.DataFrame({"cell_id": [f"aaa{i}-1" for i in range(5)], "x_centroid": AT_UM[:, 0],
                          "y_centroid": AT_UM[:, 1], "cell_area": 50.0})  # fmt: skip
    if parquet:
        cells.to_parquet(place / "cells.parquet")
    else:
        cells.to_csv(place / "cells.csv.gz", index=False)
    matrix = csc_array(COUNTS.T)  # features x cells
    with h5py.File(place / "cell_feature_matrix.h5", "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(cells["cell_id"].tolist(), dtype="S")
        group["data"], group["indices"], group["indptr"] = matrix.data, matrix.indices, matrix.indptr
        group["shape"] = matrix.shape
        for i, part in enumerate(("id", "name", "feature_type")):
            group[f"features/{part}"] = np.array([feature[i] for feature in FEATURES], dtype="S")
    Image.new("RGB", (image_px, image_px), "white").save(place / "S1_he_image.tif")
    np.savetxt(place / "S1_he_imagealignment.csv", TO_MORPHOLOGY, delimiter=",")


@pytest.fixture
def xenium(tmp_path: Path) -> Path:
    write_run(tmp_path / "S1_outs")
    (tmp_path / "sections.csv").write_text("section,patient\nS1,first\n")
    return tmp_path


def test_cells_are_pooled_to_squares_and_lie_on_the_slide(xenium: Path):
    (section,) = read_dataset(xenium)
    assert (section.name, section.patient, section.technology) == ("S1", "first", "Xenium")
    assert section.genes == ["GNAS", "DDX5"]  # control probes are none
    assert section.spot_names == [f"s_100um_{y:05d}_{x:05d}-1" for x, y in ((1, 1), (2, 1), (2, 2), (3, 1))]
    np.testing.assert_array_equal(
        section.counts.rows().toarray(), [COUNTS[0, :2] + COUNTS[1, :2], COUNTS[2, :2], COUNTS[3, :2], COUNTS[4, :2]]
    )
    assert (section.spot_diameter_um, section.pitch_um) == (100, 100)
    assert section.mpp == pytest.approx((2 * MORPHOLOGY_UM, 2 * MORPHOLOGY_UM))
    middle_um = np.array([(150, 150), (250, 150), (250, 250), (350, 150)])
    there = np.c_[section.centres, np.ones(4)] @ TO_MORPHOLOGY.T  # back to the morphology image
    np.testing.assert_allclose(there[:, :2] * MORPHOLOGY_UM, middle_um)
    assert section.notes[0] == "cells are pooled to squares of 100 um; counts outside cells are not part of them"


def test_squares_of_another_size_and_cells_as_text(tmp_path: Path):
    write_run(tmp_path / "S1_outs", parquet=False)
    (tmp_path / "sections.csv").write_text("section,patient\nS1,first\n")
    (section,) = read_dataset(tmp_path, Reading(Bins(200.0)))
    assert (len(section.spot_names), section.pitch_um) == (3, 200)
    assert section.counts.per_spot.sum() == COUNTS[:, :2].sum()


def test_what_a_run_lacks_is_said(xenium: Path):
    run = xenium / "S1_outs"
    (xenium / "sections.csv").rename(xenium / "aside.csv")
    with pytest.raises(DatasetError, match=r"which patients the sections come from; write .*sections.csv"):
        read_dataset(xenium)
    (xenium / "aside.csv").rename(xenium / "sections.csv")
    np.savetxt(run / "S1_he_imagealignment.csv", np.zeros((3, 3)), delimiter=",")
    with pytest.raises(DatasetError, match=r"S1_he_imagealignment\.csv: is no matrix that aligns images"):
        read_dataset(xenium)
    (run / "S1_he_imagealignment.csv").unlink()
    with pytest.raises(DatasetError, match=r"section S1 needs one \*he_imagealignment.csv"):
        read_dataset(xenium)
    (run / "S1_he_image.tif").unlink()
    with pytest.raises(DatasetError, match="section S1 has no image"):
        read_dataset(xenium)


#: A cell's number and suffix, in zarr, and the name that other files give it; the pair of the first is published.
IDS, NAMES = [[992 + i, 1] for i in range(5)], [f"aaaaado{letter}-1" for letter in "abcde"]
TYPES = ["gene", "gene", "negative_control_probe", "unassigned_codeword"]


def in_zarr(path: Path, write: Callable[[zarr.Group], None], **damage: object) -> None:
    """An archive of what is written, with `damage` to what it says of cell_summary."""
    with tempfile.TemporaryDirectory() as folder:
        write(zarr.open_group(folder, mode="w", zarr_format=2))
        if damage:
            said = Path(folder, "cell_summary", ".zarray")
            said.write_text(json.dumps(json.loads(said.read_text()) | damage))
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(Path(folder).rglob("*")):
                archive.write(file, file.relative_to(folder))


def write_zarr_cells(root: zarr.Group) -> None:
    root.create_array("cell_id", data=np.array(IDS, np.uint32))
    summary = root.create_array("cell_summary", data=np.c_[np.full(5, 9.0), AT_UM])
    summary.attrs["column_names"] = ["cell_area", "cell_centroid_x", "cell_centroid_y"]


def write_zarr_counts(root: zarr.Group, by_cell: bool = False) -> None:
    features = root.create_group("cell_features")
    features.create_array("cell_id", data=np.array(IDS, np.uint32))
    matrix = csc_array(COUNTS.T if by_cell else COUNTS)
    group = features.create_group("csc") if by_cell else features
    for part in ("data", "indices", "indptr"):
        group.create_array(part, data=getattr(matrix, part).astype(np.uint32))
    keys = ("ids", "keys", "types")
    named = ([feature[0] for feature in FEATURES], [feature[1] for feature in FEATURES], TYPES)
    features.attrs.update({f"feature_{key}": names for key, names in zip(keys, named, strict=True)})


def rename_cells(run: Path) -> None:
    """Give the cells of the tables names that zarr can hold."""
    table = pd.read_parquet(run / "cells.parquet")
    table.assign(cell_id=NAMES).to_parquet(run / "cells.parquet")


@pytest.mark.parametrize("by_cell", [False, True], ids=["by feature", "by cell"])
@pytest.mark.parametrize("table", [False, True], ids=["zarr alone", "beside parquet"])
def test_archives_of_zarr_hold_the_same(xenium: Path, by_cell: bool, table: bool):
    (expected,) = read_dataset(xenium)
    run = xenium / "S1_outs"
    (run / "cell_feature_matrix.h5").unlink()
    rename_cells(run)
    if not table:
        (run / "cells.parquet").unlink()
        in_zarr(run / "cells.zarr.zip", write_zarr_cells)
    in_zarr(run / "cell_feature_matrix.zarr.zip", lambda root: write_zarr_counts(root, by_cell))
    (found,) = read_dataset(xenium)
    assert (found.genes, found.spot_names, found.symbols) == (expected.genes, expected.spot_names, expected.symbols)
    np.testing.assert_array_equal(found.counts.rows().toarray(), expected.counts.rows().toarray())
    np.testing.assert_array_equal(found.centres, expected.centres)
    assert found.notes == expected.notes[:1]  # what is no gene is left out by its type


def test_a_matrix_in_a_folder_is_read(xenium: Path):
    (expected,) = read_dataset(xenium)
    run = xenium / "S1_outs"
    (run / "cell_feature_matrix.h5").unlink()
    folder = run / "cell_feature_matrix"
    folder.mkdir()
    mmwrite(folder / "matrix.mtx", coo_array(COUNTS.T))
    (folder / "barcodes.tsv").write_text("".join(f"aaa{i}-1\n" for i in range(5)))
    (folder / "features.tsv").write_text("".join("\t".join(feature) + "\n" for feature in FEATURES))
    (found,) = read_dataset(xenium)
    assert found.genes == expected.genes
    np.testing.assert_array_equal(found.counts.rows().toarray(), expected.counts.rows().toarray())


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        ({"dtype": "|S8", "fill_value": ""}, "cell_summary is no array of numbers"),
        ({"filters": [{"id": "base64"}]}, "cell_summary is no array of numbers"),
        ({"compressor": {"id": "pickle", "protocol": 5}}, "No Zarr data type"),
        ({"shape": [1 << 40, 3]}, "cell_summary claims more data than the file can hold"),
        ({"shape": [4, 3]}, "4 cells in cell_summary, 5 in cell_id"),
    ],
)
def test_damaged_archives_of_zarr_are_named(xenium: Path, damage: dict[str, object], what: str):
    run = xenium / "S1_outs"
    (run / "cells.parquet").unlink()
    in_zarr(run / "cells.zarr.zip", write_zarr_cells, **damage)
    with pytest.raises(DatasetError, match=rf"cells\.zarr\.zip: cannot be read, or is damaged \({what}"):
        read_dataset(xenium)
    (run / "cells.zarr.zip").write_bytes(b"no archive")
    with pytest.raises(DatasetError, match=r"cells\.zarr\.zip: cannot be read, or is damaged"):
        read_dataset(xenium)


def write_transcripts(run: Path, **more: list) -> None:
    """Two of one gene in a square, one of poor quality, one of a control probe, and one elsewhere."""
    columns = {
        "feature_name": ["GNAS", "GNAS", "DDX5", "NegControlProbe_00042", "DDX5"],
        "x_location": AT_UM[:, 0], "y_location": AT_UM[:, 1], "qv": [40.0, 20.0, 19.9, 40.0, 31.0],
    }  # fmt: skip
    pd.DataFrame(columns | more).to_parquet(run / "transcripts.parquet")


@pytest.mark.parametrize("newer", [False, True], ids=["first releases", "newer ones"])
def test_without_a_matrix_transcripts_are_pooled(xenium: Path, monkeypatch: pytest.MonkeyPatch, newer: bool):
    monkeypatch.setattr(xenium_counts, "ROWS_AT_A_TIME", 2)
    run = xenium / "S1_outs"
    (run / "cell_feature_matrix.h5").unlink()
    older = [b"GNAS", b"GNAS", b"DDX5", b"BLANK_0037", b"DDX5"]
    write_transcripts(run, **({"is_gene": [True, True, True, False, True]} if newer else {"feature_name": older}))
    (section,) = read_dataset(xenium)
    assert section.genes == ["GNAS", "DDX5"]
    at = dict(zip(section.spot_names, section.counts.rows().toarray().tolist(), strict=True))
    assert at["s_100um_00001_00001-1"] == [2, 0]
    assert at["s_100um_00001_00003-1"] == [0, 1]
    assert section.counts.per_spot.sum() == 3
    assert section.notes[0].startswith("transcripts of quality 20 or more are pooled to squares of 100 um, inside")


#: Names in an archive of transcripts: gene, control, gene that has no transcript, gene.
ZARR_NAMES = ["GNAS", "NegControlProbe_00042", "FASN", "DDX5"]
UNKNOWN = 65535


def write_zarr_transcripts(root: zarr.Group, newer: bool = True, shorter: bool = False) -> None:
    """The transcripts of `write_transcripts` in two squares, with invalid ones and codes without a gene beside them."""
    root.attrs["gene_names"] = ZARR_NAMES
    if newer:
        root.create_array("gene_category", data=np.array([[1, 0], [0, 1], [1, 0], [1, 0]], bool))
    everything = np.array([0, 0, 3, 1, 3, 0, UNKNOWN], np.uint16)
    at_um = np.c_[np.r_[AT_UM, AT_UM[:2]], np.zeros(7)].astype(np.float32)
    quality = np.array([40.0, 20.0, 19.9, 40.0, 31.0, 40.0, 40.0], np.float32)
    valid = np.array([1, 1, 1, 1, 1, 0, 1], np.uint8)
    for level, rows in ((0, {"0,0": [0, 2, 5, 6], "1,0": [1, 3, 4]}), (1, {"0,0": [0, 4]})):
        for square, own in rows.items():
            group = root.create_group(f"grids/{level}/{square}")
            group.create_array("gene_identity", data=everything[own, None])
            group.create_array("quality_score", data=quality[own[1:] if shorter else own, None])
            group.create_array("location", data=at_um[own])
            group.create_array("valid", data=valid[own, None])


@pytest.mark.parametrize("newer", [False, True], ids=["first releases", "newer ones"])
def test_an_archive_of_transcripts_holds_the_same(xenium: Path, newer: bool):
    run = xenium / "S1_outs"
    (run / "cell_feature_matrix.h5").unlink()
    write_transcripts(run, **({"is_gene": [True, True, True, False, True]} if newer else {}))
    (expected,) = read_dataset(xenium)
    (run / "transcripts.parquet").unlink()
    in_zarr(run / "transcripts.zarr.zip", lambda root: write_zarr_transcripts(root, newer))
    (found,) = read_dataset(xenium)
    assert found.genes == ["GNAS", "FASN", "DDX5"]  # a gene of the panel without a transcript was measured, too
    assert found.spot_names == expected.spot_names
    np.testing.assert_array_equal(found.counts.rows().toarray()[:, [0, 2]], expected.counts.rows().toarray())
    np.testing.assert_array_equal(found.centres, expected.centres)
    assert found.notes[0] == expected.notes[0]


def test_a_damaged_archive_of_transcripts_is_named(xenium: Path):
    run = xenium / "S1_outs"
    (run / "cell_feature_matrix.h5").unlink()
    in_zarr(run / "transcripts.zarr.zip", lambda root: write_zarr_transcripts(root, shorter=True))
    damaged = r"transcripts\.zarr\.zip: cannot be read, or is damaged"
    with pytest.raises(DatasetError, match=rf"{damaged} \(the arrays of grids/0/0,0 differ in length"):
        read_dataset(xenium)
    (run / "transcripts.zarr.zip").write_bytes(b"no archive")
    with pytest.raises(DatasetError, match=rf"{damaged} \(it is no zip archive"):
        read_dataset(xenium)


def test_a_run_without_counts_is_refused_with_what_would_do(xenium: Path):
    run = xenium / "S1_outs"
    (run / "cell_feature_matrix.h5").unlink()
    with pytest.raises(DatasetError) as refused:
        read_dataset(xenium)
    assert str(refused.value).endswith(
        "S1_outs: holds neither cell_feature_matrix (.h5, .zarr.zip or a folder) with cells (.parquet, .csv.gz or "
        ".zarr.zip), nor transcripts (.parquet or .zarr.zip)."
    )
    (run / "transcripts.parquet").write_bytes(b"cut short")
    with pytest.raises(DatasetError, match=r"transcripts\.parquet: cannot be read as a table of transcripts"):
        read_dataset(xenium)
    write_transcripts(run, qv=[0.0] * 5)
    with pytest.raises(DatasetError, match=r"transcripts\.parquet: holds no transcripts of quality 20 or more"):
        read_dataset(xenium)
