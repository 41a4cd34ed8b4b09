from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.sparse import csc_array

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
        section.counts.toarray(), [COUNTS[0, :2] + COUNTS[1, :2], COUNTS[2, :2], COUNTS[3, :2], COUNTS[4, :2]]
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
    assert section.counts.sum() == COUNTS[:, :2].sum()


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
