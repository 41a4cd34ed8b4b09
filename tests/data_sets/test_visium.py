from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from calls import run
from conftest import SLIDE
from PIL import Image
from scipy.sparse import csc_array

from stpredict.data.dataset import read_dataset
from stpredict.data.tiles import read_tiles
from stpredict.errors import DatasetError

MPP = 0.499  # the slide's own
GENES = [("ENSG00000087460", "GNAS"), ("ENSG00000108654", "DDX5"), ("ENSG00000015479", "MATR3"),
         ("ENSG00000280987", "MATR3"), ("ADT1", "CD3")]  # fmt: skip
#: Array rows and columns of Visium: odd rows are shifted.
ARRAY = [(row, column) for row in range(2, 12) for column in range(20, 40) if (row + column) % 2 == 0]
FORMS = ("tissue_positions_list.csv", "tissue_positions.csv", "tissue_positions.parquet")


def centre(row: int, column: int) -> tuple[float, float]:
    """x and y, in pixels of the slide."""
    return (column - 18) * 50 / MPP, (row - 1) * 100 * np.sqrt(0.75) / MPP


def barcode(i: int) -> str:
    return f"{''.join('ACGT'[(i >> 2 * k) & 3] for k in range(8))}-1"


def write_outs(outs: Path, form: str = FORMS[1], image: Path | None = SLIDE, seed: int = 0) -> np.ndarray:
    """A folder as Space Ranger writes it, with the slide beside. Returns the counts, spots x genes."""
    (outs / "spatial").mkdir(parents=True)
    rows = [(barcode(i), int(i < len(ARRAY) - 2), *at, *centre(*at)[::-1]) for i, at in enumerate(ARRAY)]
    table = pd.DataFrame(
        rows,
        columns=["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"],
    )
    if form.endswith("parquet"):
        table.to_parquet(outs / "spatial" / form)
    else:
        table.to_csv(outs / "spatial" / form, index=False, header=form == "tissue_positions.csv")
    scale = {"spot_diameter_fullres": 65 / MPP, "fiducial_diameter_fullres": 105 / MPP, "tissue_hires_scalef": 0.9}
    (outs / "spatial" / "scalefactors_json.json").write_text(json.dumps(scale))
    Image.new("RGB", (200, 150)).save(outs / "spatial" / "tissue_hires_image.png")
    if image is not None:
        shutil.copy(image, outs / image.name)
    counts = np.random.default_rng(seed).poisson(3, (len(ARRAY) - 2, len(GENES)))
    counts[1] = 0
    write_10x(outs / "filtered_feature_bc_matrix.h5", counts, [barcode(i) for i in range(len(counts) - 1)] + ["TTTT-1"])
    return counts


def write_10x(path: Path, counts: np.ndarray, barcodes: list[str]) -> None:
    matrix = csc_array(counts.T)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["data"] = matrix.data.astype("int32" if counts.dtype.kind == "i" else "float32")
        group["indices"], group["indptr"] = matrix.indices.astype("int64"), matrix.indptr.astype("int64")
        group["shape"] = np.array(matrix.shape, dtype="int32")
        group["barcodes"] = np.array(barcodes, dtype="S18")
        group["features/id"] = np.array([gene for gene, _ in GENES], dtype="S15")
        group["features/name"] = np.array([name for _, name in GENES], dtype="S10")
        group["features/feature_type"] = np.array([b"Gene Expression"] * 4 + [b"Antibody Capture"])
        group["features/genome"] = np.array([b"GRCh38"] * 5)


def name_patient(folder: Path, lines: str = "S1,first\n", header: str = "section,patient\n") -> None:
    (folder / "sections.csv").write_text(header + lines)


@pytest.mark.parametrize("form", FORMS)
def test_three_forms_of_positions(tmp_path: Path, form: str):
    counts = write_outs(tmp_path / "S1" / "outs", form)
    name_patient(tmp_path)
    (section,) = read_dataset(tmp_path)
    assert (section.name, section.patient, section.image.name) == ("S1", "first", SLIDE.name)
    assert section.mpp == pytest.approx((MPP, MPP), rel=1e-6)
    assert (section.spot_diameter_um, section.pitch_um) == (55, 100)
    assert len(section.spot_names) == len(ARRAY) - 3
    assert section.lost_spots == 2  # a barcode without a position, and a position in the tissue without counts
    np.testing.assert_allclose(section.centres[0], centre(*ARRAY[0]))
    assert section.genes == ["GNAS", "DDX5", "MATR3 (ENSG00000015479)", "MATR3 (ENSG00000280987)"]
    assert section.notes == ("symbols that stand for several Ensembl ids keep them in brackets: MATR3",)
    np.testing.assert_array_equal(section.counts.rows().toarray(), counts[:-1, :4])


def test_tile_writes_what_training_reads(tmp_path: Path, tiny_model_path: Path):
    for seed, name in enumerate(("S1", "S2")):
        write_outs(tmp_path / "visium" / name / "outs", seed=seed)
    name_patient(tmp_path / "visium", "S1,first\nS2,second\n")
    done = run("tile", str(tmp_path / "visium"), "-m", str(tiny_model_path), "-o", str(tmp_path), "--unlabelled", "6")
    assert done.exit_code == 0, done.output
    assert "S1: 97 spots, 2 without counts or position, mpp 0.4990 x 0.4990" in done.stderr
    assert "S2: symbols that stand for several" in done.stderr
    tiles = read_tiles(tmp_path / "visium.tiles.h5")
    assert (tiles.spot_diameter_um, tiles.pitch_um, tiles.mpp) == (55, 100, 0.5)
    assert sorted(set(zip(tiles.section, tiles.patient, strict=True))) == [("S1", "first"), ("S2", "second")]
    patches = tiles.read_patches(range(97))
    assert patches.shape == (97, 224, 224, 3)
    assert patches.std(axis=(1, 2, 3)).mean() > 3


def test_patients_must_be_named(tmp_path: Path):
    write_outs(tmp_path / "S1" / "outs")
    with pytest.raises(DatasetError, match=r"write .*sections.csv with the header line section,patient,image .*\(S1\)"):
        read_dataset(tmp_path)
    name_patient(tmp_path, "S7,first\n")
    with pytest.raises(DatasetError, match="names section S7, of which there are no data; the folder has S1"):
        read_dataset(tmp_path)


def test_outs_itself_and_an_image_elsewhere(tmp_path: Path):
    write_outs(tmp_path / "S1" / "outs", image=None)
    shutil.copy(SLIDE, tmp_path)
    name_patient(tmp_path / "S1" / "outs")
    with pytest.raises(DatasetError, match="section S1 has no image"):
        read_dataset(tmp_path / "S1" / "outs")
    name_patient(tmp_path / "S1" / "outs", f"S1,first,../../{SLIDE.name}\n", "section,patient,image\n")
    (section,) = read_dataset(tmp_path / "S1" / "outs")
    assert section.image.resolve() == (tmp_path / SLIDE.name).resolve()


def test_images_that_do_not_fit(tmp_path: Path):
    outs = tmp_path / "S1" / "outs"
    write_outs(outs)
    Image.new("RGB", (300, 300)).save(outs / "other.png")
    name_patient(tmp_path)
    with pytest.raises(DatasetError, match="several images"):
        read_dataset(tmp_path)
    name_patient(tmp_path, "S1,first,S1/outs/other.png\n", "section,patient,image\n")
    with pytest.raises(
        DatasetError, match=r"other.png: not the image of section S1, or not in full resolution: 9\d of"
    ):
        read_dataset(tmp_path)


def test_sources_that_disagree_are_reported(tmp_path: Path):
    outs = tmp_path / "S1" / "outs"
    write_outs(outs)
    (outs / "spatial" / "scalefactors_json.json").write_text('{"spot_diameter_fullres": 80, "regist_target_img": null}')
    name_patient(tmp_path, "S1,first,0.6\n", "section,patient,mpp\n")
    (section,) = read_dataset(tmp_path)
    assert section.mpp == (0.6, 0.6)
    notes = [note for note in section.notes if note.startswith("mpp 0.6000 x 0.6000 by ")]
    assert [note.split(" by ")[-1] for note in notes] == [
        "the array's spots",
        "scalefactors_json.json",
        "the image file",
    ]


def test_bins_of_visium_hd(tmp_path: Path):
    place = tmp_path / "CRC" / "outs" / "binned_outputs" / "square_016um"
    write_outs(place, "tissue_positions.parquet")
    table = pd.read_parquet(place / "spatial" / "tissue_positions.parquet")
    table["pxl_row_in_fullres"], table["pxl_col_in_fullres"] = table["array_row"] * 32.0, table["array_col"] * 32.0
    table.to_parquet(place / "spatial" / "tissue_positions.parquet")
    scale = {"bin_size_um": 16.0, "microns_per_pixel": 0.5, "spot_diameter_fullres": 32.0}
    (place / "spatial" / "scalefactors_json.json").write_text(json.dumps(scale))
    name_patient(tmp_path, "CRC_square_016um,first\n")
    (section,) = read_dataset(tmp_path)
    assert section.mpp == pytest.approx((0.5, 0.5))
    assert (section.spot_diameter_um, section.pitch_um) == (16, 16)
    assert len(section.notes) == 1  # of the genes


def test_turned_arrays(tmp_path: Path):
    """The lattice gives the mpp of each axis of the image, however the array lies on it."""
    outs = tmp_path / "S1"
    write_outs(outs, "tissue_positions.csv")
    path = outs / "spatial" / "tissue_positions.csv"
    table = pd.read_csv(path)
    table[["pxl_row_in_fullres", "pxl_col_in_fullres"]] = table[["pxl_col_in_fullres", "pxl_row_in_fullres"]] * (1, -1)
    table["pxl_col_in_fullres"] += 2000
    table.to_csv(path, index=False)
    name_patient(tmp_path)
    assert read_dataset(tmp_path)[0].mpp == pytest.approx((MPP, MPP), rel=1e-6)


def spoil(change):
    def apply(outs: Path) -> None:
        with h5py.File(outs / "filtered_feature_bc_matrix.h5", "r+") as file:
            change(file)

    return apply


def replace(name: str, value: object):
    def apply(file: h5py.File) -> None:
        del file[name]
        file[name] = value

    return spoil(apply)


def link_outside(file: h5py.File) -> None:
    del file["matrix/data"]
    file["matrix/data"] = h5py.ExternalLink("elsewhere.h5", "/data")


def claim(file: h5py.File) -> None:
    del file["matrix/data"]
    file.create_dataset("matrix/data", (1 << 40,), "int32", chunks=(1 << 20,), compression="gzip")


def truncate(outs: Path) -> None:
    path = outs / "filtered_feature_bc_matrix.h5"
    path.write_bytes(path.read_bytes()[:3000])


def write(name: str, content: bytes):
    return lambda outs: (outs / "spatial" / name).write_bytes(content)


@pytest.mark.parametrize(
    ("spoiled", "says"),
    [
        (truncate, "filtered_feature_bc_matrix.h5: cannot be read"),
        (spoil(link_outside), "matrix/data is a link to another file"),
        (spoil(claim), "claims more data than the file can hold"),
        (spoil(lambda file: file.pop("matrix/features/id")), "filtered_feature_bc_matrix.h5: cannot be read"),
        (replace("matrix/indices", np.full(10**3, 10**6)), "filtered_feature_bc_matrix.h5: .*damaged"),
        (replace("matrix/features/feature_type", np.array([b"Peaks"] * 5)), "holds no gene expression"),
        (spoil(lambda file: file["matrix/data"].write_direct(np.full(len(file["matrix/data"]), -1, "int32"))),
         "finite and not negative"),
        (lambda outs: write_10x(outs / "filtered_feature_bc_matrix.h5", np.full((3, 5), 0.5), ["A", "B", "C"]),
         "filtered_feature_bc_matrix.h5: .*raw counts are needed"),
        (lambda outs: write_10x(outs / "filtered_feature_bc_matrix.h5", np.ones((3, 5), int), ["A", "B", "C"]),
         "no spot in common with tissue_positions.csv"),
        (lambda outs: write_10x(outs / "filtered_feature_bc_matrix.h5", np.ones((2, 5), int), ["A", "A"]),
         "names spot A more than once"),
        (lambda outs: (outs / "spatial" / FORMS[1]).unlink(), "holds no tissue_positions"),
        (write(FORMS[1], b"\xff\xfe\x00nothing"), "tissue_positions.csv: cannot be read"),
        (write(FORMS[1], b"A,1,2,3,4,here\n"), "tissue_positions.csv: cannot be read"),
        (write(FORMS[2], b"PAR1 nothing"), "tissue_positions.parquet: cannot be read"),
        (write("scalefactors_json.json", b"[1"), "scalefactors_json.json: cannot be read as JSON"),
        (write("scalefactors_json.json", b"[" * 10**5), "scalefactors_json.json: cannot be read as JSON"),
    ],
)  # fmt: skip
def test_damaged_and_hostile_files_are_refused(tmp_path: Path, spoiled, says: str):
    write_outs(tmp_path / "S1")
    name_patient(tmp_path)
    spoiled(tmp_path / "S1")
    with pytest.raises(DatasetError, match=says):
        read_dataset(tmp_path)
